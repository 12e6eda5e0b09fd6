"""Which anchor answers for which object: the training targets of one image.

    IoU matrix [objects, anchors]
      -> each anchor to the object it overlaps most: positive above one bound, ignored in the band below it
      -> each object gets one anchor of its own, greedily on the global maximum, whatever its IoU
      -> offsets of the positives

Ties in IoU go to the nearer centre, then to the lower index. With first-index ties, matching would not commute with
the horizontal flip, and 45 % of small objects have tied anchors.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ssd_dist.core.boxes import FloatArray, IntArray, encode_boxes
from ssd_dist.core.config import AnchorConfig, MatchingConfig

Float64Array: TypeAlias = npt.NDArray[np.float64]

# Float32 coordinates carry about 1e-7; IoUs and distances closer than this are the same number.
TIE = 1e-6


@dataclass(frozen=True)
class Targets:
    """Sparse targets of one image; every anchor not named here is background.

    Attributes:
      anchors: int64 [P], the positive anchors, ascending.
      labels: int64 [P], their classes, 1-based.
      offsets: float32 [P, 4], encoded `[ty, tx, th, tw]`.
      ignored: int64 [I], anchors left out of the loss and of mining, ascending.
      objects: int64 [P], the index of the object each positive answers for.
    """

    anchors: IntArray
    labels: IntArray
    offsets: FloatArray
    ignored: IntArray
    objects: IntArray


class Matcher:
    """Matches objects with one fixed set of anchors (Liu et al. 2016, section 2.2, "Matching strategy")."""

    def __init__(self, anchors: FloatArray, anchor_config: AnchorConfig, config: MatchingConfig) -> None:
        self._anchors = anchors
        self._anchor_config = anchor_config
        self._config = config
        # One contiguous row a coordinate: the IoU matrix is the cost of matching.
        self._rows = np.ascontiguousarray(anchors.astype(np.float64).T)
        self._areas = (self._rows[2] - self._rows[0]) * (self._rows[3] - self._rows[1])
        self._centers = np.stack([self._rows[0] + self._rows[2], self._rows[1] + self._rows[3]]) / 2

    def match(self, boxes: FloatArray, labels: IntArray, is_crowd: npt.NDArray[np.bool_] | None = None) -> Targets:
        """Targets of the objects `boxes` [N, 4] with `labels` [N]; boxes of positive area, labels from 1.

        Crowd boxes give no positives: anchors of which they cover `negative_iou` or more are ignored (COCO's
        evaluation measures crowds by the same ratio, intersection over the detection's area).
        """
        crowd = np.zeros(len(boxes), bool) if is_crowd is None else np.asarray(is_crowd, bool)
        real = np.flatnonzero(~crowd)
        iou = self._iou(boxes[real])
        owner = np.full(len(self._anchors), -1, np.int64)
        ignored = self._covered_by(boxes[crowd])
        if len(real):
            best = iou.max(axis=0)
            ignored |= best >= self._config.negative_iou - TIE
            if self._config.policy == "multi":
                positive = np.flatnonzero(best > self._config.positive_iou + TIE)
                owner[positive] = self._nearest_of_best(iou[:, positive], boxes[real], positive)
            forced = self._assign_one_each(iou, boxes[real])
            owner[forced[forced >= 0]] = np.flatnonzero(forced >= 0)
        anchors = np.flatnonzero(owner >= 0)
        objects = real[owner[anchors]]
        ignored[anchors] = False
        offsets = encode_boxes(
            boxes[objects],
            self._anchors[anchors],
            self._anchor_config.center_variance,
            self._anchor_config.size_variance,
        )
        return Targets(anchors, labels[objects].astype(np.int64), offsets, np.flatnonzero(ignored), objects)

    def best_iou(self, boxes: FloatArray) -> Float64Array:
        """The highest IoU [N] that any anchor reaches with each of boxes [N, 4]."""
        return np.asarray(self._iou(boxes).max(axis=1, initial=0.0))

    def _intersection(self, boxes: FloatArray) -> Float64Array:
        ymin, xmin, ymax, xmax = boxes.astype(np.float64).T[:, :, None]
        height = np.minimum(ymax, self._rows[2])
        height -= np.maximum(ymin, self._rows[0])
        width = np.minimum(xmax, self._rows[3])
        width -= np.maximum(xmin, self._rows[1])
        np.maximum(height, 0.0, out=height)
        np.maximum(width, 0.0, out=width)
        height *= width
        return np.asarray(height)

    def _iou(self, boxes: FloatArray) -> Float64Array:
        intersection = self._intersection(boxes)
        sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
        union = (sides[:, 0] * sides[:, 1])[:, None] + self._areas
        union -= intersection
        intersection /= union
        return np.asarray(intersection)

    def _covered_by(self, crowds: FloatArray) -> npt.NDArray[np.bool_]:
        if not len(crowds):
            return np.zeros(len(self._anchors), bool)
        cover = self._intersection(crowds) / self._areas
        return np.asarray(cover.max(axis=0) >= self._config.negative_iou - TIE)

    def _distances(self, boxes: FloatArray, anchors: IntArray) -> Float64Array:
        """Distances [N, K] of the centres of boxes [N, 4] from those of the given anchors [K].

        Not squared: a tolerance on squares would take anchors for tied that differ by 20 times the float32 error.
        """
        wide = boxes.astype(np.float64)
        centers = (wide[:, :2] + wide[:, 2:]) / 2
        shift = centers[:, :, None] - self._centers[:, anchors]
        return np.asarray(np.hypot(shift[:, 0], shift[:, 1]))

    def _nearest_of_best(self, iou: Float64Array, boxes: FloatArray, anchors: IntArray) -> IntArray:
        """For each of anchors [K] with iou [N, K]: the object it overlaps most, among equals the nearest, the first."""
        tied = iou >= iou.max(axis=0) - TIE
        distance = np.where(tied, self._distances(boxes, anchors), np.inf)
        return np.asarray(np.argmax(distance <= distance.min(axis=0) + TIE, axis=0))

    def _assign_one_each(self, iou: Float64Array, boxes: FloatArray) -> IntArray:
        """An anchor of its own for each object [N]: greedy bipartite matching on the global maximum of iou [N, A].

        An object left without (-1) exists only if there are more objects than anchors.
        """
        assigned = np.full(len(boxes), -1, np.int64)
        taken: set[int] = set()
        choices = {index: self._choose(iou[index], boxes[index], taken) for index in range(len(boxes))}
        while choices and len(taken) < len(self._anchors):
            top = max(choice[0] for choice in choices.values())
            rivals = {index: choice[1] for index, choice in choices.items() if choice[0] >= top - TIE}
            nearest = min(rivals.values())
            winner = min(index for index, distance in rivals.items() if distance <= nearest + TIE)
            anchor = choices.pop(winner)[2]
            assigned[winner] = anchor
            taken.add(anchor)
            for index, choice in choices.items():
                if choice[2] == anchor and len(taken) < len(self._anchors):
                    choices[index] = self._choose(iou[index], boxes[index], taken)
        return assigned

    def _choose(self, iou: Float64Array, box: FloatArray, taken: set[int]) -> tuple[float, float, int]:
        """(IoU, distance, index) of the free anchor that suits one object best."""
        if taken:
            iou = iou.copy()
            iou[list(taken)] = -1.0
        top = float(iou.max())
        tied = np.flatnonzero(iou >= top - TIE)
        distance = self._distances(box[None], tied)[0]
        nearest = int(np.argmax(distance <= distance.min() + TIE))
        return top, float(distance[nearest]), int(tied[nearest])
