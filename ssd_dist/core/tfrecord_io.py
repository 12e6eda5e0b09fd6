"""Reads and writes the TFRecord format (TensorFlow's record_writer.h).

A record is its length, the masked CRC of the length, the data, and the masked CRC of the data.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

from ssd_dist.core.errors import DataError

# A longer record has a damaged or malicious length: its bytes are read in one piece.
MAX_RECORD_BYTES = 1 << 30
# The problem of a record after which reading can continue.
DAMAGED_BODY = "checksum does not match"


def frame_record(data: bytes) -> bytes:
    """Returns the bytes of one record in a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def read_records(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yields the records of an open TFRecord file in order.

    Raises:
      DataError: if a checksum fails or a record is truncated; the message states file and record.
    """
    for index, (data, problem) in enumerate(scan_records(file)):
        if problem:
            raise DataError(f"{name}: record {index}: {problem}; the file is damaged, incomplete or not a TFRecord")
        yield data


def scan_records(file: BinaryIO) -> Iterator[tuple[bytes, str]]:
    """Yields each record of an open TFRecord file and its problem, an empty string for a valid record.

    After a record whose data checksum fails (`DAMAGED_BODY`), reading continues with the next. A record with a broken
    length and a truncated record are the last, because the start of the next record is unknown.
    """
    while header := file.read(12):
        size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
        if len(header) < 12 or _masked_crc(header[:8]) != header[8:] or size > MAX_RECORD_BYTES:
            yield b"", "broken length"
            return
        body = file.read(size + 4)
        if len(body) < size + 4:
            yield b"", "truncated"
            return
        data = body[:-4]
        yield data, "" if _masked_crc(data) == body[-4:] else DAMAGED_BODY


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
