"""What a score is worth: the threshold to use for each class, and whether 0.8 means right in 8 of 10 cases."""

from dataclasses import dataclass

import numpy as np

from ssd_dist.evaluation.detection_matching import Matches
from ssd_dist.evaluation.voc_metrics import ClassCurve

BINS = 10
# For a class without objects there is nothing to choose a threshold by.
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class OperatingPoint:
    """The score threshold of the best F1 of a class, and what one gets there; None for a class without hits."""

    threshold: float
    f1: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Calibration:
    """Reliability of scores in `BINS` equal bins of [0, 1].

    Attributes:
      counts: int64 [BINS], detections in the bin.
      scores: float64 [BINS], their mean score; NaN for an empty bin.
      hit_rates: float64 [BINS], the share of them that are hits; NaN for an empty bin.
      error: expected calibration error (Guo et al. 2017, equation 3): mean |score - hit rate|, weighted by counts.
    """

    counts: np.ndarray
    scores: np.ndarray
    hit_rates: np.ndarray
    error: float | None


def find_operating_point(curve: ClassCurve) -> OperatingPoint:
    """The lowest threshold of the highest F1; detections of equal score stand or fall together."""
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
    """Reliability over all detections that are hit or miss."""
    judged = matches.found.verdicts != 0
    scores = matches.found.scores[judged].astype(np.float64)
    hits = matches.found.verdicts[judged] == 1
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(bins, scores, BINS) / counts
        hit_rates = np.bincount(bins, hits, BINS) / counts
    filled = counts > 0
    gaps = counts[filled] * np.abs(mean_scores[filled] - hit_rates[filled])
    return Calibration(counts, mean_scores, hit_rates, float(gaps.sum() / counts.sum()) if filled.any() else None)
