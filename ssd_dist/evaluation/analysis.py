"""Analyses an evaluation beyond its metrics: curves, thresholds, confusion matrix, error types, calibration.

ground truth, detections -> matches -> curves -> thresholds -> confusion matrix, error types
                                    -> calibration, ranked images
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssd_dist.evaluation.confidence import Calibration, OperatingPoint, find_operating_point, measure_calibration
from ssd_dist.evaluation.confusion import count_confusions
from ssd_dist.evaluation.detection_matching import Matches, match_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth, align_detections
from ssd_dist.evaluation.error_types import TRUE_POSITIVE, ErrorReport, classify_detections, report_errors
from ssd_dist.evaluation.voc_metrics import ClassCurve

# The recalls at which precision-recall curves are sampled.
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class RankedImages:
    """Image indices in three orders, for galleries.

    Attributes:
      best: by descending F1; ties go to the image with more objects.
      worst: by ascending F1; ties go to the image with more objects and false positives.
      confusing: by descending score of the image's most confident false positive; only images that have one.
    """

    best: list[int]
    worst: list[int]
    confusing: list[int]


@dataclass(frozen=True)
class Analysis:
    """The analysis of a model's detections on one split.

    Attributes:
      matches: the detections matched to the objects.
      curves: the precision-recall curve of each class.
      points: the operating point of each class.
      confusion: int64 [C + 1, C + 1], see `count_confusions`.
      calibration: the reliability of the scores.
      errors: cost and number of each error type.
      ranked: the best and the worst images.
    """

    matches: Matches
    curves: list[ClassCurve]
    points: list[OperatingPoint]
    confusion: np.ndarray
    calibration: Calibration
    errors: ErrorReport
    ranked: RankedImages

    @property
    def thresholds(self) -> np.ndarray:
        """Score thresholds, float64 [C]: the threshold at which each class has its best F1."""
        return np.array([point.threshold for point in self.points])

    def as_dict(self) -> dict[str, Any]:
        """Returns thresholds, precision at 101 recalls, confusion matrix, calibration and errors as JSON values."""
        classes = self.matches.classes
        return {
            "iou_threshold": 0.5,
            "operating_points": {name: asdict(point) for name, point in zip(classes, self.points, strict=True)},
            "pr_curves": {
                "recall": RECALLS.round(2).tolist(),
                "precision": {
                    name: interpolate_precision(curve) for name, curve in zip(classes, self.curves, strict=True)
                },
            },
            "confusion": {
                "rows": [*classes, "background"],
                "columns": [*classes, "missed"],
                "counts": self.confusion.tolist(),
            },
            "calibration": {
                "counts": self.calibration.counts.tolist(),
                "scores": _replace_nan(self.calibration.scores),
                "hit_rates": _replace_nan(self.calibration.precisions),
                "error": self.calibration.error,
            },
            "errors": {"ap_gain_if_mended": self.errors.gains, "counts": self.errors.counts},
        }


def analyse_detections(
    ground_truth: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]
) -> Analysis:
    """Analyses the detections on the images of `ground_truth`.

    Args:
      ground_truth: the annotations of each image.
      detections: the detections on the same images, paired by image id.
      classes: class names in label order.

    Raises:
      DataError: if the two sets of images differ.
    """
    aligned = align_detections(ground_truth, detections)
    matches = match_detections(ground_truth, aligned, classes)
    curves = matches.curves()
    points = [find_operating_point(curve) for curve in curves]
    thresholds = np.array([point.threshold for point in points])
    return Analysis(
        matches=matches,
        curves=curves,
        points=points,
        confusion=count_confusions(matches, list(ground_truth), aligned, thresholds),
        calibration=measure_calibration(matches),
        errors=report_errors(matches, thresholds),
        ranked=rank_images(matches.above_thresholds(thresholds)),
    )


def interpolate_precision(curve: ClassCurve) -> list[float] | None:
    """Returns the highest precision at each recall of `RECALLS` or above; None for a class without objects."""
    if not curve.objects:
        return None
    return [float(curve.precision[curve.recall >= recall - 1e-12].max(initial=0.0)) for recall in RECALLS]


def rank_images(shown: Matches) -> RankedImages:
    """Ranks the images by their detections; skips images with neither objects nor detections.

    Args:
      shown: matches that contain only the detections above the thresholds.
    """
    kinds = classify_detections(shown)
    count = shown.image_count
    true_positives = np.bincount(shown.detections.images[kinds == TRUE_POSITIVE], minlength=count)
    false_mask = shown.detections.outcomes == -1
    false_positives = np.bincount(shown.detections.images[false_mask], minlength=count)
    objects = np.bincount(shown.objects.images[shown.objects.counted], minlength=count)
    size = objects + true_positives + false_positives
    f1 = 2 * true_positives / np.maximum(size, 1)
    ranked = np.flatnonzero(size)
    highest_scores = np.zeros(count)
    np.maximum.at(highest_scores, shown.detections.images[false_mask], shown.detections.scores[false_mask])
    return RankedImages(
        best=ranked[np.lexsort((-objects[ranked], -f1[ranked]))].tolist(),
        worst=ranked[np.lexsort((-size[ranked], f1[ranked]))].tolist(),
        confusing=[int(image) for image in np.argsort(-highest_scores, kind="stable") if highest_scores[image] > 0],
    )


def _replace_nan(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
