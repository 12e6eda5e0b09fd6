"""`metrics.jsonl` and the TensorBoard files of a run: one row for each report and each evaluation."""

import json
from pathlib import Path
from typing import Any

import tensorflow as tf


class MetricsLog:
    """Appends rows to RUN/metrics.jsonl and scalars to RUN/tensorboard; only the chief has one."""

    def __init__(self, model_dir: str, start_step: int) -> None:
        self._path = Path(model_dir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_rows_after(start_step)
        self._tensorboard = tf.summary.create_file_writer(str(Path(model_dir) / "tensorboard"))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds one row of `kind` train or eval."""
        row = {"kind": kind, "step": step, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        with self._tensorboard.as_default(step):
            for name, value in values.items():
                if isinstance(value, int | float):
                    tf.summary.scalar(f"{kind}/{name}", value)
        self._tensorboard.flush()

    def _drop_rows_after(self, step: int) -> None:
        """A resumed run repeats the steps after its checkpoint; their rows would be there twice."""
        if not self._path.exists():
            return
        rows = [json.loads(line) for line in self._path.read_text().splitlines() if line.endswith("}")]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
        partial.rename(self._path)
