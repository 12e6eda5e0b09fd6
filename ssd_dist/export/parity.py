"""Whether an export does what the checkpoint does, on real images, and what it is worth."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ssd_dist.core.config import Config
from ssd_dist.evaluation.detections import Detections
from ssd_dist.export.formats import Runner
from ssd_dist.model.postprocessing import DetectionBatch, anchor_tensor, detect

# In units of the image: a third of a pixel at 300.
BOX_TOLERANCE = 1e-3
# Fainter detections may change places where the list is cut off.
CLEAR_SCORE = 0.1
SCORE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Parity:
    """How far an export is from the checkpoint.

    Attributes:
      images: on how many images.
      detections: of the checkpoint with a clear score.
      missing: those of which the export has none with the same class and score at the same place.
      max_box_difference: the largest difference of a coordinate among the others, normalised.
    """

    images: int
    detections: int
    missing: int
    max_box_difference: float

    @property
    def holds(self) -> bool:
        """Whether the export reproduces the checkpoint."""
        return self.missing == 0


def run_export(
    run: Runner, images: Sequence[np.ndarray], names: Sequence[str], config: Config
) -> tuple[list[Detections], float]:
    """An export's detections on uint8 [S, S, 3] images, and the median milliseconds an image."""
    found, times = [], []
    for image, name in zip(images, names, strict=True):
        started = time.perf_counter()
        outputs = run(image[None])
        times.append(time.perf_counter() - started)
        if "logits" in outputs:
            batch = detect(
                {key: tf.constant(value) for key, value in outputs.items()},
                anchor_tensor(config), config.anchors, config.eval,
            )  # fmt: skip
        else:
            batch = DetectionBatch(outputs["boxes"], outputs["labels"], outputs["scores"])
        boxes, labels, scores = (np.asarray(part)[0] for part in batch)
        count = int((scores > 0).sum())
        found.append(Detections(name, boxes[:count], labels[:count].astype(np.int64), scores[:count]))
    return found, 1e3 * statistics.median(times)


def compare_detections(reference: Sequence[Detections], found: Sequence[Detections]) -> Parity:
    """Looks for each clear detection of the checkpoint among the export's."""
    total = missing = 0
    largest = 0.0
    for expected, actual in zip(reference, found, strict=True):
        for box, label, score in zip(expected.boxes, expected.labels, expected.scores, strict=True):
            if score < CLEAR_SCORE:
                break
            total += 1
            same = (actual.labels == label) & (np.abs(actual.scores - score) <= SCORE_TOLERANCE)
            distance = np.abs(actual.boxes[same] - box).max(axis=1).min() if same.any() else np.inf
            if distance > BOX_TOLERANCE:
                missing += 1
            else:
                largest = max(largest, float(distance))
    return Parity(len(reference), total, missing, largest)
