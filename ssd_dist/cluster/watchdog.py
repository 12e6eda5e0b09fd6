"""A step or an input pipeline that is stuck says where: after a while without progress all stacks are printed."""

import faulthandler
import sys
from types import TracebackType
from typing import Self


class Watchdog:
    """Prints the stacks of all threads on stderr, once per `seconds` without `progress()`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        self.progress()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()

    def progress(self) -> None:
        """Starts the wait anew."""
        faulthandler.dump_traceback_later(self._seconds, repeat=True, file=sys.__stderr__)
