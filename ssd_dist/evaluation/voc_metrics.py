"""Computes average precision (AP) as defined by Pascal VOC, at IoU 0.5, by both protocols.

    VOC 2007: mean of the highest precision at recalls 0, 0.1, ..., 1 (Everingham et al. 2010, section 4.2)
    VOC 2010+: area under the precision envelope

Each detection, by descending score, is compared with the object of its class with the highest IoU. It is a true
positive if the IoU is at least 0.5 and no earlier detection matched the object, and a false positive otherwise.
Detections on `difficult` objects are ignored. VOC has no crowds; as in COCO, a detection without an object of its own
is ignored if a crowd of its class covers at least half of its area.

Boxes are continuous, as in COCO. The VOC devkit adds 1 pixel to widths and heights, also to those of the intersection,
which raises the IoU of small boxes: two boxes of 10 x 10 pixels, 3 pixels apart, have 0.54 here and 0.57 there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssd_dist.core.boxes import cover_matrix, iou_matrix
from ssd_dist.core.records import Objects
from ssd_dist.evaluation.detections import Detections, GroundTruth

IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class ClassCurve:
    """The precision-recall curve of one class: one entry per detection that is not ignored, by descending score.

    Attributes:
      recall: float64 [D].
      precision: float64 [D].
      scores: float32 [D].
      objects: number of objects that are not difficult.
    """

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    objects: int

    @property
    def ap_2007(self) -> float | None:
        """The 11-point AP of VOC 2007; None for a class without objects."""
        if not self.objects:
            return None
        points = [self.precision[self.recall >= t - 1e-12].max(initial=0.0) for t in np.linspace(0, 1, 11)]
        return float(np.mean(points))

    @property
    def ap(self) -> float | None:
        """The area under the precision envelope; None for a class without objects."""
        if not self.objects:
            return None
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        return float(np.sum(np.diff(self.recall, prepend=0.0) * envelope))


def compute_class_curves(
    ground_truth: Sequence[GroundTruth], detections: Sequence[Detections], class_count: int
) -> list[ClassCurve]:
    """Computes the curve of each class; ties in the score keep the order of the images and of their detections."""
    counts = np.zeros(class_count, np.int64)
    scores, labels, outcomes = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)], [np.zeros(0, np.int8)]
    for annotated, found in zip(ground_truth, detections, strict=True):
        objects = annotated.objects
        np.add.at(counts, objects.labels[~(objects.difficult | objects.is_crowd)] - 1, 1)
        order = np.argsort(-found.scores, kind="stable")
        scores.append(found.scores[order])
        labels.append(found.labels[order])
        outcomes.append(classify_outcomes(found.boxes[order], labels[-1], objects))
    all_labels, all_scores, all_outcomes = (np.concatenate(parts) for parts in (labels, scores, outcomes))
    by_class = np.argsort(all_labels, kind="stable")
    ends = np.searchsorted(all_labels[by_class], np.arange(1, class_count + 1)).tolist()
    return [
        trace_curve(all_scores[own], all_outcomes[own], count)
        for own, count in zip(np.split(by_class, ends)[1:], counts.tolist(), strict=True)
    ]


def classify_outcomes(boxes: np.ndarray, labels: np.ndarray, objects: Objects) -> np.ndarray:
    """Classifies the detections of all classes on one image.

    Args:
      boxes: float32 [D, 4], by descending score.
      labels: int64 [D].
      objects: the annotated objects of the image.

    Returns:
      int8 [D]: 1 for a true positive, -1 for a false positive, 0 for an ignored detection.
    """
    outcomes = np.full(len(boxes), -1, np.int8)
    if not len(objects.boxes) or not len(boxes):
        return outcomes
    same, crowds = labels[:, None] == objects.labels[None], objects.is_crowd
    iou = np.where(same & ~crowds, iou_matrix(boxes, objects.boxes), 0.0)
    best = iou.argmax(axis=1)
    reached = iou.max(axis=1) >= IOU_THRESHOLD
    outcomes[reached & objects.difficult[best]] = 0
    counted = np.flatnonzero(reached & ~objects.difficult[best])
    # The first detection on an object, which has the highest score, matches it; the others are duplicates.
    _, first = np.unique(best[counted], return_index=True)
    outcomes[counted[first]] = 1
    if crowds.any():
        covered = same[:, crowds] & (cover_matrix(boxes, objects.boxes[crowds]) >= IOU_THRESHOLD)
        outcomes[covered.any(axis=1) & (outcomes < 0)] = 0
    return outcomes


def trace_curve(scores: np.ndarray, outcomes: np.ndarray, objects: int) -> ClassCurve:
    """Computes a precision-recall curve.

    Args:
      scores: float32 [D].
      outcomes: int8 [D], the results of `classify_outcomes`.
      objects: number of objects that are not ignored.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[outcomes[order] != 0]
    true_positives = np.cumsum(outcomes[order] == 1)
    counts = np.arange(1, len(order) + 1)
    return ClassCurve(
        recall=true_positives / max(objects, 1),
        precision=true_positives / counts,
        scores=scores[order],
        objects=objects,
    )
