"""Sends a run's metrics to TensorBoard, and to Weights & Biases and MLflow if the config asks for them.

    tracking:
      also: [wandb]

A tracker has two methods. To add a service, write one class here and add its name to `TrackingConfig` in
`core/config.py`.
"""

import importlib
import os
import secrets
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
from ssd_dist.core.printable import print_warning
from ssd_dist.evaluation.detection_matching import Matches, match_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.gallery import draw_gallery
from ssd_dist.evaluation.voc_metrics import ClassCurve
from ssd_dist.runs.checkpoints import complete_checkpoints
from ssd_dist.runs.gfile_storage import explain_write_errors
from ssd_dist.runs.run_folder import MLFLOW_RUN_NAME, WANDB_RUN_NAME

PR_THRESHOLDS = 101


class Tracker(Protocol):
    """Receives the config and the metrics of a run."""

    def log_config(self, config: Config) -> None:
        """Logs the config; called once when the run starts or resumes."""

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Logs training metrics (`kind` "train", every `log_every` steps) or evaluation metrics (`kind` "eval")."""


class TensorBoardTracker:
    """Writes event files to RUN/tensorboard."""

    def __init__(self, model_dir: str) -> None:
        self._writer = tf.summary.create_file_writer(str(Path(model_dir) / "tensorboard"))

    def log_config(self, config: Config) -> None:
        """Logs the config as YAML text; the indentation makes TensorBoard show it unformatted."""
        text = "".join(f"    {line}\n" for line in dump_config(config).splitlines())
        with self._writer.as_default(0):
            tf.summary.text("config", text)

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Logs one scalar per value, with the prefix `kind`."""
        with self._writer.as_default(np.int64(step)):
            for name, value in values.items():
                # TensorFlow keeps a copy of every Python number that it converts, for the life of the process.
                tf.summary.scalar(f"{kind}/{name}", np.float32(value))
        self._writer.flush()

    def log_evaluation(self, step: int, matches: Matches, gallery: Image.Image) -> None:
        """Logs the precision-recall curve of each class, the scores of true and false positives, and an image.

        Args:
          step: step of the evaluated model.
          matches: the detections matched to the ground truth.
          gallery: images with their detections and ground truth.
        """
        with self._writer.as_default(np.int64(step)):
            for name, curve in zip(matches.classes, matches.curves(), strict=True):
                data = pr_curve.create_summary_metadata(name, "", PR_THRESHOLDS)
                tf.summary.write(f"pr/{name}", tabulate_curve(curve), metadata=data)
            table = matches.detections
            for name, outcome in (("true_positives", 1), ("false_positives", -1)):
                tf.summary.histogram(f"scores/{name}", table.scores[table.outcomes == outcome])
            small = gallery.convert("RGB")
            # The event file keeps the image of every evaluation.
            small.thumbnail((640, 2000))
            tf.summary.image("detections", np.asarray(small)[None])
        self._writer.flush()

    def log_weights(self, step: int, model: tf_keras.Model) -> None:
        """Logs a histogram of each convolution's weights; reading mirrored variables needs no communication."""
        with self._writer.as_default(np.int64(step)):
            for variable in model.trainable_variables:
                name, _, kind = variable.name.removesuffix(":0").rpartition("/")
                if kind.endswith("kernel"):
                    tf.summary.histogram(f"weights/{name}", variable.read_value())
        self._writer.flush()


def tabulate_curve(curve: ClassCurve) -> np.ndarray:
    """Samples a precision-recall curve at equidistant score thresholds, in the layout of TensorBoard's plugin.

    Returns:
      float32 [6, PR_THRESHOLDS]: true positives, false positives, true negatives (always 0), false negatives,
      precision, recall.
    """
    kept = np.searchsorted(-curve.scores, -np.linspace(0, 1, PR_THRESHOLDS), side="right")
    true_positives = np.append(0.0, curve.recall * max(curve.objects, 1))[kept]
    precision = np.append(1.0, curve.precision)[kept]
    recall = true_positives / max(curve.objects, 1)
    true_negatives = np.zeros_like(true_positives)
    rows = (
        true_positives, kept - true_positives, true_negatives, curve.objects - true_positives, precision, recall
    )  # fmt: skip
    return np.stack(rows).astype(np.float32)


