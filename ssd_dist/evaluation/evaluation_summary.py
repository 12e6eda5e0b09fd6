"""All results of an evaluation as JSON values: the file of `ssd-evaluate --output`, and `Detector.evaluate`."""

from collections.abc import Sequence
from typing import Any

from ssd_dist.evaluation.analysis import analyse_detections
from ssd_dist.evaluation.baseline import evaluate_constant_box
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.metrics import evaluate_detections


def summarize_evaluation(
    ground_truths: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]
) -> dict[str, Any]:
    """Returns the metrics, `per_class`, `analysis`, and `constant_box` (None except for small sets of one class).

    Args:
      ground_truths: the annotations of the evaluated images.
      detections: the detections on the same images, in the same order.
      classes: class names in label order.
    """
    return {
        **evaluate_detections(ground_truths, detections, classes).as_dict(),
        "analysis": analyse_detections(ground_truths, detections, classes).as_dict(),
        "constant_box": evaluate_constant_box(ground_truths, classes),
    }
