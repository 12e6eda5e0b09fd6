"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class TrainingProgress:
    """Shows step, loss, learning rate, images per second and time left; silent on workers other than the chief."""

    def __init__(self, start_step: int, total_steps: int, is_chief: bool) -> None:
        # The real stdout: orbit's own lines are sent elsewhere while training runs.
        stdout = sys.__stdout__ and _LenientFile(sys.__stdout__)
        self._console = Console(file=stdout, highlight=False, soft_wrap=True, quiet=not is_chief)
        self._total = total_steps
        self._first = self._latest = start_step
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
        self._latest = step
        status = (
            f"loss {values['loss']:.3f}  lr {values['lr']:.2e}  {values['images_per_second']:.1f} img/s  "
            f"left {self._time_left(step)}"
        )
        self._bar.update(self._task, completed=step, status=status)
        if not self._console.is_terminal:
            self._console.print(f"step {step}/{self._total}  {status}")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(line, markup=False)

    def _time_left(self, step: int) -> str:
        per_step = (time.perf_counter() - self._started) / max(step - self._first, 1)
        seconds = int(per_step * (self._total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class _LenientFile:
    """A file that may fail: what nobody reads any more, or has no room, must not end a run."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Writes; after the first failure into nothing."""
        try:
            self._file.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flushes; after the first failure into nothing."""
        try:
            self._file.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        # Whoever else prints there would fail as well, and so would Python at its end with what is buffered.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._file.fileno())
        os.close(nowhere)
