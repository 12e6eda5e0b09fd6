"""Average precision as Pascal VOC defines it, at IoU 0.5, by both protocols.

    VOC 2007: mean of the highest precision at recalls 0, 0.1, ..., 1 (Everingham et al. 2010, section 4.2)
    VOC 2010+: area under the precision envelope

Each detection, best first, looks at the object of its class that it overlaps most: a hit if the IoU reaches 0.5 and
the object is still free, a miss otherwise; a `difficult` object is neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.evaluation.detections import Detections, GroundTruth

IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class ClassCurve:
    """Precision and recall of one class, one entry for each detection that counts, best first.

    Attributes:
      recall: float64 [D].
      precision: float64 [D].
      scores: float32 [D].
      objects: objects that are not difficult.
    """

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    objects: int

    @property
    def ap_2007(self) -> float | None:
        """The 11-point average; None for a class without objects."""
        if not self.objects:
            return None
        points = [self.precision[self.recall >= t - 1e-12].max(initial=0.0) for t in np.linspace(0, 1, 11)]
        return float(np.mean(points))

    @property
    def ap(self) -> float | None:
        """The area under the envelope; None for a class without objects."""
        if not self.objects:
            return None
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        return float(np.sum(np.diff(self.recall, prepend=0.0) * envelope))


def class_curves(truths: Sequence[GroundTruth], detections: Sequence[Detections], class_count: int) -> list[ClassCurve]:
    """The curve of each class; equal scores keep the order of images and of detections in them."""
    counts = np.zeros(class_count, np.int64)
    scores, labels, verdicts = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)], [np.zeros(0, np.int8)]
    for truth, found in zip(truths, detections, strict=True):
        objects = truth.objects
        # Crowds are regions of uncounted objects: what VOC calls difficult.
        difficult = objects.difficult | objects.is_crowd
        np.add.at(counts, objects.labels[~difficult] - 1, 1)
        order = np.argsort(-found.scores, kind="stable")
        scores.append(found.scores[order])
        labels.append(found.labels[order])
        verdicts.append(judge_image(found.boxes[order], labels[-1], objects.boxes, objects.labels, difficult))
    of_label, all_scores, all_verdicts = (np.concatenate(parts) for parts in (labels, scores, verdicts))
    by_class = np.argsort(of_label, kind="stable")
    ends = np.searchsorted(of_label[by_class], np.arange(1, class_count + 1)).tolist()
    return [
        trace_curve(all_scores[own], all_verdicts[own], count)
        for own, count in zip(np.split(by_class, ends)[1:], counts.tolist(), strict=True)
    ]


def judge_image(
    boxes: np.ndarray, labels: np.ndarray, objects: np.ndarray, object_labels: np.ndarray, difficult: np.ndarray
) -> np.ndarray:
    """int8 [D]: 1 hit, -1 miss, 0 neither, for the detections of all classes in one image, best first."""
    verdict = np.full(len(boxes), -1, np.int8)
    if not len(objects) or not len(boxes):
        return verdict
    iou = np.where(labels[:, None] == object_labels[None], iou_matrix(boxes, objects), 0.0)
    nearest = iou.argmax(axis=1)
    reached = iou.max(axis=1) >= IOU_THRESHOLD
    verdict[reached & difficult[nearest]] = 0
    counted = np.flatnonzero(reached & ~difficult[nearest])
    # The first, and so best, detection that reaches an object has it; the rest are duplicates.
    _, first = np.unique(nearest[counted], return_index=True)
    verdict[counted[first]] = 1
    return verdict


def trace_curve(scores: np.ndarray, verdicts: np.ndarray, objects: int) -> ClassCurve:
    """The curve of detections with scores [D] and verdicts [D] of `judge_image` for `objects` objects to be found."""
    order = np.argsort(-scores, kind="stable")
    order = order[verdicts[order] != 0]
    hits = np.cumsum(verdicts[order] == 1)
    seen = np.arange(1, len(order) + 1)
    return ClassCurve(recall=hits / max(objects, 1), precision=hits / seen, scores=scores[order], objects=objects)
