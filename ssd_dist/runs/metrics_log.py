"""`metrics.jsonl` of a run, one row for each report and each evaluation; the numbers go to the trackers as well."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_dist.core.errors import first_line
from ssd_dist.runs.gfile_storage import explain_write_errors, retry
from ssd_dist.runs.trackers import Tracker


class MetricsLog:
    """Appends rows to RUN/metrics.jsonl and tells the trackers; only the chief has one."""

    def __init__(self, model_dir: str, step: int, evaluated: int, trackers: Sequence[Tracker] = ()) -> None:
        self._path = Path(model_dir) / "metrics.jsonl"
        self._trackers = tuple(trackers)
        self._failed: set[str] = set()
        with explain_write_errors(str(self._path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.drop_rows_after(step, evaluated)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds one row of `kind` train or eval; JSON has no NaN, which becomes null.

        Raises:
          CheckpointError: if it cannot be written.
          RestartError: if the storage is away.
        """
        row = {"kind": kind, "step": step, **{name: _finite(value) for name, value in values.items()}}
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        line = json.dumps(row, allow_nan=False) + "\n"
        what = str(self._path)
        with explain_write_errors(what):
            size = retry(lambda: self._path.stat().st_size if self._path.exists() else 0, what)
            retry(lambda: _append(self._path, line, size), what)
        for tracker in self._trackers:
            self._tell(tracker, kind, step, numbers)

    def _tell(self, tracker: Tracker, kind: str, step: int, numbers: dict[str, float]) -> None:
        """A tracker that fails is not worth the run, and one warning: the row is in the file."""
        try:
            tracker.log_scalars(kind, step, numbers)
        except Exception as error:  # each service has errors of its own
            name = type(tracker).__name__.removesuffix("Tracker")
            if name not in self._failed:
                print(f"warning: {name} was not told of step {step}: {first_line(error)}", file=sys.stderr, flush=True)
            self._failed.add(name)

    def drop_rows_after(self, step: int, evaluated: int) -> None:
        """A run that goes on from a checkpoint repeats the steps after it, and evaluations after step `evaluated`.

        Their rows would be there twice.
        """
        if not self._path.exists():
            return
        last = {"train": step, "eval": evaluated}
        lines = self._path.read_text(errors="replace").splitlines()
        rows = [row for line in lines if (row := _parse(line)) is not None]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= last[row["kind"]]))
        partial.rename(self._path)


def _append(path: Path, line: str, size: int) -> None:
    """Adds a line to a file of `size` bytes; an attempt before this one may have left a part of it."""
    with path.open("a") as file:
        file.truncate(size)
        file.write(line)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(line: str) -> dict[str, Any] | None:
    """The row of a line; None for what is none, as one that was cut short, which may well end in a brace."""
    try:
        row = json.loads(line)
        return row if row["kind"] in ("train", "eval") and isinstance(row["step"], int) else None
    except (ValueError, TypeError, KeyError):
        return None
