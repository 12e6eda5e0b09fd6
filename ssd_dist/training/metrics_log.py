"""`metrics.jsonl` of a run, one row for each report and each evaluation; the numbers go to the trackers as well."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_dist.training.trackers import Tracker


class MetricsLog:
    """Appends rows to RUN/metrics.jsonl and tells the trackers; only the chief has one."""

    def __init__(self, model_dir: str, start_step: int, trackers: Sequence[Tracker] = ()) -> None:
        self._path = Path(model_dir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_rows_after(start_step)
        self._trackers = tuple(trackers)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds one row of `kind` train or eval."""
        row = {"kind": kind, "step": step, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log_scalars(kind, step, numbers)

    def _drop_rows_after(self, step: int) -> None:
        """A resumed run repeats the steps after its checkpoint; their rows would be there twice."""
        if not self._path.exists():
            return
        rows = [row for line in self._path.read_text().splitlines() if (row := _parse(line)) is not None]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
        partial.rename(self._path)


def _parse(line: str) -> dict[str, Any] | None:
    """The row of a line; None for one that was cut short, which may well end in a brace."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None
