"""Shows the progress of a run on the console: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from typing import IO, cast

from rich.console import Console

from ssd_dist.core.lenient_file import LenientFile
from ssd_dist.core.printable import make_printable
from ssd_dist.core.stage_line import SILENT, StageLine

TRAINING = "train"


class TrainingProgress:
    """Shows step, loss, metric of the last evaluation, images per second and time left; prints only on the chief."""

    def __init__(self, start_step: int, total_steps: int, is_chief: bool, stages: StageLine = SILENT) -> None:
        """Creates the progress of a run.

        Args:
          start_step: the step at which this process starts.
          total_steps: the last step of the run.
          is_chief: whether this worker prints.
          stages: the live line of the command.
        """
        # The original stdout: `sys.stdout` is redirected during training, to discard orbit's own lines.
        stdout = cast("IO[str]", LenientFile(sys.__stdout__)) if sys.__stdout__ is not None else None
        self._console = Console(file=stdout, highlight=False, soft_wrap=True, quiet=not is_chief)
        self._stages = stages
        self._stage = ""
        self._total = total_steps
        self._first = start_step
        self._started = time.perf_counter()
        self._is_timed = False
        self._loss = self._metric = ""

    def report(self, step: int, values: dict[str, float]) -> None:
        """Shows one training report."""
        self._loss = f"loss {values['loss']:.3f}  "
        if self._stages.is_live:
            self.show_step(step)
            return
        status = (
            f"loss {values['loss']:.3f}  lr {values['lr']:.2e}  {values['images_per_second']:.1f} img/s  "
            f"left {self._format_time_left(step)}"
        )
        self._console.print(f"step {step}/{self._total}  {status}")

    def report_metric(self, name: str, value: float | None) -> None:
        """Shows the metric of an evaluation beside the loss, until the next evaluation."""
        self._metric = "" if value is None else f"{name.rpartition('/')[2]} {value:.3f}  "

    def show_step(self, step: int) -> None:
        """Shows how many steps are finished."""
        if not self._is_timed:
            # The first steps include the tracing of the graph, so the time left is estimated from the others.
            self._first, self._started, self._is_timed = step, time.perf_counter(), True
        if self._stage != TRAINING:
            self.show_stage(TRAINING, self._total)
        self._stages.update(step, f"{self._loss}{self._metric}left {self._format_time_left(step)}")

    def show_stage(self, title: str, total: int | None = None) -> None:
        """Shows what the run does other than training steps."""
        self._stage = title
        self._stages.show(title, total)

    def advance(self) -> None:
        """Counts one more part of the current stage as done."""
        self._stages.advance()

    def print_line(self, line: str) -> None:
        """Prints a line above the live line."""
        if self._stages.is_live:
            self._stages.print_above(line)
        else:
            self._console.print(make_printable(line), markup=False, emoji=False)

    def _format_time_left(self, step: int) -> str:
        if self._is_timed and step == self._first:
            return "-:--:--"
        per_step = (time.perf_counter() - self._started) / max(step - self._first, 1)
        seconds = int(per_step * (self._total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
