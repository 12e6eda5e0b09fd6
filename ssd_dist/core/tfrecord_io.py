"""TFRecord framing: length, masked CRC of it, data, masked CRC of that (TensorFlow's record_writer.h)."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

from ssd_dist.core.errors import DataError

# A longer record is a broken length, or a trap: its bytes would be asked for in one piece.
MAX_RECORD_BYTES = 1 << 30
# What is wrong with a record after which the next one is found.
DAMAGED_BODY = "checksum does not match"


def frame_record(data: bytes) -> bytes:
    """The bytes that one record occupies in a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def read_records(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The records of an open TFRecord file in order.

    Raises:
      DataError: naming the file and the record whose checksum fails or that is cut short.
    """
    for index, (data, problem) in enumerate(scan_records(file)):
        if problem:
            raise DataError(f"{name}: record {index}: {problem}; the file is damaged, incomplete or no TFRecord")
        yield data


def scan_records(file: BinaryIO) -> Iterator[tuple[bytes, str]]:
    """Each record of an open TFRecord file with what is wrong with it, or an empty text.

    A record whose own checksum fails (`DAMAGED_BODY`) is followed by the next; one whose length is broken, or that is
    cut short, is the last: where the next begins is not known.
    """
    while header := file.read(12):
        size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
        if len(header) < 12 or _masked_crc(header[:8]) != header[8:] or size > MAX_RECORD_BYTES:
            yield b"", "broken length"
            return
        body = file.read(size + 4)
        if len(body) < size + 4:
            yield b"", "cut short"
            return
        data = body[:-4]
        yield data, "" if _masked_crc(data) == body[-4:] else DAMAGED_BODY


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
