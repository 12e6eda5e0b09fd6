"""Shows the progress of a run on the console: a progress bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import IO, Any, Self, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ssd_dist.core.printable import make_printable


class TrainingProgress:
    """Shows step, loss, learning rate, images per second and time left; prints only on the chief."""

    def __init__(self, start_step: int, total_steps: int, is_chief: bool) -> None:
        # The original stdout: `sys.stdout` is redirected during training, to discard orbit's own lines.
        stdout = cast("IO[str]", _LenientFile(sys.__stdout__)) if sys.__stdout__ is not None else None
        self._console = Console(file=stdout, highlight=False, soft_wrap=True, quiet=not is_chief)
        self._total = total_steps
        self._first = start_step
        self._started = time.perf_counter()
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total_steps, completed=start_step, status="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, step: int, values: dict[str, float]) -> None:
        """Shows one training report."""
        status = (
            f"loss {values['loss']:.3f}  lr {values['lr']:.2e}  {values['images_per_second']:.1f} img/s  "
            f"left {self._format_time_left(step)}"
        )
        self._bar.update(self._task, completed=step, status=status)
        if not self._console.is_terminal:
            self._console.print(f"step {step}/{self._total}  {status}")

    def print_line(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(make_printable(line), markup=False, emoji=False)

    def _format_time_left(self, step: int) -> str:
        per_step = (time.perf_counter() - self._started) / max(step - self._first, 1)
        seconds = int(per_step * (self._total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class _LenientFile:
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
