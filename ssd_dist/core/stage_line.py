"""The live line of a command on a terminal: what the command does now, how much of it is done, and for how long.

    with show_stages("start TensorFlow", RUN, "export") as stages:      a moving bar: the end is not known
        ...
        for image in stages.track("run the export, images", images):    3/40

Output that is not a terminal gets no live line. Functions that take minutes have an argument `stages`; its default
`SILENT` shows nothing.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Self, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ssd_dist.core.lenient_file import LenientFile
from ssd_dist.core.library_output import keep_library_output
from ssd_dist.core.printable import make_printable

BAR_WIDTH = 12
T = TypeVar("T")


class StageLine:
    """One line that shows the current stage; a context manager that removes the line at the end."""

    def __init__(self, file: IO[str] | None = None, title: str = "") -> None:
        """Creates the line.

        Args:
          file: the terminal; None to show nothing.
          title: the first stage.
        """
        self._title = title
        self._done = 0
        self._total: int | None = None
        self._progress: Progress | None = None
        if file is None:
            return
        self._progress = Progress(
            SpinnerColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(BAR_WIDTH),
            TextColumn("{task.fields[status]}", markup=False),
            console=_Terminal(file=cast("IO[str]", LenientFile(file)), highlight=False, soft_wrap=True),
            transient=True,
            # If only stderr is a terminal, what the command prints to stdout must stay there.
            redirect_stdout=sys.stdout is not None and file.fileno() == sys.stdout.fileno(),
        )
        self._task = self._progress.add_task(make_printable(title), total=None, status="")

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal that shows the line."""
        return self._progress is not None

    def show(self, title: str, total: int | None = None) -> None:
        """Begins a stage; shows how much of `total` is done, or a moving bar if `total` is None."""
        self._title, self._total = title, total
        if self._progress is not None:
            # The end of the stage before it would stop the clock.
            self._progress.tasks[0].finished_time = None
        self.update(0)

    def update(self, done: int, status: str = "") -> None:
        """Sets how much of the current stage is done, and the text beside the bar."""
        self._done = done
        if self._progress is not None:
            count = "" if self._total is None else f"{done}/{self._total}  "
            # `update` does not take None as a total.
            self._progress.tasks[0].total = self._total
            text = make_printable(count + status)
            self._progress.update(self._task, completed=done, description=make_printable(self._title), status=text)

    def advance(self) -> None:
        """Counts one more part of the current stage as done."""
        self.update(self._done + 1)

    def track(self, title: str, items: Sequence[T]) -> Iterator[T]:
        """Yields items and shows how many are done, as a stage of its own."""
        self.show(title, len(items))
        for item in items:
            yield item
            self.advance()

    def print_above(self, text: str) -> None:
        """Prints a line above the live line."""
        if self._progress is not None:
            self._progress.console.print(make_printable(text), markup=False, emoji=False)


SILENT = StageLine()


@contextmanager
def show_stages(title: str, folder: str = "", name: str = "") -> Iterator[StageLine]:
    """Yields the live line of a command, on stdout or else on stderr, whichever is a terminal.

    Args:
      title: the first stage.
      folder: what libraries print goes to files in `folder/logs`; empty to leave it on the terminal.
      name: the name of the command, for the file.
    """
    if os.environ.get("TF_CONFIG", "").strip():
        # The outputs of several workers are mixed, so each prints plain lines.
        yield SILENT
        return
    with keep_library_output(folder, name):
        streams = (sys.stdout, sys.stderr)
        terminal = next((stream for stream in streams if stream is not None and stream.isatty()), None)
        with StageLine(None if os.environ.get("TERM") == "dumb" else terminal, title) as stages:
            yield stages


class _Terminal(Console):
    """A console that leaves the cursor visible: a process that is killed could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        """Does nothing."""
        return False
