"""Reads compressed text files up to a damage, and then raises an error.

Beam's reader takes a file that is cut off for a complete one, so its last lines would be lost silently.
"""

import bz2
import gzip
import zlib
from types import TracebackType
from typing import BinaryIO

CHUNK_BYTES = 1 << 14


class CompressedInput:
    """A file compressed by gzip or bzip2, open for reading."""

    def __init__(self, stream: BinaryIO, suffix: str) -> None:
        """Opens the content of a compressed file.

        Args:
          stream: the compressed file; closed with this one.
          suffix: `.gz` or `.bz2`.
        """
        self._stream = stream
        self._file = gzip.GzipFile(fileobj=stream, mode="rb") if suffix == ".gz" else bz2.BZ2File(stream)
        self._error: Exception | None = None

    def __enter__(self) -> "CompressedInput":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._stream.close()

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes, as many as possible up to `size`; empty at the end of the file.

        Raises:
          EOFError: if the file is cut off, after all bytes before the cut were returned.
          zlib.error, OSError: if the content is damaged, likewise.
        """
        data = bytearray()
        while self._error is None and (size < 0 or len(data) < size):
            part = self._read_part(CHUNK_BYTES if size < 0 else size - len(data))
            if not part:
                break
            data += part
        if self._error is not None and not data:
            raise self._error
        return bytes(data)

    def _read_part(self, size: int) -> bytes:
        """Returns some of the next bytes; stores an error, which is raised when all bytes before it are returned."""
        try:
            part = self._file.read1(size)
            # gzip accepts a file without any byte as one without content.
            if not part and self._stream.tell() == 0:
                raise EOFError
        except EOFError:
            self._error = EOFError("the compressed file is cut off")
        except (OSError, zlib.error) as error:
            self._error = error
        else:
            return part
        return b""
