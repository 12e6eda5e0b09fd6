"""Reads the arrays of a large JSON object one entry at a time, with only one entry in memory.

    {"info": {...}, "images": [ entry, entry, ... ], "annotations": [ ... ]}  ->  (array, index, entry), ...

The C scanner of `json` decodes each entry from a rolling buffer, so this is as fast as `json.load`.
"""

import codecs
import json
import math
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from pipelines import beam_storage
from pipelines.text_encoding import UNKNOWN_ENCODING, detect_encoding

CHUNK_BYTES = 1 << 20
# A longer entry is treated as an unclosed bracket.
MAX_ENTRY_CHARACTERS = 1 << 25


def parse_integer(text: str) -> int | float:
    """Returns an integer; infinity if it has more digits than Python converts (4,300), so that it fits no id.

    >>> parse_integer("-12"), parse_integer("9" * 5000)
    (-12, inf)
    """
    try:
        return int(text)
    except ValueError:
        return -math.inf if text.startswith("-") else math.inf


class JsonStreamError(ValueError):
    """Invalid JSON; the message contains the position of the first error."""


def stream_arrays(stream: BinaryIO, names: Collection[str]) -> Iterator[tuple[str, int, Any]]:
    """Yields (array name, index, entry) for the entries of arrays of the top-level object, in file order.

    Args:
      stream: the JSON file.
      names: names of the arrays to read; everything else is skipped.

    Raises:
      JsonStreamError: at the first position that is not valid JSON, after all entries before it were yielded.
      OSError: if storage fails.
    """
    text = _Text(stream)
    text.expect("{")
    if text.take_if("}"):
        return
    while True:
        key = text.take_value()
        if not isinstance(key, str):
            raise text.error("expected a key")
        text.expect(":")
        if text.take_if("["):
            yield from ((key, index, item) for index, item in enumerate(_read_entries(text)) if key in names)
        else:
            text.take_value()
        if text.take_if("}"):
            text.expect_end()
            return
        text.expect(",")


def _read_entries(text: "_Text") -> Iterator[Any]:
    if text.take_if("]"):
        return
    while True:
        yield text.take_value()
        # The comma is tested first, because it is the usual case and there are millions of entries.
        if not text.take_if(","):
            break
    text.expect("]")


class _Text:
    """The text of a stream and a position in it, with a rolling buffer."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder: codecs.IncrementalDecoder | None = None
        self._scan = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._position = 0
        self._dropped = 0
        self._ended = False

    def error(self, message: str) -> JsonStreamError:
        """Returns an error with the current position."""
        return JsonStreamError(f"not valid JSON at character {self._dropped + self._position}: {message}")

    def take_if(self, token: str) -> bool:
        """Skips whitespace, then skips the token if it comes next and returns whether it did."""
        self._skip_whitespace()
        found = self._buffer.startswith(token, self._position)
        self._position += len(token) * found
        return found

    def expect(self, token: str) -> None:
        """Skips whitespace and the token, which must come next."""
        if not self.take_if(token):
            raise self.error(f"expected {token!r}")

    def expect_end(self) -> None:
        """Checks that only whitespace follows."""
        self._skip_whitespace()
        if self._position < len(self._buffer):
            raise self.error("unexpected text after the end of the object")

    def take_value(self) -> Any:
        """Decodes the next value, reading as many chunks as it needs."""
        self._skip_whitespace()
        while True:
            try:
                value, end = self._scan(self._buffer, self._position)
            except RecursionError:
                raise self.error("nested too deeply") from None
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._position > MAX_ENTRY_CHARACTERS or not self._read_chunk():
                    raise self.error(error.msg) from None
                continue
            except ValueError:
                # An integer is too long. Parsing integers in Python takes more time, so it begins here.
                self._scan = json.JSONDecoder(parse_int=parse_integer).raw_decode
                continue
            length = end - self._position
            # A number at the end of the buffer may be incomplete: `1` may be the beginning of `1e-5`.
            if end + len("e-") < len(self._buffer) or not self._read_chunk():
                self._position += length
                return value

    def _skip_whitespace(self) -> None:
        while True:
            while self._position < len(self._buffer) and self._buffer[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._buffer) or not self._read_chunk():
                return

    def _read_chunk(self) -> bool:
        """Appends the next chunk and drops the text before the position; returns False at the end of the stream."""
        if self._ended:
            return False
        try:
            chunk = self._stream.read(CHUNK_BYTES)
            # The first bytes select the encoding.
            self._decoder = self._decoder or codecs.getincrementaldecoder(detect_encoding(chunk))()
            more = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError:
            raise self.error(UNKNOWN_ENCODING) from None
        except beam_storage.UNREADABLE as error:
            if not beam_storage.is_damage(error):
                raise
            raise self.error(f"the rest of the file cannot be read: {error}") from None
        self._ended = not chunk
        self._buffer = self._buffer[self._position :] + more
        self._dropped += self._position
        self._position = 0
        return not self._ended or bool(more)
