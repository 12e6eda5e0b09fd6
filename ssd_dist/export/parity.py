"""Whether an export does what the checkpoint does, on real images, and what it is worth."""

import statistics
import time
from collections.abc import Callable, Sequence
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
# Logits and offsets of the same network differ by up to 5e-5 between formats, since each sums in its own order. Of two
# boxes whose logits are so close either may suppress the other; which ones are, so many ripples of the outputs show.
RIPPLE = 1e-4
RIPPLES = 24

# uint8 pixels [N, S, S, 3] to logits and offsets.
Network = Callable[[tf.Tensor], dict[str, tf.Tensor]]


@dataclass(frozen=True)
class Parity:
    """How far an export is from the checkpoint.

    Attributes:
      images: on how many images.
      detections: of the checkpoint with a clear score.
      missing: those of which the export has none with the same class and score at the same place.
      surplus: clear detections of the export of which the checkpoint has none such.
      undecided: as many more are missing or surplus that the checkpoint itself loses or finds when its outputs ripple.
      max_box_difference: the largest difference of a coordinate among the others, normalised.
    """

    images: int
    detections: int
    missing: int
    surplus: int
    undecided: int
    max_box_difference: float

    @property
    def holds(self) -> bool:
        """Whether the export reproduces the checkpoint."""
        return self.missing == self.surplus == 0


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
        found.append(_take_row(batch, 0, name))
    return found, 1e3 * statistics.median(times)


def _take_row(batch: DetectionBatch, row: int, name: str) -> Detections:
    boxes, labels, scores = (np.asarray(part)[row] for part in batch)
    count = int((scores > 0).sum())
    return Detections(name, boxes[:count], labels[:count].astype(np.int64), scores[:count])


def detect_rippled(network: Network, image: np.ndarray, name: str, config: Config) -> list[Detections]:
    """What is detected on a uint8 [S, S, 3] image if the network's outputs are a little different, `RIPPLES` times."""
    rng = np.random.default_rng(0)
    rippled = {
        key: tf.constant(value.numpy() + rng.normal(0, RIPPLE, [RIPPLES, *value.shape[1:]]), tf.float32)
        for key, value in network(tf.constant(image[None])).items()
    }
    batch = detect(rippled, anchor_tensor(config), config.anchors, config.eval)
    return [_take_row(batch, row, name) for row in range(RIPPLES)]


def compare_detections(
    reference: Sequence[Detections], found: Sequence[Detections], rippled: Callable[[int], Sequence[Detections]]
) -> Parity:
    """Looks for each clear detection of the checkpoint among the export's, and the other way round.

    Args:
      reference: the checkpoint's, by image.
      found: the export's.
      rippled: for the number of an image, what the checkpoint detects there with rippled outputs.
    """
    total = missing = surplus = undecided = 0
    largest = 0.0
    for number, (expected, actual) in enumerate(zip(reference, found, strict=True)):
        distances = _distances(expected, actual)
        lost, added = distances > BOX_TOLERANCE, _distances(actual, expected) > BOX_TOLERANCE
        total, largest = total + len(lost), max(largest, float(distances[~lost].max(initial=0.0)))
        if lost.any() or added.any():
            ripples = rippled(number)
            sometimes_lost = np.any([_distances(expected, other) > BOX_TOLERANCE for other in ripples], axis=0)
            sometimes_found = np.any([_distances(actual, other) <= BOX_TOLERANCE for other in ripples], axis=0)
            missing += int((lost & ~sometimes_lost).sum())
            surplus += int((added & ~sometimes_found).sum())
            undecided += int((lost & sometimes_lost).sum() + (added & sometimes_found).sum())
    return Parity(len(reference), total, missing, surplus, undecided, largest)


def _distances(wanted: Detections, among: Detections) -> np.ndarray:
    """How far the nearest detection of the same class and score is from each clear one that is wanted."""
    count = int((wanted.scores >= CLEAR_SCORE).sum())
    same = (among.labels == wanted.labels[:count, None]) & (
        np.abs(among.scores - wanted.scores[:count, None]) <= SCORE_TOLERANCE
    )
    apart = np.abs(among.boxes - wanted.boxes[:count, None]).max(axis=2)
    return np.where(same, apart, np.inf).min(axis=1, initial=np.inf)
