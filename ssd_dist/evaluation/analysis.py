"""Everything that is asked of an evaluation beyond its metrics, in one value.

truths, detections -> matches -> curves -> thresholds -> confusion, errors;  matches -> calibration, ranked images
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssd_dist.evaluation.confidence import Calibration, OperatingPoint, find_operating_point, measure_calibration
from ssd_dist.evaluation.confusion import confuse
from ssd_dist.evaluation.detection_matching import Matches, match_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth, align_detections
from ssd_dist.evaluation.error_types import HIT, ErrorReport, classify_detections, report_errors
from ssd_dist.evaluation.voc_metrics import ClassCurve

# The recalls at which a curve is written out.
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class RankedImages:
    """Indices of images that are worth a look, the most telling first.

    Attributes:
      best: highest F1, of equals the one with more objects.
      worst: lowest F1, of equals the one with more objects and wrong detections.
      confusing: those of the wrong detection with the highest score.
    """

    best: list[int]
    worst: list[int]
    confusing: list[int]


@dataclass(frozen=True)
class Analysis:
    """What a split says about a model; `curves` and `points` by class."""

    matches: Matches
    curves: list[ClassCurve]
    points: list[OperatingPoint]
    confusion: np.ndarray
    calibration: Calibration
    errors: ErrorReport
    ranked: RankedImages

    @property
    def thresholds(self) -> np.ndarray:
        """Float [C]: the score threshold of each class, that of its best F1."""
        return np.array([point.threshold for point in self.points])

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: precision at 101 recalls, thresholds, confusion, calibration and errors."""
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
                "scores": _json_list(self.calibration.scores),
                "hit_rates": _json_list(self.calibration.hit_rates),
                "error": self.calibration.error,
            },
            "errors": {"ap_gain_if_mended": self.errors.gains, "counts": self.errors.counts},
        }


def analyse_detections(
    truths: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]
) -> Analysis:
    """Analyses detections on the images of `truths`, paired by id; `classes` in label order.

    Raises:
      DataError: if the images are not the same.
    """
    aligned = align_detections(truths, detections)
    matches = match_detections(truths, aligned, classes)
    curves = matches.curves()
    points = [find_operating_point(curve) for curve in curves]
    thresholds = np.array([point.threshold for point in points])
    return Analysis(
        matches=matches,
        curves=curves,
        points=points,
        confusion=confuse(matches, list(truths), aligned, thresholds),
        calibration=measure_calibration(matches),
        errors=report_errors(matches, thresholds),
        ranked=rank_images(matches.above(thresholds)),
    )


def interpolate_precision(curve: ClassCurve) -> list[float] | None:
    """The highest precision at each of `RECALLS` or above; None for a class without objects."""
    if not curve.objects:
        return None
    return [float(curve.precision[curve.recall >= recall - 1e-12].max(initial=0.0)) for recall in RECALLS]


def rank_images(shown: Matches) -> RankedImages:
    """Ranks the images by the detections that a user would see; those without objects and detections are left out."""
    kinds = classify_detections(shown)
    count = shown.image_count
    hits = np.bincount(shown.found.images[kinds == HIT], minlength=count)
    wrong_mask = shown.found.verdicts == -1
    wrong = np.bincount(shown.found.images[wrong_mask], minlength=count)
    objects = np.bincount(shown.objects.images[shown.objects.counted], minlength=count)
    size = objects + hits + wrong
    f1 = 2 * hits / np.maximum(size, 1)
    some = np.flatnonzero(size)
    surest = np.zeros(count)
    np.maximum.at(surest, shown.found.images[wrong_mask], shown.found.scores[wrong_mask])
    return RankedImages(
        best=some[np.lexsort((-objects[some], -f1[some]))].tolist(),
        worst=some[np.lexsort((-size[some], f1[some]))].tolist(),
        confusing=[int(image) for image in np.argsort(-surest, kind="stable") if surest[image] > 0],
    )


def _json_list(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
