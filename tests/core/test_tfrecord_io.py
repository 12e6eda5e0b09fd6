"""Tests that TFRecord files equal TensorFlow's, and that damage is reported with the record."""

import io
import itertools
import struct

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_dist.core.errors import DataError
from ssd_dist.core.tfrecord_io import frame_record, read_records

RECORDS = [b"", b"first", b"\x00" * 1000, bytes(range(256)) * 3]
FILE = b"".join(map(frame_record, RECORDS))


def read_all(data: bytes) -> list[bytes]:
    return list(read_records(io.BytesIO(data), "x.tfrecord"))


def test_reading_inverts_framing():
    assert read_all(FILE) == RECORDS
    assert read_all(b"") == []


@settings(deadline=None, max_examples=20)
@given(st.lists(st.binary(max_size=5000), max_size=5))
def test_files_equal_those_of_tensorflow(tmp_path_factory, records):
    tf = pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("tfrecord")
    with tf.io.TFRecordWriter(str(folder / "tensorflow")) as writer:
        for record in records:
            writer.write(record)
    (folder / "own").write_bytes(b"".join(map(frame_record, records)))
    assert (folder / "own").read_bytes() == (folder / "tensorflow").read_bytes()
    assert list(tf.data.TFRecordDataset(str(folder / "own")).as_numpy_iterator()) == records
    with open(folder / "tensorflow", "rb") as file:
        assert list(read_records(file, "tensorflow")) == records


def test_truncation_inside_a_record_is_detected():
    ends = [0, *itertools.accumulate(len(frame_record(record)) for record in RECORDS)]
    for size in range(len(FILE)):
        if size in ends:
            assert read_all(FILE[:size]) == RECORDS[: ends.index(size)]
        else:
            with pytest.raises(DataError, match=r"x\.tfrecord: record \d"):
                read_all(FILE[:size])


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(FILE) - 1), st.integers(0, 7))
def test_every_flipped_bit_is_reported_with_its_record(position, bit):
    broken = bytearray(FILE)
    broken[position] ^= 1 << bit
    ends = itertools.accumulate(len(frame_record(record)) for record in RECORDS)
    index = sum(position >= end for end in ends)
    with pytest.raises(DataError, match=rf"x\.tfrecord: record {index}: "):
        read_all(bytes(broken))


def test_records_before_the_damage_are_read():
    broken = bytearray(FILE)
    broken[-1] ^= 1
    reader = read_records(io.BytesIO(bytes(broken)), "x")
    assert [next(reader) for _ in range(3)] == RECORDS[:3]
    with pytest.raises(DataError, match="record 3"):
        next(reader)


def test_files_of_another_format_are_rejected():
    with pytest.raises(DataError, match="not a TFRecord"):
        read_all(b"\xff\xd8\xff\xe0 this is a JPEG, not records")


@pytest.mark.parametrize("size", [1 << 36, 1 << 62, (1 << 64) - 1])
def test_an_implausible_length_is_reported_as_damage(size):
    length = struct.pack("<Q", size)
    crc = google_crc32c.value(length)
    masked = struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
    with pytest.raises(DataError, match="record 0: broken length"):
        read_all(length + masked + b"few bytes")
