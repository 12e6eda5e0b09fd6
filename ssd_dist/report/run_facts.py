"""What a run's folder says, however far the run came: rows of metrics.jsonl, the best model, config, environment.

Nothing here fails for a file that is missing or half written; `notes` say what is not there.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssd_dist.core.config import Config
from ssd_dist.core.errors import CheckpointError
from ssd_dist.core.manifest import Manifest
from ssd_dist.runs.checkpoints import read_best
from ssd_dist.runs.environment import read_environment
from ssd_dist.runs.run_folder import read_run_folder

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Rows:
    """Rows of one kind, ascending by step."""

    rows: list[dict[str, Any]]

    @property
    def steps(self) -> np.ndarray:
        """float64 [R]."""
        return np.array([row["step"] for row in self.rows], float)

    def column(self, name: str) -> np.ndarray:
        """float64 [R], NaN where a row has no such number."""
        return np.array([_as_number(row.get(name)) for row in self.rows])


@dataclass(frozen=True)
class RunFacts:
    """One run; `best` is the content of best.json, `total_steps` what its config asks for."""

    model_dir: str
    config: Config
    manifest: Manifest
    train: Rows
    evaluations: Rows
    best: dict[str, Any] | None
    environment: dict[str, Any]
    total_steps: int
    notes: list[str]

    @property
    def name(self) -> str:
        """The last parts of the path, enough to tell runs apart."""
        parts = Path(self.model_dir).resolve().parts
        return "/".join(parts[-2:]) if parts[-1] in ("run", "model") else parts[-1]

    @property
    def last_step(self) -> int:
        """The last step there is a row of."""
        return int(max([0.0, *self.train.steps, *self.evaluations.steps]))


def read_run(model_dir: str, overrides: list[str]) -> RunFacts:
    """Reads what there is.

    Raises:
      CheckpointError: if the folder is no run at all.
    """
    config, manifest = read_run_folder(model_dir, overrides)
    rows, broken = read_rows(Path(model_dir) / METRICS_NAME)
    train, evaluations = (Rows([row for row in rows if row.get("kind") == kind]) for kind in ("train", "eval"))
    notes = []
    if broken:
        notes.append(f"Damaged or half-written lines of {METRICS_NAME}, left out: {broken}.")
    if not train.rows:
        notes.append(
            f"No training report yet: {METRICS_NAME} has no rows; the first comes after train.log_every steps."
        )
    if not evaluations.rows:
        notes.append("No evaluation yet: see eval.every_epochs and eval.every_steps.")
    best = _read_best(model_dir, notes)
    facts = RunFacts(
        model_dir=model_dir,
        config=config,
        manifest=manifest,
        train=train,
        evaluations=evaluations,
        best=best,
        environment=read_environment(model_dir),
        total_steps=count_steps(config, manifest),
        notes=notes,
    )
    if rows and facts.last_step < facts.total_steps:
        notes.append(
            f"The run is at step {facts.last_step:,} of {facts.total_steps:,}: still training, or interrupted; "
            "start it again and it goes on."
        )
    return facts


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a metrics file by ascending step, and how many lines are no rows; none if there is no file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return [], 0
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return sorted(rows, key=lambda row: row["step"]), len(lines) - len(rows)


def count_steps(config: Config, manifest: Manifest) -> int:
    """The steps a run has in view; 0 if its data has no training split."""
    if config.train.steps or "train" not in manifest.splits:
        return config.train.steps
    shards = [shard.examples for view in manifest.splits["train"].views for shard in view.shards]
    number = len(manifest.splits["train"].views[0].shards)
    return config.train.epochs * (min(shards, default=0) * number // config.train.global_batch_size)


def _read_best(model_dir: str, notes: list[str]) -> dict[str, Any] | None:
    try:
        best = read_best(model_dir)
    except CheckpointError as error:
        notes.append(f"{error}.")
        return None
    if best is None:
        notes.append("No best model yet: there was no evaluation to choose one by.")
    elif not {"step", "value", "metric"} <= best.keys():
        notes.append("best/best.json lacks step, value or metric and is left out.")
        return None
    return best


def _as_number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
