"""Tests that records are encoded without loss, have the documented keys, and are read by TensorFlow's parser."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import decode_example, encode_example
from ssd_dist.core.matching import Targets
from ssd_dist.core.records import Objects, Record

# The keys of prepared records. Existing shards contain them, so they must not change.
KEYS = {
    "image/encoded", "image/format", "image/height", "image/width", "image/source_id", "image/filename",
    "image/object/bbox/ymin", "image/object/bbox/xmin", "image/object/bbox/ymax", "image/object/bbox/xmax",
    "image/object/class/label", "image/object/class/text", "image/object/difficult", "image/object/is_crowd",
    "image/object/area", "image/original/height", "image/original/width",
    "target/positive/anchor", "target/positive/label", "target/positive/box", "target/ignored/anchor",
}  # fmt: skip

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def records(draw) -> Record:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, positives, ignored = (draw(st.integers(0, 5)) for _ in range(3))
    return Record(
        encoded=draw(st.binary(max_size=50)),
        height=draw(st.integers(1, 5000)),
        width=draw(st.integers(1, 5000)),
        original_height=draw(st.integers(1, 50000)),
        original_width=draw(st.integers(1, 50000)),
        source_id=draw(TEXT),
        filename=draw(TEXT),
        objects=Objects(
            boxes=rng.random((count, 4), np.float32),
            labels=rng.integers(1, 91, count),
            names=tuple(draw(st.lists(TEXT, min_size=count, max_size=count))),
            difficult=rng.random(count) < 0.5,
            is_crowd=rng.random(count) < 0.5,
            area=(rng.random(count) * 1e6).astype(np.float32),
        ),
        targets=Targets(
            anchors=np.sort(rng.choice(8732, positives, replace=False)),
            labels=rng.integers(1, 91, positives),
            offsets=rng.normal(0, 5, (positives, 4)).astype(np.float32),
            ignored=np.sort(rng.choice(8732, ignored, replace=False)),
            objects=rng.integers(0, 5, positives),
        ),
    )


def assert_equal_records(actual: Record, expected: Record) -> None:
    for name in ("encoded", "height", "width", "original_height", "original_width", "source_id", "filename"):
        assert getattr(actual, name) == getattr(expected, name)
    assert actual.objects.names == expected.objects.names
    for part, names in (
        ("objects", ("boxes", "labels", "difficult", "is_crowd", "area")),
        ("targets", ("anchors", "labels", "offsets", "ignored")),
    ):
        for name in names:
            found, reference = getattr(getattr(actual, part), name), getattr(getattr(expected, part), name)
            assert found.dtype == reference.dtype, name
            assert found.shape == reference.shape, name
            np.testing.assert_array_equal(found, reference, err_msg=name)


@settings(deadline=None, max_examples=100)
@given(records())
def test_decoding_inverts_encoding(record):
    again = Record.from_bytes(record.to_bytes())
    assert_equal_records(again, record)
    assert again.to_bytes() == record.to_bytes()
    # The object of each positive anchor is not stored, because the offsets determine it.
    assert again.targets.objects.shape == (0,)


@settings(deadline=None, max_examples=20)
@given(records())
def test_keys_equal_the_documented_keys(record):
    assert set(decode_example(record.to_bytes())) == KEYS


@settings(deadline=None, max_examples=30)
@given(records())
def test_tensorflow_reads_the_same_values_and_writes_the_same_bytes(record):
    tf = pytest.importorskip("tensorflow")
    data = record.to_bytes()
    example = tf.train.Example.FromString(data)
    assert example.SerializeToString(deterministic=True) == data
    feature = example.features.feature
    assert feature["image/encoded"].bytes_list.value == [record.encoded]
    assert feature["image/format"].bytes_list.value == [b"jpeg"]
    assert feature["image/object/class/text"].bytes_list.value == [name.encode() for name in record.objects.names]
    assert feature["image/object/class/label"].int64_list.value == record.objects.labels.tolist()
    assert feature["target/positive/anchor"].int64_list.value == record.targets.anchors.tolist()
    assert feature["target/ignored/anchor"].int64_list.value == record.targets.ignored.tolist()
    for side, name in enumerate(("ymin", "xmin", "ymax", "xmax")):
        stored = feature[f"image/object/bbox/{name}"].float_list.value
        assert stored == record.objects.boxes[:, side].tolist()
    assert feature["target/positive/box"].float_list.value == record.targets.offsets.reshape(-1).tolist()


VALID = Record(
    b"\xff\xd8\xff",
    300,
    300,
    480,
    640,
    "7",
    "7.jpg",
    Objects(np.ones((2, 4), np.float32), np.array([1, 2]), ("a", "b"), *np.zeros((2, 2), bool), np.ones(2, np.float32)),
    Targets(np.array([5]), np.array([1]), np.zeros((1, 4), np.float32), np.array([6, 9]), np.array([0])),
).to_bytes()


def remove_key(key: str) -> bytes:
    return encode_example({name: value for name, value in decode_example(VALID).items() if name != key})


def replace_key(key: str, value) -> bytes:
    return encode_example({**decode_example(VALID), key: value})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        VALID[:-1],
        *(remove_key(key) for key in sorted(KEYS - {"image/format"})),
        replace_key("image/source_id", [b"\xff\xfe"]),
        replace_key("image/source_id", []),
        replace_key("image/source_id", np.array([7])),
        replace_key("image/encoded", np.array([7])),
        replace_key("image/height", np.array([np.inf], np.float32)),
        replace_key("image/height", [b"300"]),
        replace_key("image/height", np.zeros(0, np.int64)),
        replace_key("image/object/class/label", np.array([1, np.inf], np.float32)),
        replace_key("image/object/class/label", [b"1", b"2"]),
        replace_key("image/object/class/text", np.array([1, 2])),
        replace_key("image/object/bbox/ymin", np.array([1, 2])),
        replace_key("image/object/bbox/ymin", np.ones(3, np.float32)),
        replace_key("target/positive/box", np.ones(5, np.float32)),
    ],
)
def test_invalid_records_raise_a_data_error(data):
    with pytest.raises(DataError, match="not a"):
        Record.from_bytes(data)


@settings(deadline=None, max_examples=500)
@given(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=8))
def test_broken_bytes_give_a_record_or_a_data_error(position, replacement):
    with contextlib.suppress(DataError):
        Record.from_bytes(VALID[:position] + replacement + VALID[position + len(replacement) :])


def test_classes_are_listed_once_in_their_order_without_crowds():
    names = ("dog", "cat", "owl", "cat", "ape", "owl")
    objects = Objects(
        boxes=np.zeros((6, 4), np.float32),
        labels=np.array([1, 2, 3, 2, 4, 3]),
        names=names,
        difficult=np.array([True, False, False, False, False, False]),
        is_crowd=np.array([False, False, True, False, True, False]),
        area=np.zeros(6, np.float32),
    )
    # Not the order of a set, which differs between processes.
    assert objects.list_classes() == ["dog", "cat", "owl"]
