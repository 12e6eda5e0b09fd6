"""Compares AP on a small set of one class with the AP of a detector that ignores the image.

Where all images look alike, one box at the same place in every image can reach a high AP. A trained detector is useful
only if it is clearly better than that.
"""

from collections.abc import Sequence

import numpy as np

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.metrics import evaluate_detections

# The baseline is computed for sets of one class with at most this many objects.
MAX_OBJECTS = 1000


def evaluate_constant_box(ground_truths: Sequence[GroundTruth], classes: Sequence[str]) -> dict[str, float] | None:
    """Returns `coco/AP` and `coco/AP50` of the best constant box: the same box on every image, with the same score.

    The box is the annotated box that overlaps objects of most images with an IoU of at least 0.5. It is chosen on the
    evaluated images themselves, so no other constant box is expected to do much better.

    Args:
      ground_truths: the annotations of the evaluated images.
      classes: the class names.

    Returns:
      The metrics; None for sets of several classes, without objects, or with more than `MAX_OBJECTS`.
    """
    counts = [len(image.objects.labels) for image in ground_truths]
    if len(classes) != 1 or not 0 < sum(counts) <= MAX_OBJECTS:
        return None
    boxes = np.concatenate([image.objects.boxes for image in ground_truths if len(image.objects.boxes)])
    owners = np.repeat(np.arange(len(counts)), counts)
    reached = iou_matrix(boxes, boxes) >= 0.5
    covered = [len(np.unique(owners[row])) for row in reached]
    constant = boxes[int(np.argmax(covered))][None]
    found = [
        Detections(image.source_id, constant, np.ones(1, np.int64), np.ones(1, np.float32)) for image in ground_truths
    ]
    metrics = evaluate_detections(ground_truths, found, classes).scalars
    values = {name: metrics[name] for name in ("coco/AP", "coco/AP50")}
    return {name: value for name, value in values.items() if value is not None} or None
