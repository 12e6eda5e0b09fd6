"""Compares an export with its checkpoint on real images: raw outputs, differing detections and latency.

Two formats sum in different orders, so their outputs differ by rounding, and of two boxes with nearly equal scores NMS
may then keep a different one. Detections whose difference rounding explains are counted as undecided, not as missing.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ssd_dist.evaluation.detections import Detections, remove_padding, select_detections
from ssd_dist.export.openvino_ir import OUTPUT_NAME as DETECTION_OUTPUT
from ssd_dist.export.rounding import BoolArray, Tolerance
from ssd_dist.export.runtimes import Runner
from ssd_dist.export.serving import OutputDecoder
from ssd_dist.model.postprocessing import DetectionBatch

# In shares of the image side: a third of a pixel at 300 pixels.
BOX_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-3
# Detections with lower scores are not compared: they may enter or leave at the end of the list.
COMPARED_SCORE = 0.1

# Maps uint8 pixels [N, S, S, 3] to logits and offsets.
Network = Callable[[tf.Tensor], dict[str, tf.Tensor]]
# Takes the index of an image, the checkpoint's detections that the export lacks, and the export's that the checkpoint
# lacks; returns which of them rounding explains.
Explain = Callable[[int, Detections, Detections], tuple[BoolArray, BoolArray]]


@dataclass(frozen=True)
class RawParity:
    """The difference of one raw output of an export from the checkpoint's.

    Attributes:
      max_difference: the largest difference on any image.
      tolerance: the largest difference that rounding explains; None for a quantized export.
    """

    max_difference: float
    tolerance: float | None

    @property
    def holds(self) -> bool:
        """Whether rounding explains the difference; true for quantized exports."""
        return self.tolerance is None or self.max_difference <= self.tolerance


@dataclass(frozen=True)
class Parity:
    """The differences between the detections of an export and of its checkpoint.

    Attributes:
      images: number of images compared.
      detections: detections of the checkpoint with a score of at least `COMPARED_SCORE`.
      missing: those for which the export has no detection of the same class, score and box.
      surplus: detections of the export with at least `COMPARED_SCORE` for which the checkpoint has none.
      undecided: missing or surplus detections that rounding explains; counted neither in `missing` nor in `surplus`.
      max_box_difference: the largest coordinate difference among matching detections, normalized.
      raw_outputs: the differences of `logits` and `offsets`; empty if the export contains the post-processing.
    """

    images: int
    detections: int
    missing: int
    surplus: int
    undecided: int
    max_box_difference: float
    raw_outputs: dict[str, RawParity]

    @property
    def holds(self) -> bool:
        """Whether the export reproduces the checkpoint."""
        return self.missing == self.surplus == 0 and all(output.holds for output in self.raw_outputs.values())


def run_export(
    run: Runner, images: Iterable[np.ndarray], names: Sequence[str], decoder: OutputDecoder
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
        found.append(remove_padding(name, *(np.asarray(part)[0] for part in read_outputs(outputs, decoder))))
    return found, 1e3 * statistics.median(times)


def read_outputs(outputs: dict[str, np.ndarray], decoder: OutputDecoder | None) -> DetectionBatch:
    """Returns the detections of an export with any of `export_options.OUTPUTS`; only raw outputs need a decoder."""
    if decoder is not None and "logits" in outputs:
        return decoder.decode({key: tf.constant(value) for key, value in outputs.items()})
    if "classes" in outputs:
        # TFLite_Detection_PostProcess neither clips boxes nor clears the rest of its outputs.
        is_detection = np.arange(outputs["scores"].shape[1]) < outputs["count"][:, None]
        labels = np.where(is_detection, outputs["classes"] + 1, 0).astype(np.int64)
        return DetectionBatch(outputs["boxes"].clip(0.0, 1.0), labels, np.where(is_detection, outputs["scores"], 0.0))
    if DETECTION_OUTPUT in outputs:
        rows = outputs[DETECTION_OUTPUT][0]
        return DetectionBatch(rows[..., [4, 3, 6, 5]], rows[..., 1].astype(np.int64), rows[..., 2])
    return DetectionBatch(outputs["boxes"], outputs["labels"], outputs["scores"])


def compare_raw_outputs(
    run: Runner, network: Network, images: Sequence[np.ndarray], tolerance: Tolerance | None
) -> dict[str, RawParity]:
    """Compares the raw outputs of an export without post-processing with those of the checkpoint.

    Args:
      run: the opened export.
      network: the checkpoint's network.
      images: uint8 [S, S, 3] images.
      tolerance: what rounding explains; None for a quantized export.
    """
    largest = {"logits": 0.0, "offsets": 0.0}
    for image in images:
        expected, actual = network(tf.constant(image[None])), run(image[None])
        for name in largest:
            largest[name] = max(largest[name], float(np.abs(actual[name] - expected[name].numpy()).max()))
    return {
        name: RawParity(difference, None if tolerance is None else getattr(tolerance, name))
        for name, difference in largest.items()
    }


def compare_detections(
    reference: Sequence[Detections],
    found: Sequence[Detections],
    explain: Explain | None,
    raw_outputs: dict[str, RawParity] | None = None,
) -> Parity:
    """Counts the checkpoint's detections that the export lacks, and the export's that the checkpoint lacks.

    Args:
      reference: the checkpoint's detections, one entry per image.
      found: the export's detections, one entry per image.
      explain: finds the differences that rounding explains; called only for images whose detections differ. None counts
        every difference.
      raw_outputs: the differences of the raw outputs, if the export returns them.
    """
    total = missing = surplus = undecided = 0
    largest = 0.0
    for index, (expected, actual) in enumerate(zip(reference, found, strict=True)):
        distances = _nearest_distances(expected, actual)
        is_lost, is_added = distances > BOX_TOLERANCE, _nearest_distances(actual, expected) > BOX_TOLERANCE
        total, largest = total + len(is_lost), max(largest, float(distances[~is_lost].max(initial=0.0)))
        if explain and (is_lost.any() or is_added.any()):
            lost = select_detections(expected, np.flatnonzero(is_lost))
            added = select_detections(actual, np.flatnonzero(is_added))
            lost_excused, added_excused = explain(index, lost, added)
            is_lost[is_lost], is_added[is_added] = ~lost_excused, ~added_excused
            undecided += int(lost_excused.sum() + added_excused.sum())
        missing, surplus = missing + int(is_lost.sum()), surplus + int(is_added.sum())
    return Parity(len(reference), total, missing, surplus, undecided, largest, raw_outputs or {})


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
