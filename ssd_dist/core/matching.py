"""Which anchor answers for which object: the training targets of one image.

    IoU of objects with anchors, where it can matter
      -> each anchor to the object it overlaps most: positive above one bound, ignored in the band below it
      -> each object gets one anchor of its own, greedily on the global maximum, whatever its IoU
      -> offsets of the positives

Ties in IoU go to the nearer centre, then to the lower index. With first-index ties, matching would not commute with
the horizontal flip, and 45 % of small objects have tied anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ssd_dist.core.anchor_iou import AnchorGrids, Pairs
from ssd_dist.core.boxes import FloatArray, IntArray, encode_boxes
from ssd_dist.core.config import AnchorConfig, MatchingConfig

BoolArray: TypeAlias = npt.NDArray[np.bool_]
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
        self._grids = AnchorGrids(anchors, anchor_config)
        wide = anchors.astype(np.float64).T
        self._centers = np.stack([wide[0] + wide[2], wide[1] + wide[3]]) / 2

    def match(self, boxes: FloatArray, labels: IntArray, is_crowd: BoolArray | None = None) -> Targets:
        """Targets of the objects `boxes` [N, 4] with `labels` [N]; boxes of positive area, labels from 1.

        Crowd boxes give no positives: anchors of which they cover `negative_iou` or more are ignored (COCO's
        evaluation measures crowds by the same ratio, intersection over the detection's area).
        """
        return self.match_all([boxes], [labels], [np.zeros(len(boxes), bool) if is_crowd is None else is_crowd])[0]

    def match_all(
        self, boxes: Sequence[FloatArray], labels: Sequence[IntArray], is_crowd: Sequence[BoolArray]
    ) -> list[Targets]:
        """Targets of several images (one at least), each as `match` has them, at a fraction of the cost."""
        counts = np.array([len(own) for own in boxes])
        all_boxes, all_labels = np.concatenate(boxes), np.concatenate(labels).astype(np.int64)
        crowd = np.concatenate(is_crowd)
        # Image after image, each anchor has a slot: its own index plus that of the image's first.
        first_slots = np.arange(len(counts) + 1) * len(self._anchors)
        first_slot_of = np.repeat(first_slots[:-1], counts)
        covered = self._find_covered(all_boxes[crowd], first_slot_of[crowd])
        real = np.flatnonzero(~crowd)
        positive, owners, near = self._match_real(all_boxes[real], first_slot_of[real])
        owners = real[owners]
        # Only flags are kept for all slots: arrays of numbers would cost more than the matching.
        ignored = np.zeros(first_slots[-1], bool)
        ignored[covered] = ignored[near] = True
        ignored[positive] = False
        left_out = np.flatnonzero(ignored)
        anchors = positive % len(self._anchors)
        config = self._anchor_config
        offsets = encode_boxes(all_boxes[owners], self._anchors[anchors], config.center_variance, config.size_variance)
        first_objects = np.cumsum(counts) - counts
        ends, left_out_ends = (np.searchsorted(slots, first_slots).tolist() for slots in (positive, left_out))
        return [
            Targets(
                anchors=anchors[start:end],
                labels=all_labels[owners[start:end]],
                offsets=offsets[start:end],
                ignored=left_out[left_out_ends[image] : left_out_ends[image + 1]] - first_slots[image],
                objects=owners[start:end] - first_objects[image],
            )
            for image, (start, end) in enumerate(pairwise(ends))
        ]

    def best_iou(self, boxes: FloatArray) -> Float64Array:
        """The highest IoU [N] that any anchor reaches with each of boxes [N, 4]."""
        if not len(boxes):
            return np.zeros(0)
        pairs = self._grids.find_pairs(self._grids.measure(boxes), 1.0, TIE)
        return np.asarray(np.maximum.reduceat(pairs.iou, _run_starts(pairs.objects, len(boxes))))

    def _find_covered(self, crowds: FloatArray, first_slots: IntArray) -> IntArray:
        """Slots of the anchors that crowds [N, 4] cover."""
        if not len(crowds):
            return np.zeros(0, np.int64)
        covered = self._grids.cover(self._grids.measure(crowds)) >= self._config.negative_iou - TIE
        crowd, anchor = np.nonzero(covered)
        return np.asarray(first_slots[crowd] + anchor)

    def _match_real(self, boxes: FloatArray, first_slots: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Positive slots, ascending, with the objects [N, 4] they answer for; and all slots above the lower bound."""
        if not len(boxes):
            return (np.zeros(0, np.int64),) * 3
        objects = _Objects(boxes, first_slots, self._grids)
        pairs = self._grids.find_pairs(objects.spans, self._config.negative_iou, TIE)
        slots = objects.first_slots[pairs.objects] + pairs.anchors
        forced = self._assign_one_each(objects, pairs)
        found = np.flatnonzero(forced >= 0)
        claims = self._find_claims(objects, pairs, slots) if self._config.policy == "multi" else found[:0]
        # Of several entries for a slot the first stays: what is forced, then the first object that claims it.
        owners = np.concatenate([found, pairs.objects[claims]])
        positive, first = np.unique(
            np.concatenate([objects.first_slots[found] + forced[found], slots[claims]]), return_index=True
        )
        return positive, owners[first], slots[pairs.iou >= self._config.negative_iou - TIE]

    def _find_claims(self, objects: "_Objects", pairs: Pairs, slots: IntArray) -> IntArray:
        """Pairs by index, by which an object gets an anchor: the best of the anchor, and above the upper bound.

        Of equals the nearest claim it; those of one slot come in the order of the objects.
        """
        bound = self._config.positive_iou
        # Less than a tie below the best, which must exceed the bound by a tie.
        high = np.flatnonzero(pairs.iou > bound)
        if not len(high):
            return high
        high = high[np.argsort(slots[high], kind="stable")]
        iou, slot = pairs.iou[high], slots[high]
        starts = np.flatnonzero(np.diff(slot, prepend=-1))
        run = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(slot)))
        best = np.maximum.reduceat(iou, starts)[run]
        able = (iou >= best - TIE) & (best > bound + TIE)
        distance = self._distances(objects.centers[pairs.objects[high]], pairs.anchors[high])
        distance[~able] = np.inf
        nearest = np.minimum.reduceat(distance, starts)[run]
        return high[able & (distance <= nearest + TIE)]

    def _distances(self, centers: Float64Array, anchors: IntArray) -> Float64Array:
        """Distances [K] of centres [K, 2], or of one, from those of anchors [K].

        Not squared: a tolerance on squares would take anchors for tied that differ by 20 times the float32 error.
        """
        return np.asarray(
            np.hypot(centers[..., 0] - self._centers[0, anchors], centers[..., 1] - self._centers[1, anchors])
        )

    def _assign_one_each(self, objects: "_Objects", pairs: Pairs) -> IntArray:
        """An anchor of its own for each object [N]: greedy bipartite matching on the global maximum of IoU.

        An object left without (-1) exists only if an image has more objects than anchors.
        """
        choices = self._choose_first(objects, pairs)
        slots = objects.first_slots + choices.anchors
        assigned = choices.anchors.copy()
        chosen, wanted = np.unique(slots, return_counts=True)
        # Who shares a first choice with nobody in the image gets it in whatever order.
        for image in np.unique(chosen[wanted > 1] // len(self._anchors)):
            members = np.flatnonzero(objects.first_slots == image * len(self._anchors))
            self._assign_in_turn(objects, choices, members, assigned)
        return assigned

    def _assign_in_turn(self, objects: "_Objects", choices: "_Choices", members: IntArray, assigned: IntArray) -> None:
        """Assigns the objects `members` of one image, the best first; who comes too late chooses again."""
        assigned[members] = -1
        taken: set[int] = set()
        waiting = {index: choices.of(index) for index in members.tolist()}
        while waiting and len(taken) < len(self._anchors):
            top = max(choice[0] for choice in waiting.values())
            rivals = {index: choice[1] for index, choice in waiting.items() if choice[0] >= top - TIE}
            nearest = min(rivals.values())
            winner = min(index for index, distance in rivals.items() if distance <= nearest + TIE)
            anchor = waiting.pop(winner)[2]
            assigned[winner] = anchor
            taken.add(anchor)
            # Boxes that coincide choose alike; a thousand of them would take half a minute one by one.
            alike: dict[bytes, _Choice] = {}
            for index, choice in waiting.items():
                if choice[2] == anchor and len(taken) < len(self._anchors):
                    box = objects.boxes[index].tobytes()
                    if box not in alike:
                        alike[box] = self._choose_again(objects, index, taken)
                    waiting[index] = alike[box]

    def _choose_first(self, objects: "_Objects", pairs: Pairs) -> "_Choices":
        """For each object the anchor that suits it best, among equals the nearest, the first; two may want the same."""
        count = len(objects.centers)
        top = np.maximum.reduceat(pairs.iou, _run_starts(pairs.objects, count))
        tied = np.flatnonzero(pairs.iou >= top[pairs.objects] - TIE)
        owners, anchors = pairs.objects[tied], pairs.anchors[tied]
        distance = self._distances(objects.centers[owners], anchors)
        nearest = np.minimum.reduceat(distance, _run_starts(owners, count))
        near = np.flatnonzero(distance <= nearest[owners] + TIE)
        chosen = np.minimum.reduceat(anchors[near], _run_starts(owners[near], count))
        return _Choices(top, self._distances(objects.centers, chosen), chosen)

    def _choose_again(self, objects: "_Objects", index: int, taken: set[int]) -> "_Choice":
        """The free anchor that suits one object best, among all anchors."""
        iou = self._grids.iou(objects.spans.of(index))[0]
        iou[list(taken)] = -1.0
        top = float(iou.max())
        tied = np.flatnonzero(iou >= top - TIE)
        distance = self._distances(objects.centers[index], tied)
        nearest = int(np.argmax(distance <= distance.min() + TIE))
        return top, float(distance[nearest]), int(tied[nearest])


class _Objects:
    """The objects to be matched, of all images: boxes [N, 4], centres [N, 2], first slots [N] of the images, spans."""

    def __init__(self, boxes: FloatArray, first_slots: IntArray, grids: AnchorGrids) -> None:
        wide = boxes.astype(np.float64)
        self.boxes = boxes
        self.centers = (wide[:, :2] + wide[:, 2:]) / 2
        self.first_slots = first_slots
        self.spans = grids.measure(boxes)


@dataclass(frozen=True)
class _Choices:
    """For each object [N] the IoU, the distance and the index of one anchor."""

    iou: Float64Array
    distances: Float64Array
    anchors: IntArray

    def of(self, index: int) -> "_Choice":
        """The choice of one object."""
        return float(self.iou[index]), float(self.distances[index]), int(self.anchors[index])


# (IoU, distance, index) of an anchor.
_Choice: TypeAlias = tuple[float, float, int]


def _run_starts(objects: IntArray, count: int) -> IntArray:
    """Where the run of each of `count` objects starts, in ascending numbers that miss none."""
    return np.searchsorted(objects, np.arange(count))
