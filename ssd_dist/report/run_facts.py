"""Reads the facts about a run from its folder: rows of metrics.jsonl, the best model, config and environment.

A missing or partly written file is not an error, since a run may be unfinished; `notes` report what is missing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssd_dist.core.config import Config, TrainConfig
from ssd_dist.core.errors import CheckpointError
from ssd_dist.core.manifest import TRAIN_SPLIT, Manifest
from ssd_dist.runs.checkpoints import read_best
from ssd_dist.runs.environment import read_environment
from ssd_dist.runs.run_folder import OTHER_BEST_NAME, read_run_folder

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Rows:
    """Rows of metrics.jsonl of one kind, in ascending order of step."""

    rows: list[dict[str, Any]]

    @property
    def steps(self) -> np.ndarray:
        """float64 [R]: the step of each row."""
        return np.array([row["step"] for row in self.rows], float)

    def column(self, name: str) -> np.ndarray:
        """Returns the values of a key as float64 [R], with NaN where a row has no number."""
        return np.array([_as_number(row.get(name)) for row in self.rows])


@dataclass(frozen=True)
class RunFacts:
    """Facts about one run.

    Attributes:
      model_dir: folder of the run.
      config: its config.
      manifest: manifest of the data it was trained on.
      train: training reports.
      evaluations: evaluations during training.
      best: content of best.json, None if there is no best model.
      environment: content of environment.json, empty if the file is missing.
      total_steps: steps that the config requests.
      notes: sentences about missing or damaged files.
    """

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
        """A short name for comparisons: the last part of the path, or two if the last is `run` or `model`."""
        parts = Path(self.model_dir).resolve().parts
        return "/".join(parts[-2:]) if parts[-1] in ("run", "model") else parts[-1]

    @property
    def last_step(self) -> int:
        """The highest step in metrics.jsonl, 0 if there is none."""
        return int(max([0.0, *self.train.steps, *self.evaluations.steps]))


def read_run(model_dir: str, overrides: list[str]) -> RunFacts:
    """Reads the facts about a run, and notes what is missing.

    Raises:
      CheckpointError: if the folder is not a run.
    """
    config, manifest = read_run_folder(model_dir, overrides)
    rows, damaged = read_rows(Path(model_dir) / METRICS_NAME)
    train, evaluations = (Rows([row for row in rows if row.get("kind") == kind]) for kind in ("train", "eval"))
    notes = []
    if damaged:
        notes.append(f"Damaged or incomplete lines in {METRICS_NAME}: {damaged}. They were ignored.")
    if not train.rows:
        notes.append(
            f"No training report yet: {METRICS_NAME} has no rows. The first row follows after train.log_every steps."
        )
    if not evaluations.rows:
        notes.append("No evaluation yet: eval.every_epochs and eval.every_steps set when the run is evaluated.")
    best = _read_best(model_dir, notes)
    facts = RunFacts(
        model_dir=model_dir,
        config=config,
        manifest=manifest,
        train=train,
        evaluations=evaluations,
        best=best,
        environment=read_environment(model_dir),
        total_steps=count_steps(config.train, manifest),
        notes=notes,
    )
    if _stopped_early(facts):
        notes.append(
            f"Training ended early at step {facts.last_step:,} of {facts.total_steps:,}: {config.train.early_stopping} "
            "evaluations in a row did not improve the best metric (train.early_stopping)."
        )
    elif rows and facts.last_step < facts.total_steps:
        notes.append(
            f"The run has reached step {facts.last_step:,} of {facts.total_steps:,}: it is still training, or it was "
            "interrupted. To resume it, start the same command again."
        )
    return facts


def _stopped_early(facts: RunFacts) -> bool:
    if facts.best is None and (Path(facts.model_dir) / OTHER_BEST_NAME).exists():
        # As in training, evaluations on data that was replaced do not count.
        return False
    patience, best_step = facts.config.train.early_stopping, 0 if facts.best is None else facts.best["step"]
    stale = sum(step > best_step for step in facts.evaluations.steps)
    return 0 < patience <= stale and facts.last_step < facts.total_steps


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Reads a metrics file.

    Returns:
      The rows in ascending order of step, and the number of lines that are not rows; no rows if the file is missing.
    """
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


def count_steps(config: TrainConfig, manifest: Manifest) -> int:
    """Returns the number of steps that a config requests; 0 if its data has no training split."""
    if config.steps or TRAIN_SPLIT not in manifest.splits:
        return config.steps
    views = manifest.splits[TRAIN_SPLIT].views
    smallest = min((shard.examples for view in views for shard in view.shards), default=0)
    return config.epochs * (smallest * len(views[0].shards) // config.global_batch_size)


def _read_best(model_dir: str, notes: list[str]) -> dict[str, Any] | None:
    try:
        best = read_best(model_dir)
    except CheckpointError as error:
        notes.append(f"{error}.")
        return None
    if best is None:
        notes.append("No best model yet: it is saved after the first evaluation.")
    elif not {"step", "value", "metric"} <= best.keys():
        notes.append("best/best.json has no step, value or metric and was ignored.")
        return None
    return best


def _as_number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
