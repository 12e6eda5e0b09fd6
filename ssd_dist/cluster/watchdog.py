"""Reports stack traces when training makes no progress, to show where a step or the input pipeline is stuck."""

import contextlib
import faulthandler
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self


class Watchdog:
    """Writes the stack traces of all threads to a file and to stderr each time `seconds` pass without progress.

    Use as a context manager. The time starts with the first call of `start` and stops on exit: the first step also
    traces and compiles the model, so it may take many times longer than the others.
    """

    def __init__(self, seconds: float, path: str) -> None:
        """Creates a watchdog.

        Args:
          seconds: how long training may make no progress.
          path: the file that reports are appended to; it is created with the first report.
        """
        self._seconds = min(seconds, threading.TIMEOUT_MAX / 2)
        self._path = Path(path)
        self._deadline = 0.0
        self._thread: threading.Thread | None = None
        self._exit = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.set()
        if self._thread is not None:
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def start(self) -> None:
        """Starts the time, or restarts it; call after each finished step."""
        self._restart()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def reset(self) -> None:
        """Restarts the time if it was started; call whenever training makes progress."""
        if self._thread is not None:
            self._restart()

    def _restart(self) -> None:
        self._deadline = time.monotonic() + self._seconds
        if sys.__stderr__ is not None:
            # Prints without the help of Python, for the case that a native function blocks the interpreter.
            faulthandler.dump_traceback_later(2 * self._seconds, repeat=True, file=sys.__stderr__)

    def _watch(self) -> None:
        while not self._exit.wait(max(self._deadline - time.monotonic(), 0.0)):
            if time.monotonic() >= self._deadline:
                self._report()
                self._restart()

    def _report(self) -> None:
        """Writes one report; a file that cannot be written does not keep it from stderr."""
        text = (
            f"{time.strftime('%Y-%m-%d %H:%M:%S')} no step has finished for {self._seconds:g} s; training resumes when "
            f"the step ends, and these stack traces, also in {self._path}, show where each thread waits:\n"
        )
        with contextlib.suppress(OSError), self._path.open("a") as file:
            file.write(text)
            file.flush()
            faulthandler.dump_traceback(file)
        if sys.__stderr__ is not None:
            with contextlib.suppress(OSError, ValueError):
                sys.__stderr__.write(text)
                sys.__stderr__.flush()
                faulthandler.dump_traceback(sys.__stderr__)
