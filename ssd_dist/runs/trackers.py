"""Where a run's numbers go besides metrics.jsonl: TensorBoard always, Weights & Biases and MLflow if asked for.

    tracking:
      also: [wandb]

A tracker needs two methods. One more service is one more class here and its name in `core/config.py`.
"""

import importlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tf_keras
from PIL import Image
from tensorboard.plugins.pr_curve import metadata as pr_curve

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config, flatten_config
from ssd_dist.core.errors import UsageError, first_line
from ssd_dist.core.manifest import Manifest
from ssd_dist.evaluation.detection_matching import Matches, match_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.gallery import draw_gallery
from ssd_dist.evaluation.voc_metrics import ClassCurve
from ssd_dist.runs.checkpoints import complete_checkpoints
from ssd_dist.runs.gfile_storage import explain_write_errors

PR_THRESHOLDS = 101
WANDB_RUN_NAME = "wandb_run_id"
MLFLOW_RUN_NAME = "mlflow_run_id"


class Tracker(Protocol):
    """What is told of a run."""

    def log_config(self, config: Config) -> None:
        """Called once, when the run starts or goes on."""

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Called for each report (`kind` train) and each evaluation (`kind` eval)."""


class TensorBoardTracker:
    """RUN/tensorboard."""

    def __init__(self, model_dir: str) -> None:
        self._writer = tf.summary.create_file_writer(str(Path(model_dir) / "tensorboard"))

    def log_config(self, config: Config) -> None:
        """The config as a text, indented so that it is shown as it is."""
        text = "".join(f"    {line}\n" for line in dump_config(config).splitlines())
        with self._writer.as_default(0):
            tf.summary.text("config", text)

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One scalar each, under `kind`."""
        with self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(f"{kind}/{name}", value)
        self._writer.flush()

    def log_evaluation(self, step: int, matches: Matches, sheet: Image.Image) -> None:
        """Precision and recall of each class, scores of hits and misses, pictures of detections beside the truth."""
        with self._writer.as_default(step):
            for name, curve in zip(matches.classes, matches.curves(), strict=True):
                data = pr_curve.create_summary_metadata(name, "", PR_THRESHOLDS)
                tf.summary.write(f"pr/{name}", tabulate_curve(curve), metadata=data)
            for name, verdict in (("hits", 1), ("misses", -1)):
                tf.summary.histogram(f"scores/{name}", matches.found.scores[matches.found.verdicts == verdict])
            small = sheet.convert("RGB")
            # The event file keeps one of every evaluation.
            small.thumbnail((640, 2000))
            tf.summary.image("detections", np.asarray(small)[None])
        self._writer.flush()

    def log_weights(self, step: int, model: tf_keras.Model) -> None:
        """The weights of each convolution; they are mirrored, so no other worker is asked."""
        with self._writer.as_default(step):
            for variable in model.trainable_variables:
                name, _, kind = variable.name.removesuffix(":0").rpartition("/")
                if kind.endswith("kernel"):
                    tf.summary.histogram(f"weights/{name}", variable.read_value())
        self._writer.flush()


def tabulate_curve(curve: ClassCurve) -> np.ndarray:
    """float32 [6, PR_THRESHOLDS], as TensorBoard wants it: hits, misses, 0, objects not found, precision, recall."""
    kept = np.searchsorted(-curve.scores, -np.linspace(0, 1, PR_THRESHOLDS), side="right")
    hits = np.append(0.0, curve.recall * max(curve.objects, 1))[kept]
    precision = np.append(1.0, curve.precision)[kept]
    lost = curve.objects - hits
    rows = (hits, kept - hits, np.zeros_like(hits), lost, precision, hits / max(curve.objects, 1))
    return np.stack(rows).astype(np.float32)


class WandbTracker:
    """Weights & Biases; the id of its run is kept in RUN, so that a continued run is the same there."""

    def __init__(self, model_dir: str, project: str) -> None:
        wandb = _import("wandb")
        path = Path(model_dir) / WANDB_RUN_NAME
        identity = path.read_text().strip() if path.exists() else secrets.token_hex(8)
        self._run = wandb.init(project=project, name=model_dir, id=identity, resume="allow", dir=model_dir)
        path.write_text(identity + "\n")

    def log_config(self, config: Config) -> None:
        """Every key of the config."""
        self._run.config.update(flatten_config(config), allow_val_change=True)

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One metric each, under `kind`."""
        # A resumed run repeats steps, which W&B takes only if the step is a metric like others.
        self._run.log({f"{kind}/{name}": value for name, value in values.items()} | {"step": step})


class MlflowTracker:
    """MLflow; the id of its run is kept in RUN, so that a continued run is the same there."""

    def __init__(self, model_dir: str, project: str) -> None:
        self._mlflow = _import("mlflow")
        self._mlflow.set_experiment(project)
        path = Path(model_dir) / MLFLOW_RUN_NAME
        known = path.read_text().strip() if path.exists() else None
        run = self._mlflow.start_run(run_id=known, run_name=None if known else model_dir)
        path.write_text(run.info.run_id + "\n")
        self._continued = known is not None

    def log_config(self, config: Config) -> None:
        """Every key of the config; MLflow refuses a parameter that changes, and a continued run has them."""
        if not self._continued:
            self._mlflow.log_params({key: str(value) for key, value in flatten_config(config).items()})

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One metric each, under `kind`."""
        self._mlflow.log_metrics({f"{kind}/{name}": value for name, value in values.items()}, step=step)


def create_trackers(config: Config, model_dir: str) -> list[Tracker]:
    """TensorBoard first, then what `tracking.also` names; the config is told to each. Opens the profiler's port.

    A run that goes on does so without a service that is away.

    Raises:
      UsageError: naming a package that is not installed, or a service that a new run cannot have.
    """
    others: dict[str, Any] = {"wandb": WandbTracker, "mlflow": MlflowTracker}
    with explain_write_errors(f"{model_dir}/tensorboard"):
        trackers: list[Tracker] = [TensorBoardTracker(model_dir)]
        trackers[0].log_config(config)
    for name in config.tracking.also:
        try:
            tracker = others[name](model_dir, config.tracking.project)
            tracker.log_config(config)
        except UsageError:
            raise
        except Exception as error:  # each service has errors of its own
            text = f"tracking.also: {name} does not start ({type(error).__name__}: {first_line(error)})"
            if not complete_checkpoints(os.path.join(model_dir, "checkpoints")):
                raise UsageError(f"{text}; log in to it, or take it out of the list") from None
            print(f"warning: {text}; the run goes on without it", file=sys.stderr, flush=True)
        else:
            trackers.append(tracker)
    if config.tracking.profiler_port:
        tf.profiler.experimental.server.start(config.tracking.profiler_port)
    return trackers


def show_evaluations(
    trackers: Sequence[Tracker],
    config: Config,
    manifest: Manifest,
    split_name: str,
    truths: Sequence[GroundTruth],
    model: tf_keras.Model,
) -> Callable[[int, Sequence[Detections]], None]:
    """What shows TensorBoard an evaluation, given its step and detections, and the weights it was of."""
    classes = manifest.classes

    def show(step: int, detections: Sequence[Detections]) -> None:
        matches = match_detections(truths, detections, classes)
        sheet = draw_gallery(config, manifest.splits[split_name], detections, classes, f"step {step}", split_name)
        for tracker in trackers:
            if isinstance(tracker, TensorBoardTracker):
                tracker.log_evaluation(step, matches, sheet)
                tracker.log_weights(step, model)

    return show


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"tracking.also: {name} is not installed; install it, or take it out of the list") from None
