"""Compares an export with its checkpoint on real images: differing detections and latency.

Two formats sum in different orders, so their outputs differ by rounding, and of two boxes with nearly equal scores NMS
may then keep a different one. A detection that also changes when noise as large as the rounding is added to the
checkpoint's own outputs is counted as undecided, not as missing.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ssd_dist.evaluation.detections import Detections
from ssd_dist.export.formats import Runner
from ssd_dist.export.serving import OutputDecoder
from ssd_dist.model.postprocessing import DetectionBatch

# In shares of the image side: a third of a pixel at 300 pixels.
BOX_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-3
# Detections with lower scores are not compared: they may enter or leave at the end of the list.
COMPARED_SCORE = 0.1
# Logits and offsets of the same network differ by up to 5e-5 between formats. The standard deviation of the noise is
# twice that.
NOISE = 1e-4
# Draws of the noise per image.
NOISE_DRAWS = 24

# Maps uint8 pixels [N, S, S, 3] to logits and offsets.
Network = Callable[[tf.Tensor], dict[str, tf.Tensor]]


@dataclass(frozen=True)
class Parity:
    """The differences between the detections of an export and of its checkpoint.

    Attributes:
      images: number of images compared.
      detections: detections of the checkpoint with a score of at least `COMPARED_SCORE`.
      missing: those for which the export has no detection of the same class, score and box.
      surplus: detections of the export with at least `COMPARED_SCORE` for which the checkpoint has none.
      undecided: missing or surplus detections that the checkpoint itself loses or finds under noise; counted neither
        in `missing` nor in `surplus`.
      max_box_difference: the largest coordinate difference among matching detections, normalised.
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
    run: Runner, images: Sequence[np.ndarray], names: Sequence[str], decoder: OutputDecoder
) -> tuple[list[Detections], float]:
    """Runs an export on uint8 [S, S, 3] images.

    Args:
      run: the opened export.
      images: the images.
      names: their ids.
      decoder: decodes the outputs of an export without post-processing.

    Returns:
      The detections on each image, and the median latency in milliseconds per image.
    """
    found, times = [], []
    for image, name in zip(images, names, strict=True):
        started = time.perf_counter()
        outputs = run(image[None])
        times.append(time.perf_counter() - started)
        if "logits" in outputs:
            batch = decoder.decode({key: tf.constant(value) for key, value in outputs.items()})
        else:
            batch = DetectionBatch(outputs["boxes"], outputs["labels"], outputs["scores"])
        found.append(_select_image(batch, 0, name))
    return found, 1e3 * statistics.median(times)


def _select_image(batch: DetectionBatch, row: int, name: str) -> Detections:
    """Returns the detections of one image of a batch, without padding."""
    boxes, labels, scores = (np.asarray(part)[row] for part in batch)
    count = int((scores > 0).sum())
    return Detections(name, boxes[:count], labels[:count].astype(np.int64), scores[:count])


def detect_with_noise(network: Network, image: np.ndarray, name: str, decoder: OutputDecoder) -> list[Detections]:
    """Detects objects in a uint8 [S, S, 3] image `NOISE_DRAWS` times, each time with other noise on the outputs."""
    rng = np.random.default_rng(0)
    noisy = {
        key: tf.constant(value.numpy() + rng.normal(0, NOISE, [NOISE_DRAWS, *value.shape[1:]]), tf.float32)
        for key, value in network(tf.constant(image[None])).items()
    }
    batch = decoder.decode(noisy)
    return [_select_image(batch, row, name) for row in range(NOISE_DRAWS)]


def compare_detections(
    reference: Sequence[Detections], found: Sequence[Detections], detect_noisy: Callable[[int], Sequence[Detections]]
) -> Parity:
    """Counts the checkpoint's detections that the export lacks, and the export's that the checkpoint lacks.

    Args:
      reference: the checkpoint's detections, one entry per image.
      found: the export's detections, one entry per image.
      detect_noisy: takes the index of an image and returns the checkpoint's detections with noise added to its outputs,
        several times. Called only for images whose detections differ.
    """
    total = missing = surplus = undecided = 0
    largest = 0.0
    for index, (expected, actual) in enumerate(zip(reference, found, strict=True)):
        distances = _nearest_distances(expected, actual)
        lost, added = distances > BOX_TOLERANCE, _nearest_distances(actual, expected) > BOX_TOLERANCE
        total, largest = total + len(lost), max(largest, float(distances[~lost].max(initial=0.0)))
        if lost.any() or added.any():
            noisy = detect_noisy(index)
            sometimes_lost = np.any([_nearest_distances(expected, other) > BOX_TOLERANCE for other in noisy], axis=0)
            sometimes_found = np.any([_nearest_distances(actual, other) <= BOX_TOLERANCE for other in noisy], axis=0)
            missing += int((lost & ~sometimes_lost).sum())
            surplus += int((added & ~sometimes_found).sum())
            undecided += int((lost & sometimes_lost).sum() + (added & sometimes_found).sum())
    return Parity(len(reference), total, missing, surplus, undecided, largest)


def _nearest_distances(queries: Detections, candidates: Detections) -> np.ndarray:
    """Returns the distance from each query of at least `COMPARED_SCORE` to the nearest similar candidate.

    Similar candidates have the same class and nearly the same score. The distance is the largest coordinate difference
    of the boxes, and infinite without such a candidate.
    """
    count = int((queries.scores >= COMPARED_SCORE).sum())
    same = (candidates.labels == queries.labels[:count, None]) & (
        np.abs(candidates.scores - queries.scores[:count, None]) <= SCORE_TOLERANCE
    )
    apart = np.abs(candidates.boxes - queries.boxes[:count, None]).max(axis=2)
    return np.where(same, apart, np.inf).min(axis=1, initial=np.inf)
