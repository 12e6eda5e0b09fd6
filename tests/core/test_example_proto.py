"""Compares Example bytes with TensorFlow's; invalid bytes raise only DataError."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import decode_example, encode_example

INT64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-3, 300), st.sampled_from([-(2**63), 2**63 - 1, 127, 128])
)
FEATURE = st.one_of(
    st.lists(st.binary(max_size=200), max_size=4),
    st.lists(st.floats(width=32), max_size=50).map(lambda values: np.array(values, np.float32)),
    st.lists(INT64, max_size=50).map(lambda values: np.array(values, np.int64)),
)
# Names in any script, without surrogates, which UTF-8 cannot encode. No name is a prefix of another, because protobuf's
# implementations order such names differently (upb puts the longer one first, C++ the shorter one).
NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="."), max_size=20).map("{}.".format)
FEATURES = st.dictionaries(NAME, FEATURE, max_size=6)


def tensorflow_example(features):
    train = pytest.importorskip("tensorflow").train
    fields = {}
    for name, values in features.items():
        if not isinstance(values, np.ndarray):
            fields[name] = train.Feature(bytes_list=train.BytesList(value=values))
        elif values.dtype == np.float32:
            fields[name] = train.Feature(float_list=train.FloatList(value=values))
        else:
            fields[name] = train.Feature(int64_list=train.Int64List(value=values))
    return train.Example(features=train.Features(feature=fields))


def assert_equal_features(actual, expected):
    assert sorted(actual) == sorted(expected)
    for name, values in expected.items():
        if isinstance(values, np.ndarray):
            assert actual[name].dtype == values.dtype
            np.testing.assert_array_equal(actual[name], values)
        else:
            assert list(actual[name]) == list(values)


@settings(deadline=None, max_examples=300)
@given(FEATURES)
def test_bytes_equal_those_of_tensorflow(features):
    assert encode_example(features) == tensorflow_example(features).SerializeToString(deterministic=True)


@settings(deadline=None, max_examples=200)
@given(FEATURES)
def test_decoding_inverts_encoding(features):
    assert_equal_features(decode_example(encode_example(features)), features)


@settings(deadline=None, max_examples=100)
@given(FEATURES)
def test_bytes_of_tensorflow_are_decoded_for_any_order_of_keys(features):
    shuffled = dict(reversed(features.items()))
    assert_equal_features(decode_example(tensorflow_example(shuffled).SerializeToString()), features)


@pytest.mark.parametrize(
    ("features", "case"),
    [
        ({}, "no features"),
        ({"": np.array([0], np.int64)}, "an empty name"),
        ({"a": []}, "an empty list of bytes keeps its type"),
        ({"a": np.zeros(0, np.float32), "b": np.zeros(0, np.int64)}, "empty arrays keep theirs"),
        ({"a": [b"", b"\x00"]}, "empty strings are values"),
        ({"a": np.array([-1], np.int64)}, "ten bytes for a negative number"),
        ({"a": np.array([-0.0, np.nan, np.inf], np.float32)}, "special floats"),
        ({"é": [b"1"], "z": [b"2"], "\U0001f600": [b"3"], "￿": [b"4"]}, "UTF-8 order, not UTF-16 order"),
        ({"a": [b"x" * 70_000]}, "a length of three bytes"),
        ({f"key{i:03}": np.array([i], np.int64) for i in range(200)}, "many keys"),
    ],
)
def test_edge_cases_are_encoded_as_by_tensorflow(features, case):
    data = encode_example(features)
    assert data == tensorflow_example(features).SerializeToString(deterministic=True), case
    assert_equal_features(decode_example(data), features)


def test_unsupported_types_are_rejected():
    with pytest.raises(TypeError, match="float64"):
        encode_example({"a": np.zeros(1)})


def test_unpacked_lists_are_decoded():
    # Features{1: Feature{3: Int64List{1: 5, 1: 300}, ...}} with one field per number, and the same for floats.
    integers = bytes.fromhex("1a05 0805 08ac02")
    floats = bytes.fromhex("120a 0d0000803f 0d00000040")
    entries = b"".join(
        b"\x0a" + bytes([len(body) + 5]) + b"\x0a\x01" + name + b"\x12" + bytes([len(body)]) + body
        for name, body in ((b"i", integers), (b"f", floats))
    )
    features = decode_example(b"\x0a" + bytes([len(entries)]) + entries)
    assert_equal_features(features, {"i": np.array([5, 300]), "f": np.array([1, 2], np.float32)})


EXAMPLE = encode_example(
    {"image": [b"\xff\xd8" * 9], "labels": np.array([1, -1, 1 << 40], np.int64), "boxes": np.ones(5, np.float32)}
)


def test_truncated_bytes_raise_a_data_error():
    # Zero bytes are a valid empty message.
    assert decode_example(b"") == {}
    for size in range(1, len(EXAMPLE)):
        with pytest.raises(DataError, match=r"not a tf\.train\.Example"):
            decode_example(EXAMPLE[:size])


@settings(deadline=None, max_examples=1000)
@given(
    st.one_of(st.binary(max_size=100), st.tuples(st.integers(0, len(EXAMPLE) - 1), st.binary(min_size=1, max_size=12)))
)
def test_broken_bytes_give_features_or_a_data_error(broken):
    if isinstance(broken, tuple):
        position, replacement = broken
        broken = EXAMPLE[:position] + replacement + EXAMPLE[position + len(replacement) :]
    with contextlib.suppress(DataError):
        assert all(isinstance(name, str) for name in decode_example(broken))


def test_an_integer_of_more_than_64_bits_is_truncated_as_in_protobuf():
    # An Int64List with a single value of ten full bytes: 70 one bits.
    body = bytes.fromhex("1a0c 0a0a ffffffffffffffffff7f")
    entry = b"\x0a\x01i\x12" + bytes([len(body)]) + body
    data = b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry
    assert decode_example(data)["i"].tolist() == [-1]
    assert pytest.importorskip("tensorflow").train.Example.FromString(data).features.feature["i"].int64_list.value == [
        -1
    ]
