"""Late choices: what a stale object of a greedy assignment chose when its last choice was taken.

A late choice must equal the choice that the rule would have made immediately. Ties are not transitive, so that a choice
depends on the anchors that were free at that time. Therefore the turn in which each anchor was taken is stored, and a
late choice starts from a turn in which the object certainly chose:

    sorted by IoU, the anchors of an object form groups that are further apart than TIE
    a choice lies in the first group with a free anchor
    so the object chose when the last anchor of all groups before was taken

The anchors of many objects are ranked in one step. An object walks along its ranking, which takes a few microseconds.
Without a ranking, it computes its IoU with all anchors.
"""

import numpy as np

from ssd_dist.core.anchor_iou import Pairs
from ssd_dist.core.anchor_spots import TIE
from ssd_dist.core.assignment_turns import FREE, Turns, find_linked
from ssd_dist.core.ranked_anchors import RankedAnchors, rank_anchors

# The number of objects whose anchors are ranked in one step.
_BATCH = 64
# A ranking contains the anchors with an IoU above this share of the highest.
_DEPTH = 0.4
# Objects with a lower IoU are not ranked: their IoUs with thousands of anchors differ by about TIE.
_FAINT = 20 * TIE
# In smaller images, rankings take more time than they save.
_CROWD = 64


class LateChoices:
    """Makes late choices of the objects of one image.

    Attributes:
      cost: the time of all choices, in units of about 0.1 ms.
    """

    def __init__(self, turns: Turns) -> None:
        self.cost = 0.0
        self._turns = turns
        self._ranked: dict[int, RankedAnchors] = {}
        self._is_ranked = np.zeros(len(turns.boxes), bool)
        # Rankings cost credit, and their use earns it: if objects overlap with the same anchors, few rankings are used.
        self._credit = len(turns.boxes) // 4 if len(turns.boxes) > _CROWD else 0

    def forget(self, index: int) -> None:
        """Frees the memory of an object that has its anchors."""
        self._ranked.pop(index, None)

    def choose(self, index: int, top: float) -> None:
        """Sets the choice that the rule made for a stale object in the turn in which its last choice was taken.

        If the object cannot be a rival of objects with the IoU `top`, only its bound is lowered.
        """
        while self._turns.bound[index] > _FAINT:
            ranked = self._ranked.get(index)
            if ranked is not None:
                self._credit += 4
                self.cost += 0.05
            else:
                ranked = self._rank(index) if top > -np.inf else None
                if ranked is None:
                    break
            since = ranked.skip_taken(self._turns.turn_of, FREE, int(self._turns.since[index]))
            self._turns.since[index] = since
            if ranked.position < len(ranked.anchors):
                self._choose_ranked(index, ranked, since)
                return
            del self._ranked[index]
            self._is_ranked[index] = False
            if ranked.rest + TIE >= self._turns.bound[index]:
                break
            self._turns.bound[index] = ranked.rest + TIE
            if self._turns.bound[index] < top - TIE:
                return
        self._choose_by_row(index, top)

    def _choose_ranked(self, index: int, ranked: RankedAnchors, since: int) -> None:
        position = ranked.position
        stop = ranked.stops[position]
        if stop > 0:
            turn_of, top = self._turns.turn_of, ranked.iou[position]
            for other in range(position + 1, stop):
                if ranked.iou[other] > top and turn_of[ranked.anchors[other]] > since:
                    top = ranked.iou[other]
            self._turns.accept(index, top, ranked.distances[position], ranked.anchors[position])
            return
        anchors, iou = np.array(ranked.anchors[position:-stop]), np.array(ranked.iou[position:-stop])
        order = np.argsort(anchors)
        order = order[self._turns.taken_at[anchors[order]] > since]
        self._turns.set_choice(index, anchors[order], iou[order], since)

    def _rank(self, index: int) -> RankedAnchors | None:
        """Ranks the anchors of a stale object together with those of other objects that have no ranking.

        Returns None if this is not worth its time, because few of the last rankings were used.
        """
        if self._credit <= 0:
            return None
        highest = np.maximum(self._turns.bound, self._turns.iou)
        part = np.flatnonzero((highest > _FAINT) & ~self._is_ranked)
        highest = highest[part]
        if len(part) > _BATCH:
            highest[part.searchsorted(index)] = np.inf
            part = part[np.argpartition(highest, -_BATCH)[-_BATCH:]]
        self._is_ranked[part] = True
        self._credit -= len(part)
        self.cost += 2
        floors = _DEPTH * np.maximum(self._turns.bound[part], self._turns.iou[part])
        pairs = self._turns.grids.find_above(self._turns.grids.measure(self._turns.boxes[part]), floors)
        kept = (pairs.iou > floors[pairs.objects]) & (
            self._turns.taken_at[pairs.anchors] > self._turns.since[part[pairs.objects]]
        )
        pairs = Pairs(pairs.objects[kept], pairs.anchors[kept], pairs.iou[kept])
        self._ranked.update(
            zip(part.tolist(), rank_anchors(self._turns.spots, self._turns.centers[part], pairs, floors), strict=True)
        )
        return self._ranked[index]

    def _choose_by_row(self, index: int, top: float) -> None:
        self.cost += 2
        since = int(self._turns.since[index])
        iou = self._turns.grids.iou(self._turns.grids.measure(self._turns.boxes[index : index + 1]))[0]
        anchors = np.flatnonzero(self._turns.taken_at > since)
        iou, taken_at = iou[anchors], self._turns.taken_at[anchors]
        highest = float(iou[taken_at == FREE].max())
        if highest <= TIE and top > 3 * TIE:
            self._turns.bound[index] = min(self._turns.bound[index], 2 * TIE)
            return
        later = taken_at < FREE
        linked = find_linked(iou[later & (iou > highest)], highest)
        since = max(since, int(taken_at[later & (iou > linked)].max(initial=-1)))
        kept = (taken_at > since) & (iou >= highest - TIE)
        self._turns.set_choice(index, anchors[kept], iou[kept], since)
