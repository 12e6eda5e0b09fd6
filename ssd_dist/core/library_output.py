"""Keeps what libraries print to stderr off the terminal, in a file of the run: `RUN/logs/COMMAND.log`.

TensorFlow and the converters of exports print from C++ code to the file descriptor of stderr, and through Python's
logging. Both go to the file. What this package prints, errors and tracebacks stay on the terminal.
"""

import faulthandler
import logging as python_logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from absl import logging  # type: ignore[import-untyped]

from ssd_dist.core.storage import is_remote

LOGS_NAME = "logs"
STDERR = 2


@contextmanager
def keep_library_output(folder: str, name: str) -> Iterator[None]:
    """Appends what libraries print to `folder/logs/name.log` while the block runs.

    Does nothing if stderr is not a terminal, because a file or a supervisor should get everything, or if the log cannot
    be written.

    Args:
      folder: the run folder; empty to do nothing.
      name: name of the command.
    """
    if not folder or is_remote(folder) or sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    path = Path(folder) / LOGS_NAME / f"{name}.log"
    try:
        missing = [parent for parent in (path.parent, *path.parents[1:]) if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a", buffering=1, errors="backslashreplace")
        start = path.stat().st_size
        log.write(f"--- {name}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        header = path.stat().st_size
    except OSError:
        yield
        return
    try:
        with log, _redirect_stderr(log):
            yield
    finally:
        # Nothing was printed, or the command failed before there was a run.
        with suppress(OSError):
            if path.stat().st_size == header:
                os.truncate(path, start)
            if not path.stat().st_size:
                path.unlink()
            for parent in missing:
                parent.rmdir()


@contextmanager
def _redirect_stderr(log: TextIO) -> Iterator[None]:
    before, before_original = sys.stderr, sys.__stderr__
    handler = logging.get_absl_handler().python_handler
    terminal = os.fdopen(os.dup(STDERR), "w", buffering=1, errors="backslashreplace")
    saved = os.dup(STDERR)
    sys.stderr = sys.__stderr__ = terminal  # type: ignore[misc]
    handler.setStream(log)
    python_logging.captureWarnings(True)
    os.dup2(log.fileno(), STDERR)
    # Without a message on the terminal, a fatal error in C++ code would look like a silent end.
    faulthandler.enable(terminal)
    try:
        yield
    finally:
        os.dup2(saved, STDERR)
        os.close(saved)
        python_logging.captureWarnings(False)
        handler.setStream(before)
        sys.stderr, sys.__stderr__ = before, before_original  # type: ignore[misc]
        faulthandler.enable(before)
