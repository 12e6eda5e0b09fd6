"""Console output that may fail without an effect on the run."""

import os
from typing import IO, Any


class LenientFile:
    """A file whose write errors do not end the run, such as a closed pipe or a full disk."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Writes text; after the first error all output is discarded."""
        try:
            self._file.write(text)
        except OSError:
            self._discard_output()
        return len(text)

    def flush(self) -> None:
        """Flushes the file; after the first error all output is discarded."""
        try:
            self._file.flush()
        except OSError:
            self._discard_output()

    def _discard_output(self) -> None:
        # Redirects the file descriptor itself: other code that prints to it would fail as well, and so would Python
        # when it flushes its buffers at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._file.fileno())
        os.close(null)
