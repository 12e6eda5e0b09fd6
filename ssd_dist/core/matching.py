"""Assigns anchors to ground-truth objects: the training targets of one image.

    compute the IoU of objects and anchors (only of pairs that can matter)
      -> assign each anchor to the object with the highest IoU: positive above one bound, ignored in the band below it
      -> assign one more anchor to each object, greedily by the highest IoU of all pairs, however low it is
      -> encode the offsets of the positive anchors

Ties in IoU go to the nearer centre, then to the lower index. If ties went to the first index only, matching would not
commute with the horizontal flip: 45 % of small objects have tied anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ssd_dist.core.anchor_iou import AnchorGrids, Pairs
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.boxes import FloatArray, IntArray, encode_boxes
from ssd_dist.core.config import AnchorConfig, MatchingConfig

BoolArray: TypeAlias = npt.NDArray[np.bool_]
Float64Array: TypeAlias = npt.NDArray[np.float64]

# Float32 coordinates are accurate to about 1e-7; IoUs and distances that differ by less than this count as equal.
TIE = 1e-6


@dataclass(frozen=True)
class Targets:
    """Sparse targets of one image; all anchors that are not listed are background.

    Attributes:
      anchors: int64 [P], indices of the positive anchors, ascending.
      labels: int64 [P], classes of the positive anchors, 1-based.
      offsets: float32 [P, 4], encoded boxes `[ty, tx, th, tw]`.
      ignored: int64 [I], indices of anchors excluded from the loss and from mining, ascending.
      objects: int64 [P], the index of the object assigned to each positive anchor.
    """

    anchors: IntArray
    labels: IntArray
    offsets: FloatArray
    ignored: IntArray
    objects: IntArray


class Matcher:
    """Matches objects with one fixed set of anchors (Liu et al. 2016, section 2.2, "Matching strategy")."""

    def __init__(self, anchor_config: AnchorConfig, input_size: int, config: MatchingConfig) -> None:
        self._anchors = generate_anchors(anchor_config, input_size)
        self._anchor_config = anchor_config
        self._config = config
        self._grids = AnchorGrids(self._anchors, anchor_config, input_size)
        wide = self._anchors.astype(np.float64).T
        self._centers = np.stack([wide[0] + wide[2], wide[1] + wide[3]]) / 2

    def match(self, boxes: FloatArray, labels: IntArray, is_crowd: BoolArray | None = None) -> Targets:
        """Returns the targets of one image.

        Crowds have no positive anchors. Anchors are ignored if a crowd covers at least `negative_iou` of their area
        (COCO's evaluation uses the same ratio for crowds: intersection over the area of the detection).

        Args:
          boxes: float32 [N, 4], of positive area.
          labels: int64 [N], classes from 1.
          is_crowd: bool [N], or None without crowds.
        """
        return self.match_all([boxes], [labels], [np.zeros(len(boxes), bool) if is_crowd is None else is_crowd])[0]

    def match_all(
        self, boxes: Sequence[FloatArray], labels: Sequence[IntArray], is_crowd: Sequence[BoolArray]
    ) -> list[Targets]:
        """Returns the targets of one or more images: the results of `match` at a fraction of the cost."""
        counts = np.array([len(own) for own in boxes])
        all_boxes, all_labels = np.concatenate(boxes), np.concatenate(labels).astype(np.int64)
        crowd = np.concatenate(is_crowd)
        # A slot is an anchor of one image: the index of the anchor plus the index of the image's first slot.
        first_slots = np.arange(len(counts) + 1) * len(self._anchors)
        first_slot_of = np.repeat(first_slots[:-1], counts)
        covered = self._find_covered(all_boxes[crowd], first_slot_of[crowd])
        real = np.flatnonzero(~crowd)
        positive, owners, near = self._match_real(all_boxes[real], first_slot_of[real])
        owners = real[owners]
        # Only flags are stored for all slots; arrays of numbers would cost more time than the matching.
        ignored = np.zeros(first_slots[-1], bool)
        ignored[covered] = ignored[near] = True
        ignored[positive] = False
        ignored_slots = np.flatnonzero(ignored)
        anchors = positive % len(self._anchors)
        config = self._anchor_config
        offsets = encode_boxes(all_boxes[owners], self._anchors[anchors], config.center_variance, config.size_variance)
        first_objects = np.cumsum(counts) - counts
        ends, ignored_ends = (np.searchsorted(slots, first_slots).tolist() for slots in (positive, ignored_slots))
        return [
            Targets(
                anchors=anchors[start:end],
                labels=all_labels[owners[start:end]],
                offsets=offsets[start:end],
                ignored=ignored_slots[ignored_ends[image] : ignored_ends[image + 1]] - first_slots[image],
                objects=owners[start:end] - first_objects[image],
            )
            for image, (start, end) in enumerate(pairwise(ends))
        ]

    def best_iou(self, boxes: FloatArray) -> Float64Array:
        """Returns the highest IoU [N] of each of boxes [N, 4] with any anchor."""
        if not len(boxes):
            return np.zeros(0)
        pairs = self._grids.find_pairs(self._grids.measure(boxes), 1.0, TIE)
        return np.asarray(np.maximum.reduceat(pairs.iou, _run_starts(pairs.objects, len(boxes))))

    def _find_covered(self, crowds: FloatArray, first_slots: IntArray) -> IntArray:
        """Returns the slots of the anchors that crowds [N, 4] cover; `first_slots` [N] are those of their images."""
        if not len(crowds):
            return np.zeros(0, np.int64)
        covered = self._grids.cover(self._grids.measure(crowds)) >= self._config.negative_iou - TIE
        crowd, anchor = np.nonzero(covered)
        return np.asarray(first_slots[crowd] + anchor)

    def _match_real(self, boxes: FloatArray, first_slots: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Matches objects [N, 4] that are not crowds.

        Returns:
          The positive slots [P], ascending; the object of each [P]; the slots [K] with an IoU of at least the lower
          bound.
        """
        if not len(boxes):
            return (np.zeros(0, np.int64),) * 3
        objects = _Objects(boxes, first_slots, self._grids)
        pairs = self._grids.find_pairs(objects.spans, self._config.negative_iou, TIE)
        slots = objects.first_slots[pairs.objects] + pairs.anchors
        forced = self._assign_one_each(objects, pairs)
        assigned = np.flatnonzero(forced >= 0)
        claims = self._find_claims(objects, pairs, slots) if self._config.policy == "multi" else assigned[:0]
        # np.unique keeps the first entry of a slot: the forced assignment, then the first object that claims it.
        owners = np.concatenate([assigned, pairs.objects[claims]])
        positive, first = np.unique(
            np.concatenate([objects.first_slots[assigned] + forced[assigned], slots[claims]]), return_index=True
        )
        return positive, owners[first], slots[pairs.iou >= self._config.negative_iou - TIE]

    def _find_claims(self, objects: "_Objects", pairs: Pairs, slots: IntArray) -> IntArray:
        """Returns the indices of the pairs in which an anchor takes its object: highest IoU, above the upper bound.

        Ties go to the object whose centre is nearest. Pairs of one slot that still tie are in the order of the objects.
        """
        bound = self._config.positive_iou
        # Sufficient: ties are within TIE of the anchor's best pair, which must exceed the bound by more than TIE.
        high = np.flatnonzero(pairs.iou > bound)
        if not len(high):
            return high
        high = high[np.argsort(slots[high], kind="stable")]
        iou, slot = pairs.iou[high], slots[high]
        starts = np.flatnonzero(np.diff(slot, prepend=-1))
        run = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(slot)))
        best = np.maximum.reduceat(iou, starts)[run]
        eligible = (iou >= best - TIE) & (best > bound + TIE)
        distance = self._distances(objects.centers[pairs.objects[high]], pairs.anchors[high])
        distance[~eligible] = np.inf
        nearest = np.minimum.reduceat(distance, starts)[run]
        return high[eligible & (distance <= nearest + TIE)]

    def _distances(self, centers: Float64Array, anchors: IntArray) -> Float64Array:
        """Returns the distances [K] of centres [K, 2], or of one centre [2], to the centres of anchors [K].

        They are not squared: with a tolerance on squares, anchors that differ by 20 times the float32 error would tie.
        """
        return np.asarray(
            np.hypot(centers[..., 0] - self._centers[0, anchors], centers[..., 1] - self._centers[1, anchors])
        )

    def _assign_one_each(self, objects: "_Objects", pairs: Pairs) -> IntArray:
        """Returns one distinct anchor for each object [N]: greedy bipartite matching on the global maximum of IoU.

        It is -1 for objects without an anchor, which exist only if an image has more objects than anchors.
        """
        choices = self._choose_first(objects, pairs)
        slots = objects.first_slots + choices.anchors
        assigned = choices.anchors.copy()
        chosen, choosers = np.unique(slots, return_counts=True)
        # In images without a contested anchor every object gets its first choice; the order does not matter.
        for image in np.unique(chosen[choosers > 1] // len(self._anchors)):
            members = np.flatnonzero(objects.first_slots == image * len(self._anchors))
            self._assign_in_turn(objects, choices, members, assigned)
        return assigned

    def _assign_in_turn(self, objects: "_Objects", choices: "_Choices", members: IntArray, assigned: IntArray) -> None:
        """Assigns anchors to the objects `members` of one image, highest IoU first.

        If its anchor is taken, an object chooses its best free anchor.
        """
        assigned[members] = -1
        taken: set[int] = set()
        waiting = {index: choices.select(index) for index in members.tolist()}
        while waiting and len(taken) < len(self._anchors):
            top = max(choice[0] for choice in waiting.values())
            rivals = {index: choice[1] for index, choice in waiting.items() if choice[0] >= top - TIE}
            nearest = min(rivals.values())
            winner = min(index for index, distance in rivals.items() if distance <= nearest + TIE)
            anchor = waiting.pop(winner)[2]
            assigned[winner] = anchor
            taken.add(anchor)
            # Identical boxes choose the same anchor; choosing for each of a thousand would take half a minute.
            choice_of_box: dict[bytes, _Choice] = {}
            for index, choice in waiting.items():
                if choice[2] == anchor and len(taken) < len(self._anchors):
                    box = objects.boxes[index].tobytes()
                    if box not in choice_of_box:
                        choice_of_box[box] = self._choose_free_anchor(objects, index, taken)
                    waiting[index] = choice_of_box[box]

    def _choose_first(self, objects: "_Objects", pairs: Pairs) -> "_Choices":
        """Returns for each object its best anchor; ties go to the nearer centre, then the lower index.

        Several objects may choose the same anchor.
        """
        count = len(objects.centers)
        top = np.maximum.reduceat(pairs.iou, _run_starts(pairs.objects, count))
        tied = np.flatnonzero(pairs.iou >= top[pairs.objects] - TIE)
        owners, anchors = pairs.objects[tied], pairs.anchors[tied]
        distance = self._distances(objects.centers[owners], anchors)
        nearest = np.minimum.reduceat(distance, _run_starts(owners, count))
        near = np.flatnonzero(distance <= nearest[owners] + TIE)
        chosen = np.minimum.reduceat(anchors[near], _run_starts(owners[near], count))
        return _Choices(top, self._distances(objects.centers, chosen), chosen)

    def _choose_free_anchor(self, objects: "_Objects", index: int, taken: set[int]) -> "_Choice":
        """Returns the best anchor for one object among the anchors that are not taken."""
        iou = self._grids.iou(objects.spans.select(index))[0]
        iou[list(taken)] = -1.0
        top = float(iou.max())
        tied = np.flatnonzero(iou >= top - TIE)
        distance = self._distances(objects.centers[index], tied)
        nearest = int(np.argmax(distance <= distance.min() + TIE))
        return top, float(distance[nearest]), int(tied[nearest])


class _Objects:
    """The objects of all images: boxes [N, 4], centres [N, 2], first slots [N] of their images, and overlaps."""

    def __init__(self, boxes: FloatArray, first_slots: IntArray, grids: AnchorGrids) -> None:
        wide = boxes.astype(np.float64)
        self.boxes = boxes
        self.centers = (wide[:, :2] + wide[:, 2:]) / 2
        self.first_slots = first_slots
        self.spans = grids.measure(boxes)


@dataclass(frozen=True)
class _Choices:
    """The IoU, the centre distance and the index of one anchor per object [N]."""

    iou: Float64Array
    distances: Float64Array
    anchors: IntArray

    def select(self, index: int) -> "_Choice":
        """Returns the choice of one object."""
        return float(self.iou[index]), float(self.distances[index]), int(self.anchors[index])


# (IoU, distance, index) of an anchor.
_Choice: TypeAlias = tuple[float, float, int]


def _run_starts(objects: IntArray, count: int) -> IntArray:
    """Returns the first position of each of `count` objects in `objects`: ascending indices, each at least once."""
    return np.searchsorted(objects, np.arange(count))
