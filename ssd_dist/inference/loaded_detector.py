"""A trained detector, ready to detect: loaded from a run here, and from an export by `export.exported_detector`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ssd_dist.core.config import EvalConfig
from ssd_dist.evaluation.detections import Detections, remove_padding
from ssd_dist.inference.trained_model import load_trained_model
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import DetectionBatch, create_anchor_tensor, detect
from ssd_dist.runs.run_folder import read_run_folder


@dataclass(frozen=True)
class LoadedDetector:
    """A trained detector, loaded from a run or an export.

    Attributes:
      size: S, the input size in pixels.
      batch_size: images per batch.
      classes: class names; the first one has label 1.
      detect: maps images, uint8 [N, S, S, 3], to detections.
      nms: the settings of NMS, which also merge the detections of tiles.
    """

    size: int
    batch_size: int
    classes: tuple[str, ...]
    detect: Callable[[tf.Tensor], DetectionBatch]
    nms: EvalConfig


def open_run(model_dir: str, checkpoint: str, overrides: Sequence[str]) -> LoadedDetector:
    """Loads the detector of a run.

    Args:
      model_dir: the run folder.
      checkpoint: "best", "last" or the path of a checkpoint.
      overrides: config keys to change, as `a.b=c`.

    Raises:
      CheckpointError: if the run or the checkpoint does not exist.
    """
    config, manifest = read_run_folder(model_dir, overrides)
    model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    anchors = create_anchor_tensor(config.anchors, config.model.input_size)

    @tf.function(reduce_retracing=True)
    def run_batch(images: tf.Tensor) -> DetectionBatch:
        return detect(model(normalize_image(images), training=False), anchors, config.anchors, config.eval)

    size, batch_size = config.model.input_size, config.eval.batch_size
    return LoadedDetector(size, batch_size, tuple(manifest.classes), run_batch, config.eval)


def detect_batch(detector: LoadedDetector, images: np.ndarray, names: Sequence[str]) -> Iterator[Detections]:
    """Yields the detections on images, uint8 [N, S, S, 3], with their ids `names`."""
    boxes, labels, scores = (part.numpy() for part in detector.detect(tf.constant(images)))
    for row, name in enumerate(names):
        yield remove_padding(name, boxes[row], labels[row], scores[row])
