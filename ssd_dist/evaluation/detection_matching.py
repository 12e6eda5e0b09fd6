"""Every detection of a split beside the objects it meets: what curves, confusion, calibration and errors start from.

truths, detections -> verdict (hit, miss, neither), best object of its own class, best object of another class

Verdicts are those of `voc.judge` at IoU 0.5, so hits here are hits of the VOC metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.evaluation.detections import Detections, GroundTruth, align_detections
from ssd_dist.evaluation.voc_metrics import ClassCurve, judge_image, trace_curve


@dataclass(frozen=True)
class ObjectTable:
    """All objects of a split, image after image.

    Attributes:
      images: int64 [N], the index of each object's image.
      labels: int64 [N], 1-based.
      counted: bool [N], false for difficult objects and crowds, which are neither to be found nor missed.
    """

    images: np.ndarray
    labels: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class DetectionTable:
    """All detections of a split, image after image, in each image best first.

    Attributes:
      images: int64 [D], the index of each detection's image.
      rows: int64 [D], its place among the detections of that image as given.
      labels: int64 [D], 1-based.
      scores: float32 [D].
      verdicts: int8 [D], 1 hit, -1 miss, 0 neither.
      same_object: int64 [D], the counted object of its class it overlaps most, an index in the `ObjectTable`; -1: none.
      same_iou: float64 [D], the IoU with it.
      other_object: int64 [D], the counted object of another class it overlaps most; -1: none.
      other_iou: float64 [D], the IoU with it.
    """

    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    verdicts: np.ndarray
    same_object: np.ndarray
    same_iou: np.ndarray
    other_object: np.ndarray
    other_iou: np.ndarray

    def select(self, mask: np.ndarray) -> "DetectionTable":
        """The detections of a mask [D]."""
        return DetectionTable(**{name: values[mask] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Matches:
    """Objects and detections of one split; `classes` in label order, `image_count` with the empty images."""

    classes: tuple[str, ...]
    image_count: int
    objects: ObjectTable
    found: DetectionTable

    def select(self, mask: np.ndarray) -> "Matches":
        """The same objects with the detections of a mask [D] only."""
        return replace(self, found=self.found.select(mask))

    def above(self, thresholds: np.ndarray) -> "Matches":
        """The same with the detections whose score reaches the threshold [C] of their class."""
        return self.select(self.found.scores >= thresholds[self.found.labels - 1])

    def count_objects(self) -> np.ndarray:
        """int64 [C]: objects to be found, of each class."""
        return np.bincount(self.objects.labels[self.objects.counted] - 1, minlength=len(self.classes))

    def curves(self) -> list[ClassCurve]:
        """Precision and recall of each class."""
        return [
            trace_curve(self.found.scores[own], self.found.verdicts[own], count)
            for label, count in enumerate(self.count_objects().tolist(), start=1)
            for own in [self.found.labels == label]
        ]


def match_detections(
    truths: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]
) -> Matches:
    """Lays detections beside the annotations of the same images, paired by id.

    Raises:
      DataError: if the images are not the same.
    """
    tables = []
    first = 0
    for image, (truth, found) in enumerate(zip(truths, align_detections(truths, detections), strict=True)):
        tables.append(_match_image(image, first, truth, found))
        first += len(truth.objects.labels)
    objects = ObjectTable(
        images=np.repeat(np.arange(len(truths)), [len(truth.objects.labels) for truth in truths]),
        labels=_join([truth.objects.labels for truth in truths], np.int64),
        counted=_join([~(truth.objects.difficult | truth.objects.is_crowd) for truth in truths], bool),
    )
    columns = {name: np.concatenate([vars(table)[name] for table in (_EMPTY, *tables)]) for name in vars(_EMPTY)}
    return Matches(tuple(classes), len(truths), objects, DetectionTable(**columns))


def _match_image(image: int, first_object: int, truth: GroundTruth, found: Detections) -> DetectionTable:
    order = np.argsort(-found.scores, kind="stable")
    boxes, labels = found.boxes[order], found.labels[order]
    objects = truth.objects
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
        verdicts=judge_image(boxes, labels, objects.boxes, objects.labels, ignored),
        same_object=same_object,
        same_iou=same_iou,
        other_object=other_object,
        other_iou=other_iou,
    )


def _find_best(iou: np.ndarray, allowed: np.ndarray, first_object: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row of iou [D, N] the allowed column of the highest IoU and that IoU; -1 and 0 if none is allowed."""
    if not iou.size:
        return np.full(len(iou), -1), np.zeros(len(iou))
    masked = np.where(allowed, iou, -1.0)
    best = masked.max(axis=1)
    return np.where(best >= 0, masked.argmax(axis=1) + first_object, -1), np.maximum(best, 0.0)


def _join(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts])


_EMPTY = DetectionTable(
    images=np.zeros(0, np.int64),
    rows=np.zeros(0, np.int64),
    labels=np.zeros(0, np.int64),
    scores=np.zeros(0, np.float32),
    verdicts=np.zeros(0, np.int8),
    same_object=np.zeros(0, np.int64),
    same_iou=np.zeros(0),
    other_object=np.zeros(0, np.int64),
    other_iou=np.zeros(0),
)
