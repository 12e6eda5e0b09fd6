"""Matches the detections of a split to its objects, for curves, confusion matrix, calibration and error types.

ground truth, detections -> outcome (true positive, false positive, ignored), best object of the same class,
                            best object of another class

Outcomes come from `voc_metrics.classify_outcomes` at IoU 0.5, so true positives here are those of the VOC metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.evaluation.detections import Detections, GroundTruth, align_detections
from ssd_dist.evaluation.voc_metrics import ClassCurve, classify_outcomes, trace_curve


@dataclass(frozen=True)
class ObjectTable:
    """All objects of a split, ordered by image.

    Attributes:
      images: int64 [N], index of the object's image.
      labels: int64 [N], 1-based.
      counted: bool [N], false for difficult objects and crowds, which metrics ignore.
    """

    images: np.ndarray
    labels: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class DetectionTable:
    """All detections of a split, ordered by image and, within an image, by descending score.

    Attributes:
      images: int64 [D], index of the detection's image.
      rows: int64 [D], index of the detection in the `Detections` of its image.
      labels: int64 [D], 1-based.
      scores: float32 [D].
      outcomes: int8 [D], 1 for a true positive, -1 for a false positive, 0 for an ignored detection.
      same_object: int64 [D], index in the `ObjectTable` of the counted object of the same class with the highest IoU;
        -1 if there is none.
      same_iou: float64 [D], that IoU.
      other_object: int64 [D], the same for objects of other classes.
      other_iou: float64 [D], that IoU.
    """

    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    outcomes: np.ndarray
    same_object: np.ndarray
    same_iou: np.ndarray
    other_object: np.ndarray
    other_iou: np.ndarray

    def select(self, mask: np.ndarray) -> "DetectionTable":
        """Returns the detections that a mask [D] selects."""
        return DetectionTable(**{name: values[mask] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Matches:
    """The matched objects and detections of one split.

    Attributes:
      classes: class names in label order.
      image_count: number of images, those without objects included.
      objects: all objects.
      detections: all detections.
    """

    classes: tuple[str, ...]
    image_count: int
    objects: ObjectTable
    detections: DetectionTable

    def select(self, mask: np.ndarray) -> "Matches":
        """Returns all objects and the detections that a mask [D] selects."""
        return replace(self, detections=self.detections.select(mask))

    def above_thresholds(self, thresholds: np.ndarray) -> "Matches":
        """Returns all objects and the detections whose score is at least the threshold [C] of their class."""
        return self.select(self.detections.scores >= thresholds[self.detections.labels - 1])

    def count_objects(self) -> np.ndarray:
        """Returns the number of counted objects of each class, int64 [C]."""
        return np.bincount(self.objects.labels[self.objects.counted] - 1, minlength=len(self.classes))

    def curves(self) -> list[ClassCurve]:
        """Returns the precision-recall curve of each class."""
        return [
            trace_curve(self.detections.scores[own], self.detections.outcomes[own], count)
            for label, count in enumerate(self.count_objects().tolist(), start=1)
            for own in [self.detections.labels == label]
        ]


def match_detections(
    ground_truth: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]
) -> Matches:
    """Matches detections to the annotated objects of the same images, paired by image id.

    Args:
      ground_truth: the annotations of each image.
      detections: the detections on the same images.
      classes: class names in label order.

    Raises:
      DataError: if the two sets of images differ.
    """
    tables = []
    first = 0
    for image, (annotated, found) in enumerate(
        zip(ground_truth, align_detections(ground_truth, detections), strict=True)
    ):
        tables.append(_match_image(image, first, annotated, found))
        first += len(annotated.objects.labels)
    objects = ObjectTable(
        images=np.repeat(np.arange(len(ground_truth)), [len(annotated.objects.labels) for annotated in ground_truth]),
        labels=_concatenate([annotated.objects.labels for annotated in ground_truth], np.int64),
        counted=_concatenate(
            [~(annotated.objects.difficult | annotated.objects.is_crowd) for annotated in ground_truth], bool
        ),
    )
    columns = {name: np.concatenate([vars(table)[name] for table in (_EMPTY, *tables)]) for name in vars(_EMPTY)}
    return Matches(tuple(classes), len(ground_truth), objects, DetectionTable(**columns))


def _match_image(image: int, first_object: int, annotated: GroundTruth, found: Detections) -> DetectionTable:
    order = np.argsort(-found.scores, kind="stable")
    boxes, labels = found.boxes[order], found.labels[order]
    objects = annotated.objects
    ignored = objects.difficult | objects.is_crowd
    same = labels[:, None] == objects.labels[None]
    iou = iou_matrix(boxes, objects.boxes)
    same_object, same_iou = _find_best(iou, same & ~ignored[None], first_object)
    other_object, other_iou = _find_best(iou, ~same & ~ignored[None], first_object)
    return DetectionTable(
        images=np.full(len(order), image),
        rows=order,
        labels=labels,
        scores=found.scores[order],
        outcomes=classify_outcomes(boxes, labels, objects),
        same_object=same_object,
        same_iou=same_iou,
        other_object=other_object,
        other_iou=other_iou,
    )


def _find_best(iou: np.ndarray, allowed: np.ndarray, first_object: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each row of iou [D, N] the allowed column with the highest IoU, and that IoU; -1 and 0 without one."""
    if not iou.size:
        return np.full(len(iou), -1), np.zeros(len(iou))
    masked = np.where(allowed, iou, -1.0)
    best = masked.max(axis=1)
    return np.where(best >= 0, masked.argmax(axis=1) + first_object, -1), np.maximum(best, 0.0)


def _concatenate(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts])


_EMPTY = DetectionTable(
    images=np.zeros(0, np.int64),
    rows=np.zeros(0, np.int64),
    labels=np.zeros(0, np.int64),
    scores=np.zeros(0, np.float32),
    outcomes=np.zeros(0, np.int8),
    same_object=np.zeros(0, np.int64),
    same_iou=np.zeros(0),
    other_object=np.zeros(0, np.int64),
    other_iou=np.zeros(0),
)
