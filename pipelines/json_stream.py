"""Reads the arrays of a large JSON object one entry at a time, in the memory of one entry.

    {"info": {...}, "images": [ entry, entry, ... ], "annotations": [ ... ]}  ->  (array, index, entry), ...

The C scanner of `json` decodes each entry from a rolling buffer, so speed is that of `json.load`.
"""

import codecs
import json
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from pipelines import beam_storage

CHUNK_BYTES = 1 << 20
# An entry beyond this is taken for a bracket that is never closed.
MAX_ENTRY_CHARACTERS = 1 << 25


class JsonStreamError(ValueError):
    """The text is not the JSON it should be; the message says where it stops being so."""


def stream_arrays(stream: BinaryIO, names: Collection[str]) -> Iterator[tuple[str, int, Any]]:
    """The entries of the named arrays of a top-level object, in file order; everything else is skipped.

    Raises:
      JsonStreamError: at the first place that is not valid JSON, after the entries before it.
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
            yield from ((key, index, item) for index, item in enumerate(_entries(text)) if key in names)
        else:
            text.take_value()
        if text.take_if("}"):
            text.expect_end()
            return
        text.expect(",")


def _entries(text: "_Text") -> Iterator[Any]:
    if text.take_if("]"):
        return
    while True:
        yield text.take_value()
        # The usual sign first: there are millions of entries.
        if not text.take_if(","):
            break
    text.expect("]")


class _Text:
    """The text of a stream from a position on."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._position = 0
        self._dropped = 0
        self._ended = False

    def error(self, message: str) -> JsonStreamError:
        """An error that names the present place."""
        return JsonStreamError(f"not valid JSON at character {self._dropped + self._position}: {message}")

    def take_if(self, sign: str) -> bool:
        """Steps over blanks and, if it comes next, over the sign."""
        self._skip_blanks()
        found = self._buffer.startswith(sign, self._position)
        self._position += len(sign) * found
        return found

    def expect(self, sign: str) -> None:
        """Steps over the sign, which must come next."""
        if not self.take_if(sign):
            raise self.error(f"expected {sign!r}")

    def expect_end(self) -> None:
        """Nothing but blanks may follow."""
        self._skip_blanks()
        if self._position < len(self._buffer):
            raise self.error("something follows the end")

    def take_value(self) -> Any:
        """Decodes the value that comes next, reading on as far as it reaches."""
        self._skip_blanks()
        while True:
            try:
                value, end = self._scan(self._buffer, self._position)
            except RecursionError:
                raise self.error("nested too deeply") from None
            except ValueError as error:
                if len(self._buffer) - self._position > MAX_ENTRY_CHARACTERS or not self._read_on():
                    raise self.error(getattr(error, "msg", str(error))) from None
                continue
            length = end - self._position
            # A number at the end of the buffer may go on: `1` may be all of `1e-5` that is there.
            if end + len("e-") < len(self._buffer) or not self._read_on():
                self._position += length
                return value

    def _skip_blanks(self) -> None:
        while True:
            while self._position < len(self._buffer) and self._buffer[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._buffer) or not self._read_on():
                return

    def _read_on(self) -> bool:
        """Appends the next chunk, dropping what is behind; False at the end."""
        if self._ended:
            return False
        try:
            chunk = self._stream.read(CHUNK_BYTES)
            more = self._decode(chunk, final=not chunk)
        except beam_storage.UNREADABLE as error:
            if not beam_storage.is_damage(error):
                raise
            raise self.error(f"the file cannot be read on: {error}") from None
        self._ended = not chunk
        self._buffer = self._buffer[self._position :] + more
        self._dropped += self._position
        self._position = 0
        return not self._ended or bool(more)