class WandbTracker:
    """Logs to Weights & Biases; the id of its run is stored in RUN, so that a resumed run continues it."""

    def __init__(self, model_dir: str, project: str) -> None:
        wandb = _import("wandb")
        path = Path(model_dir) / WANDB_RUN_NAME
        run_id = path.read_text().strip() if path.exists() else secrets.token_hex(8)
        self._run = wandb.init(project=project, name=model_dir, id=run_id, resume="allow", dir=model_dir)
        path.write_text(run_id + "\n")

    def log_config(self, config: Config) -> None:
        """Logs every key of the config."""
        self._run.config.update(flatten_config(config), allow_val_change=True)

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Logs one metric per value, with the prefix `kind`."""
        # A resumed run repeats steps. W&B refuses a repeated step number, but accepts it as a metric.
        self._run.log({f"{kind}/{name}": value for name, value in values.items()} | {"step": step})


class MlflowTracker:
    """Logs to MLflow; the id of its run is stored in RUN, so that a resumed run continues it."""

    def __init__(self, model_dir: str, project: str) -> None:
        self._mlflow = _import("mlflow")
        self._mlflow.set_experiment(project)
        path = Path(model_dir) / MLFLOW_RUN_NAME
        run_id = path.read_text().strip() if path.exists() else None
        run = self._mlflow.start_run(run_id=run_id, run_name=None if run_id else model_dir)
        path.write_text(run.info.run_id + "\n")
        self._resumed = run_id is not None

    def log_config(self, config: Config) -> None:
        """Logs every key of the config of a new run; a resumed run has them, and MLflow refuses to change them."""
        if not self._resumed:
            self._mlflow.log_params({key: str(value) for key, value in flatten_config(config).items()})

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Logs one metric per value, with the prefix `kind`."""
        self._mlflow.log_metrics({f"{kind}/{name}": value for name, value in values.items()}, step=step)


def create_trackers(config: Config, model_dir: str) -> list[Tracker]:
    """Creates TensorBoard's tracker and the trackers in `tracking.also`, logs the config, starts the profiler.

    If a service is not available, a resumed run continues without it.

    Raises:
      UsageError: if a package is not installed, or a service is not available to a new run.
    """
    services: dict[str, Any] = {"wandb": WandbTracker, "mlflow": MlflowTracker}
    with explain_write_errors(f"{model_dir}/tensorboard"):
        trackers: list[Tracker] = [TensorBoardTracker(model_dir)]
        trackers[0].log_config(config)
    for name in config.tracking.also:
        try:
            tracker = services[name](model_dir, config.tracking.project)
            tracker.log_config(config)
        except UsageError:
            raise
        except Exception as error:  # each service has its own error classes
            text = f"tracking.also: {name} does not start ({type(error).__name__}: {first_line(error)})"
            if not complete_checkpoints(os.path.join(model_dir, "checkpoints")):
                raise UsageError(f"{text}; log in to it, or remove it from the list") from None
            print_warning(f"{text}; the run continues without it")
        else:
            trackers.append(tracker)
    if config.tracking.profiler_port:
        tf.profiler.experimental.server.start(config.tracking.profiler_port)
    return trackers


def create_detection_logger(
    trackers: Sequence[Tracker],
    config: Config,
    manifest: Manifest,
    split_name: str,
    ground_truth: Sequence[GroundTruth],
    model: tf_keras.Model,
) -> Callable[[int, Sequence[Detections]], None]:
    """Creates a function that logs an evaluation and the model's weights to TensorBoard.

    Args:
      trackers: all trackers of the run; only TensorBoard's is used.
      config: the config of the run.
      manifest: the manifest of the data.
      split_name: the split that is evaluated.
      ground_truth: the annotations of all images of the split.
      model: the evaluated model.

    Returns:
      A function of the step and the detections on all images of the split.
    """
    classes = manifest.classes

    def log_detections(step: int, detections: Sequence[Detections]) -> None:
        matches = match_detections(ground_truth, detections, classes)
        split = manifest.splits[split_name]
        gallery = draw_gallery(config.data, split, detections, classes, f"step {step}", split_name)
        for tracker in trackers:
            if isinstance(tracker, TensorBoardTracker):
                tracker.log_evaluation(step, matches, gallery)
                tracker.log_weights(step, model)

    return log_detections


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"tracking.also: {name} is not installed; install it, or remove it from the list") from None
