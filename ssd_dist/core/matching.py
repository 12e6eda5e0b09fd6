"""Assigns anchors to ground-truth objects: the training targets of one image.

    compute the IoU of objects and anchors (only of pairs that can matter)
      -> assign each anchor to the object with the highest IoU: positive above one bound, ignored in the band below it
      -> assign one more anchor to each object, greedily by the highest IoU of all pairs, however low it is
      -> encode the offsets of the positive anchors

Ties in IoU go to the nearer center, then to the lower index. If ties went to the first index only, matching would not
commute with the horizontal flip: 45 % of small objects have tied anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ssd_dist.core.anchor_iou import AnchorGrids, Pairs
from ssd_dist.core.anchor_spots import TIE, AnchorSpots
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.assignment_turns import Turns
from ssd_dist.core.boxes import BoolArray, Float64Array, FloatArray, IntArray, encode_boxes
from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.greedy_assignment import GreedyAssignment, split_indices

# The number of objects whose pairs with anchors are computed together.
_CHUNK = 256


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
        self._spots = AnchorSpots(np.stack([wide[0] + wide[2], wide[1] + wide[3]]) / 2)
        # Objects of at most this area have an IoU below TIE with every anchor. All anchors tie for them, so that their
        # pairs need not be computed. (With a lower bound near 0 all pairs are needed.)
        self._faint_area = 0.9 * TIE * self._grids.areas.min() if config.negative_iou > 3 * TIE else -1.0

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
        # Only flags are stored for all slots; arrays of numbers would cost more time than the matching.
        ignored = np.zeros(first_slots[-1], bool)
        self._ignore_covered(all_boxes[crowd], first_slot_of[crowd], ignored)
        real = np.flatnonzero(~crowd)
        positive, owners = self._match_real(all_boxes[real], first_slot_of[real], ignored)
        owners = real[owners]
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
        highest = []
        for part in split_indices(np.arange(len(boxes)), _CHUNK):
            # The highest IoU of a box that is much smaller than a pixel is below TIE.
            pairs = self._grids.find_pairs(self._grids.measure(boxes[part]), 1.0, 1e-12)
            highest.append(np.maximum.reduceat(pairs.iou, _run_starts(pairs.objects, len(part))))
        return np.concatenate(highest)

    def _ignore_covered(self, crowds: FloatArray, first_slots: IntArray, ignored: BoolArray) -> None:
        """Sets `ignored` for anchors that crowds [N, 4] cover; `first_slots` [N]: first slot of each image."""
        for part in split_indices(np.arange(len(crowds)), _CHUNK):
            covered = self._grids.cover(self._grids.measure(crowds[part])) >= self._config.negative_iou - TIE
            crowd, anchor = np.nonzero(covered)
            ignored[first_slots[part[crowd]] + anchor] = True

    def _match_real(self, boxes: FloatArray, first_slots: IntArray, ignored: BoolArray) -> tuple[IntArray, IntArray]:
        """Matches objects [N, 4] that are not crowds; sets `ignored` for slots with an IoU of at least `negative_iou`.

        Returns:
          The positive slots [P], ascending, and the object of each [P].
        """
        if not len(boxes):
            return (np.zeros(0, np.int64),) * 2
        wide = boxes.astype(np.float64)
        objects = _Objects(boxes, (wide[:, :2] + wide[:, 2:]) / 2, first_slots)
        areas = (wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1])
        faint = areas <= self._faint_area
        choices = _Choices.empty(len(boxes))
        claims = []
        # In parts, so that crowded images do not need more memory.
        for part in split_indices(np.flatnonzero(~faint), _CHUNK):
            pairs = self._grids.find_pairs(self._grids.measure(boxes[part]), self._config.negative_iou, TIE)
            self._choose_first(objects, part, pairs, choices)
            slots = first_slots[part][pairs.objects] + pairs.anchors
            ignored[slots[pairs.iou >= self._config.negative_iou - TIE]] = True
            if self._config.policy == "multi":
                # Sufficient: ties are within TIE of the best pair of the anchor, which must exceed the bound by more.
                high = np.flatnonzero(pairs.iou > self._config.positive_iou)
                claims.append(_Claims(part[pairs.objects[high]], slots[high], pairs.iou[high]))
        for part in split_indices(np.flatnonzero(faint), _CHUNK):
            choices.distances[part], choices.anchors[part] = self._spots.find_nearest(objects.centers[part])
        forced = self._assign_one_each(objects, choices)
        assigned = np.flatnonzero(forced >= 0)
        owners, slots = self._settle_claims(objects, claims)
        # np.unique keeps the first entry of a slot: the forced assignment, then the first object that claims it.
        positive, first = np.unique(
            np.concatenate([first_slots[assigned] + forced[assigned], slots]), return_index=True
        )
        return positive, np.concatenate([assigned, owners])[first]

    def _settle_claims(self, objects: "_Objects", parts: "list[_Claims]") -> tuple[IntArray, IntArray]:
        """Assigns each slot to the object with the highest IoU, if that IoU exceeds `positive_iou`.

        Ties go to the object whose center is nearest. If objects still tie, the slot is returned once for each of them.

        Returns:
          The objects [K] and the slots [K], ordered by slot, then by object.
        """
        if not any(len(part.objects) for part in parts):
            return (np.zeros(0, np.int64),) * 2
        owners, slots, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(slots, kind="stable")
        owners, slots, iou = owners[order], slots[order], iou[order]
        starts = np.flatnonzero(np.diff(slots, prepend=-1))
        run = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(slots)))
        best = np.maximum.reduceat(iou, starts)[run]
        eligible = (iou >= best - TIE) & (best > self._config.positive_iou + TIE)
        distance = self._spots.distances(objects.centers[owners], slots % len(self._anchors))
        distance[~eligible] = np.inf
        nearest = np.minimum.reduceat(distance, starts)[run]
        taken = eligible & (distance <= nearest + TIE)
        return owners[taken], slots[taken]

    def _assign_one_each(self, objects: "_Objects", choices: "_Choices") -> IntArray:
        """Returns one distinct anchor for each object [N]: greedy bipartite matching on the global maximum of IoU.

        It is -1 for objects without an anchor, which exist only if an image has more objects than anchors.
        """
        slots = objects.first_slots + choices.anchors
        assigned = choices.anchors.copy()
        chosen, choosers = np.unique(slots, return_counts=True)
        # In images without a contested anchor every object gets its first choice; the order does not matter.
        for image in np.unique(chosen[choosers > 1] // len(self._anchors)):
            members = np.flatnonzero(objects.first_slots == image * len(self._anchors))
            first = (choices.iou[members], choices.distances[members], choices.anchors[members])
            assigned[members] = GreedyAssignment(Turns(self._grids, self._spots, objects.boxes[members], first)).run()
        return assigned

    def _choose_first(self, objects: "_Objects", part: IntArray, pairs: Pairs, choices: "_Choices") -> None:
        """Sets the choices of the objects `part` [K]: the best anchor of their pairs.

        Ties go to the nearer center, then to the lower index. Several objects may choose the same anchor.
        """
        count, centers = len(part), objects.centers[part]
        top = np.maximum.reduceat(pairs.iou, _run_starts(pairs.objects, count))
        tied = np.flatnonzero(pairs.iou >= top[pairs.objects] - TIE)
        owners, anchors = pairs.objects[tied], pairs.anchors[tied]
        distance = self._spots.distances(centers[owners], anchors)
        nearest = np.minimum.reduceat(distance, _run_starts(owners, count))
        near = np.flatnonzero(distance <= nearest[owners] + TIE)
        chosen = np.minimum.reduceat(anchors[near], _run_starts(owners[near], count))
        choices.iou[part] = top
        choices.distances[part] = self._spots.distances(centers, chosen)
        choices.anchors[part] = chosen


@dataclass(frozen=True)
class _Objects:
    """The objects of all images: boxes [N, 4], centers [N, 2], and first slots [N] of their images."""

    boxes: FloatArray
    centers: Float64Array
    first_slots: IntArray


@dataclass(frozen=True)
class _Choices:
    """The first choice of each object [N]: its highest IoU, and the center distance and the index of its anchor.

    The IoU is -inf for objects so small that it is at most TIE and is not computed.
    """

    iou: Float64Array
    distances: Float64Array
    anchors: IntArray

    @classmethod
    def empty(cls, count: int) -> "_Choices":
        """Returns initial values for `count` objects."""
        return cls(np.full(count, -np.inf), np.zeros(count), np.zeros(count, np.int64))


class _Claims(NamedTuple):
    """Pairs of an object and a slot [K] whose IoU exceeds `positive_iou`."""

    objects: IntArray
    slots: IntArray
    iou: Float64Array


def _run_starts(objects: IntArray, count: int) -> IntArray:
    """Returns the first position of each index below `count` in `objects`, which is sorted and contains each."""
    return np.searchsorted(objects, np.arange(count))
