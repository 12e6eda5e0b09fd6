"""Prints stack traces when training makes no progress, to show where a step or the input pipeline is stuck."""

import faulthandler
import sys
from types import TracebackType
from typing import Self


class Watchdog:
    """Prints the stack traces of all threads to stderr each time `seconds` pass without a call of `reset`.

    Use as a context manager; the time starts on entry and stops on exit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        self.reset()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()

    def reset(self) -> None:
        """Restarts the time; call whenever training makes progress."""
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(self._seconds, repeat=True, file=sys.__stderr__)
