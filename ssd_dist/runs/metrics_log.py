"""Writes `metrics.jsonl` of a run, one row per report and evaluation, and sends the numbers to the trackers."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssd_dist.core.errors import first_line
from ssd_dist.core.printable import print_warning
from ssd_dist.core.storage import write_text
from ssd_dist.runs.gfile_storage import explain_write_errors, retry
from ssd_dist.runs.trackers import Tracker


class MetricsLog:
    """Appends rows to RUN/metrics.jsonl and passes their numbers to the trackers; exists only on the chief."""

    def __init__(
        self,
        model_dir: str,
        step: int,
        evaluated: int,
        trackers: Sequence[Tracker] = (),
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens the log and removes the rows that the run writes again.

        Args:
          model_dir: the run folder.
          step: the step at which the run resumes.
          evaluated: the last step that was evaluated.
          trackers: receive the numbers of each row.
          before_write: called before each row; raises an error to prevent it.
        """
        self._before_write = before_write
        self._path = Path(model_dir) / "metrics.jsonl"
        self._trackers = tuple(trackers)
        self._failed: set[str] = set()
        self._evaluated: list[int] = []
        with explain_write_errors(str(self._path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.drop_rows_after(step, evaluated)

    def check_folder(self) -> None:
        """Raises an error if the run folder must not be written to, because it is no longer that of this run."""
        self._before_write()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Appends one row.

        Args:
          kind: "train" or "eval".
          step: the step of the report or evaluation.
          values: the row's other values. NaN and infinity, which JSON does not have, become null.

        Raises:
          CheckpointError: if the row cannot be written.
          RestartError: if the storage does not answer.
        """
        row = {"kind": kind, "step": step, **{name: _finite(value) for name, value in values.items()}}
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        line = json.dumps(row, allow_nan=False) + "\n"
        what = str(self._path)
        with explain_write_errors(what):
            self._before_write()
            size = retry(lambda: self._path.stat().st_size if self._path.exists() else 0, what)
            retry(lambda: _append(self._path, line, size), what)
        if kind == "eval":
            self._evaluated.append(step)
        for tracker in self._trackers:
            self._log_to_tracker(tracker, kind, step, numbers)

    def _log_to_tracker(self, tracker: Tracker, kind: str, step: int, numbers: dict[str, float]) -> None:
        """Passes numbers to a tracker; an error does not end the run, and only its first one is reported."""
        try:
            tracker.log_scalars(kind, step, numbers)
        except Exception as error:  # each service has its own error classes
            name = type(tracker).__name__.removesuffix("Tracker")
            if name not in self._failed:
                print_warning(f"{name} has no values of step {step}: {first_line(error)}; metrics.jsonl has them")
            self._failed.add(name)

    def drop_rows_after(self, step: int, evaluated: int) -> None:
        """Removes rows that a resumed run writes again: reports after `step`, evaluations after step `evaluated`."""
        self._evaluated = []
        if not self._path.exists():
            return
        last = {"train": step, "eval": evaluated}
        lines = self._path.read_text(errors="replace").splitlines()
        rows = [row for line in lines if (row := _parse(line)) is not None]
        rows = [row for row in rows if row["step"] <= last[row["kind"]]]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._evaluated = [row["step"] for row in rows if row["kind"] == "eval"]

    def count_evaluations_after(self, step: int) -> int:
        """Returns the number of evaluations of models later than `step`."""
        return sum(evaluated > step for evaluated in self._evaluated)


def _append(path: Path, line: str, size: int) -> None:
    """Appends a line to a file of `size` bytes; removes what an earlier failed attempt may have appended."""
    with path.open("a") as file:
        file.truncate(size)
        file.write(line)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(line: str) -> dict[str, Any] | None:
    """Returns the row of a line; None if the line is not a row, for example because it was cut off."""
    try:
        row = json.loads(line)
        return row if row["kind"] in ("train", "eval") and isinstance(row["step"], int) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
