"""Reads compressed text files up to a damage, and then raises an error.

Beam's reader takes a file that is cut off for a complete one, so its last lines would be lost silently.
"""

import bz2
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO

# A chunk may expand a thousandfold.
CHUNK_BYTES = 1 << 14
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    # 31: the format of gzip, with the largest history.
    ".gz": lambda: zlib.decompressobj(31),
    ".bz2": bz2.BZ2Decompressor,
}


class CompressedInput:
    """A compressed file, open for reading.

    Args:
      stream: the compressed file; closed with this one.
      make_decompressor: returns a decompressor for one member of the file, see `DECOMPRESSORS`.
    """

    def __init__(self, stream: BinaryIO, make_decompressor: Callable[[], Any]) -> None:
        self._stream = stream
        self._make = make_decompressor
        self._decompressor = make_decompressor()
        self._ready = bytearray()
        self._is_ended = False
        self._error: Exception | None = None

    def __enter__(self) -> "CompressedInput":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes, as many as possible up to `size`; empty at the end of the file.

        Raises:
          EOFError: if the file is cut off, after all bytes before the cut were returned.
          zlib.error, OSError: if the content is damaged, likewise.
        """
        while not self._is_ended and self._error is None and (size < 0 or len(self._ready) < size):
            try:
                self._fill()
            except (EOFError, OSError, zlib.error) as error:
                self._error = error
        if self._error is not None and not self._ready:
            raise self._error
        data = bytes(self._ready if size < 0 else self._ready[:size])
        del self._ready[: len(data)]
        return data

    def _fill(self) -> None:
        chunk = self._stream.read(CHUNK_BYTES)
        if not chunk:
            self._is_ended = True
            if not self._decompressor.eof:
                raise EOFError("the compressed file is cut off")
        while chunk:
            if self._decompressor.eof:
                # Another member follows; tools pad the file with zeros.
                chunk = chunk.lstrip(b"\0")
                if not chunk:
                    return
                self._decompressor = self._make()
            self._ready += self._decompressor.decompress(chunk)
            chunk = self._decompressor.unused_data
