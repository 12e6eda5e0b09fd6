"""Reads the lines of CSV files as lists of fields, whatever program saved them.

Encodings: UTF-8 and UTF-16 ("Unicode text" of Excel), with or without a byte order mark. Line ends: LF, CRLF,
and CR alone. A quoted field may contain line ends; a quote that is not closed damages its own line only.
"""

import codecs
import csv
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, NamedTuple, cast

from pipelines import beam_storage
from pipelines.text_encoding import detect_encoding

# A longer line is split into pieces, which are rejected.
MAX_LINE_BYTES = 1 << 16
# Lines after which a quote that is still open is an error, not a field with line ends.
MAX_LINES_PER_ROW = 32


class Row(NamedTuple):
    """One line of a table.

    Attributes:
      number: number of the line in the file, from 1.
      fields: the fields, without spaces around them; empty if the line cannot be read.
      problem: why the line cannot be read; empty if it can be read.
    """

    number: int
    fields: list[str]
    problem: str = ""


def read_rows(stream: BinaryIO, delimiter: str, columns: int = 0) -> Iterator[Row]:
    """Yields the nonempty lines of an open file.

    Args:
      stream: the file.
      delimiter: the character between the fields.
      columns: number of fields per line; a quoted field may contain line ends only if the joined lines have this
        number of fields. 0 if it is unknown.
    """
    lines = enumerate(beam_storage.read_lines(cast(BinaryIO, _Utf8Reader(stream)), MAX_LINE_BYTES), start=1)
    waiting: deque[tuple[int, bytes]] = deque()
    while True:
        if not waiting:
            waiting.extend(islice(lines, 1))
        if not waiting:
            return
        number, line = waiting.popleft()
        if not line.strip():
            continue
        row = _join_lines(number, line, waiting, lines, delimiter, columns) if line.count(b'"') % 2 else None
        yield row or _split_line(number, line, delimiter)


def _join_lines(
    number: int,
    line: bytes,
    waiting: deque[tuple[int, bytes]],
    lines: Iterator[tuple[int, bytes]],
    delimiter: str,
    columns: int,
) -> Row | None:
    """Returns the row that begins with an open quote and ends in a later line; None if there is no such row.

    The lines that were read and are not part of the row are left in `waiting`.
    """
    joined = [line]
    is_open = True
    while is_open and len(joined) < MAX_LINES_PER_ROW:
        if len(waiting) < len(joined):
            waiting.extend(islice(lines, 1))
        if len(waiting) < len(joined):
            return None
        joined.append(waiting[len(joined) - 1][1])
        is_open ^= bool(joined[-1].count(b'"') % 2)
    row = None if is_open else _split_line(number, b"\n".join(joined), delimiter)
    if row is None or row.problem or (columns and (len(row.fields) < columns or any(row.fields[columns:]))):
        return None
    for _ in joined[1:]:
        waiting.popleft()
    return row


def _split_line(number: int, line: bytes, delimiter: str) -> Row:
    try:
        text = line.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError:
        return Row(number, [], "the line is not UTF-8 text; save the file as UTF-8 (in Excel: CSV UTF-8)")
    try:
        # A row with line ends gets them in its fields, because the reader receives it as one string.
        fields = next(csv.reader([text], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return Row(number, [], "the quotes of the line do not match, or the line is too long")
    return Row(number, [field.strip() for field in fields])


class _Utf8Reader:
    """The bytes of an open file as UTF-8 without a byte order mark, with LF at least where lines end.

    Args:
      stream: the file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder: codecs.IncrementalDecoder | None = None
        self._has_only_cr = False
        self._is_started = False

    def read(self, size: int) -> bytes:
        """Returns the next bytes; empty at the end of the file."""
        while chunk := self._stream.read(size):
            if not self._is_started:
                self._is_started = True
                if not (encoding := detect_encoding(chunk)).startswith("utf-8"):
                    # A damaged character becomes U+FFFD.
                    self._decoder = codecs.getincrementaldecoder(encoding)("replace")
                chunk = chunk.removeprefix(codecs.BOM_UTF8)
                self._has_only_cr = b"\r" in chunk and b"\n" not in chunk
            data = self._decoder.decode(chunk).encode() if self._decoder else chunk
            if self._has_only_cr:
                data = data.replace(b"\r", b"\n")
            if data:
                return data
        return b""
