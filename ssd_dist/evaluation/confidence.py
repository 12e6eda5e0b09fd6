"""Chooses a score threshold for each class, and measures calibration: is a score of 0.8 correct in 8 of 10 cases?"""

from dataclasses import dataclass

import numpy as np

from ssd_dist.evaluation.detection_matching import Matches
from ssd_dist.evaluation.voc_metrics import ClassCurve

BINS = 10
# Used for classes without true positives, where F1 is 0 or undefined at every threshold.
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class OperatingPoint:
    """The score threshold at which a class has its best F1, and its metrics there; None without true positives."""

    threshold: float
    f1: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Calibration:
    """Reliability of the scores in `BINS` equal bins of [0, 1].

    Attributes:
      counts: int64 [BINS], number of detections per bin.
      scores: float64 [BINS], mean score per bin; NaN for an empty bin.
      precisions: float64 [BINS], fraction of true positives per bin; NaN for an empty bin.
      error: expected calibration error (Guo et al. 2017, equation 3): mean |score - precision|, weighted by counts;
        None without detections.
    """

    counts: np.ndarray
    scores: np.ndarray
    precisions: np.ndarray
    error: float | None


def find_operating_point(curve: ClassCurve) -> OperatingPoint:
    """Finds the lowest threshold with the highest F1; a threshold never separates detections of equal score."""
    last_of_score = np.append(curve.scores[1:] != curve.scores[:-1], True) if len(curve.scores) else np.zeros(0, bool)
    precision, recall = curve.precision[last_of_score], curve.recall[last_of_score]
    if not curve.objects or not recall.any():
        return OperatingPoint(DEFAULT_THRESHOLD, None, None, None)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return OperatingPoint(
        float(curve.scores[last_of_score][best]), float(f1[best]), float(precision[best]), float(recall[best])
    )


def measure_calibration(matches: Matches) -> Calibration:
    """Measures the reliability of all detections that are true or false positives."""
    counted = matches.detections.outcomes != 0
    scores = matches.detections.scores[counted].astype(np.float64)
    is_true_positive = matches.detections.outcomes[counted] == 1
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(bins, scores, BINS) / counts
        precisions = np.bincount(bins, is_true_positive, BINS) / counts
    filled = counts > 0
    gaps = counts[filled] * np.abs(mean_scores[filled] - precisions[filled])
    return Calibration(counts, mean_scores, precisions, float(gaps.sum() / counts.sum()) if filled.any() else None)
