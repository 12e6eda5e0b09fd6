"""TFRecord framing: length, masked CRC of it, data, masked CRC of that (TensorFlow's record_writer.h)."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

from ssd_dist.core.errors import DataError


def frame_record(data: bytes) -> bytes:
    """The bytes that one record occupies in a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def read_records(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The records of an open TFRecord file in order.

    Raises:
      DataError: naming the file and the record whose checksum fails or that is cut short.
    """
    index = 0
    while header := file.read(12):
        if len(header) < 12 or _masked_crc(header[:8]) != header[8:]:
            raise DataError(f"{name}: record {index}: broken length; the file is damaged or no TFRecord")
        size = struct.unpack("<Q", header[:8])[0]
        body = file.read(size + 4)
        if len(body) < size + 4:
            raise DataError(f"{name}: record {index}: cut short; the file is incomplete")
        data = body[:-4]
        if _masked_crc(data) != body[-4:]:
            raise DataError(f"{name}: record {index}: checksum does not match; the file is damaged")
        yield data
        index += 1


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
