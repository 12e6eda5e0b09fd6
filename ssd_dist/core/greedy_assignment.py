"""Assigns one anchor to each object of an image: greedy bipartite matching on the global maximum of IoU.

The rule, in turns:

    each waiting object has a choice: of the free anchors within TIE of its highest IoU, the one with the nearest center
    the rivals are the objects whose highest IoU is within TIE of the highest of all
    the rival whose choice has the nearest center wins and takes its choice
    the objects that had chosen the same anchor choose again among the free anchors

Applied literally, the rule takes as many choices as there are pairs of similar objects. Here an object whose choice was
taken becomes stale: it chooses again only when it could be a rival. Two kinds of upper bounds show which stale objects
could be: the former IoU of each object, and for each anchor the highest IoU with any waiting object.
`late_choices` explains and makes the late choices. If no waiting object overlaps with a free anchor, the distance alone
decides (`nearest_assignment`).
"""

from collections.abc import Iterator

import numpy as np

from ssd_dist.core.anchor_spots import TIE
from ssd_dist.core.assignment_turns import FREE, Turns
from ssd_dist.core.boxes import Float64Array, IntArray
from ssd_dist.core.late_choices import LateChoices
from ssd_dist.core.nearest_assignment import NearestAssignment
from ssd_dist.core.waiting_objects import Ranking

# The cost of the search for rivals after which it tries the other method, in units of about 0.1 ms.
_EFFORT = 16


class GreedyAssignment:
    """Assigns the anchors of one image, turn by turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._late = LateChoices(turns)
        self._highest: Float64Array | None = None
        # Whether an object has no IoU between 0 and 5 TIE with any anchor; known when `_highest` is.
        self._clear = np.zeros(len(turns.iou), bool)
        self._rankings: dict[int, Ranking] = {}
        self._search_by_anchor = False

    def run(self) -> IntArray:
        """Returns one distinct anchor for each box [B], or -1 if all anchors are taken before its turn."""
        turns = self._turns
        last = min(len(turns.assigned), len(turns.taken_at))
        while turns.turn < last:
            if len(turns.choosers) == len(turns.assigned) - turns.turn:
                # Each waiting object has a choice of its own, so that the order of the turns does not matter.
                waiting = turns.head >= 0
                turns.assigned[turns.head[waiting]] = turns.choice[waiting]
                break
            if not self._refresh_rivals():
                NearestAssignment(turns).run(last)
                break
            self._take(turns.pick_nearest(np.flatnonzero(turns.iou >= turns.iou.max() - TIE)))
        return turns.assigned

    def _take(self, winner: int) -> None:
        anchor = int(self._turns.choice[winner])
        self._turns.take(winner)
        if self._highest is not None:
            self._highest[anchor] = -np.inf
            self._rankings.pop(anchor, None)
        if self._turns.done[winner]:
            self._late.forget(winner)

    def _refresh_rivals(self) -> bool:
        """Lets stale objects choose until no other stale object can be a rival.

        Returns False if distance alone decides all later turns, because all waiting objects are rivals and all free
        anchors tie; else True.
        """
        top = float(self._turns.iou.max())
        highest_bound = float(self._turns.bound.max())
        if highest_bound < top - TIE:
            return True
        if top <= TIE and highest_bound <= 2 * TIE:
            return not self._are_all_tied()
        # Search by objects and by anchors in turn, each time for longer, and begin with the method that succeeded last.
        by_anchor, effort = self._search_by_anchor, _EFFORT
        while True:
            if by_anchor:
                candidates = self._find_candidates(top, effort)
                if candidates is not None:
                    for candidate in candidates:
                        self._late.choose(candidate, -np.inf)
                    break
            elif self._refresh_highest(top, effort):
                break
            by_anchor, effort = not by_anchor, 2 * effort
        self._search_by_anchor = by_anchor
        return float(self._turns.iou.max()) > TIE or self._turns.bound.max() > 2 * TIE or not self._are_all_tied()

    def _refresh_highest(self, top: float, effort: float) -> bool:
        """Lets the stale objects with the highest bounds choose; returns False if this takes more than `effort`."""
        limit = self._late.cost + effort
        while self._late.cost < limit:
            highest = float(self._turns.bound.max())
            if highest < top - TIE or (top <= TIE and highest <= 2 * TIE):
                return True
            for index in np.flatnonzero(self._turns.bound >= max(top, highest) - TIE).tolist():
                self._late.choose(index, top)
                top = max(top, float(self._turns.iou[index]))
                if self._late.cost >= limit:
                    break
        return False

    def _find_candidates(self, top: float, effort: int) -> list[int] | None:
        """Returns the stale objects that can be rivals, according to the upper bounds of the anchors.

        Returns None if this takes more than `effort` steps. If no IoU of a waiting object with a free anchor exceeds
        TIE, the result is empty.
        """
        highest = self._upper_bounds()
        visited: list[int] = []
        best = top
        cost = 0.0
        while cost < effort:
            anchor = int(highest.argmax())
            # The IoU of a rival was within TIE of the top; its present one is within another TIE.
            if highest[anchor] < best - 2.5 * TIE:
                break
            if max(best, highest[anchor]) <= 2.5 * TIE and (best > TIE or highest[anchor] <= TIE):
                for other in visited:
                    highest[other] = self._rankings[other].values[-1]
                self._lower_clear_bounds()
                if best <= TIE:
                    self._turns.bound[self._turns.bound > 2 * TIE] = 2 * TIE
                return np.flatnonzero(self._turns.bound >= best - TIE).tolist() if best > TIE else []
            ranking = self._rankings.get(anchor)
            if ranking is None or not ranking.drop_done(self._turns.done):
                ranking = self._rankings[anchor] = Ranking(self._column(anchor), self._turns.waiting().objects)
                cost += 1
            cost += 0.1
            best = max(best, ranking.values[-1])
            visited.append(anchor)
            highest[anchor] = -np.inf
        found: set[int] = set()
        floor = best - 2.5 * TIE
        for anchor in visited:
            ranking = self._rankings[anchor]
            highest[anchor] = ranking.values[-1]
            if ranking.rest >= floor:
                found.update(self._turns.waiting().objects[self._column(anchor) >= floor].tolist())
            else:
                for value, index in zip(reversed(ranking.values), reversed(ranking.objects), strict=True):
                    if value < floor:
                        break
                    found.add(index)
        if cost >= effort:
            return None
        return [index for index in found if self._turns.bound[index] >= best - TIE]

    def _upper_bounds(self) -> Float64Array:
        """Returns upper bounds [A] of the IoU of each anchor with the waiting objects; -inf for anchors not free."""
        if self._highest is None:
            self._highest = np.full(len(self._turns.taken_at), -np.inf)
            for part in split_indices(self._turns.waiting().objects, 8):
                rows = self._turns.grids.iou(self._turns.grids.measure(self._turns.boxes[part]))
                np.maximum(self._highest, rows.max(axis=0), out=self._highest)
                self._clear[part] = np.count_nonzero(rows, axis=1) == np.count_nonzero(rows > 5 * TIE, axis=1)
            self._highest[self._turns.taken_at < FREE] = -np.inf
        return self._highest

    def _column(self, anchor: int) -> Float64Array:
        return self._turns.waiting().iou(self._turns.grids.boxes[anchor], self._turns.grids.areas[anchor])

    def _are_all_tied(self) -> bool:
        """Returns whether all waiting objects are rivals and all free anchors tie.

        No waiting object has an IoU above 2.5 TIE with a free anchor, but it may have had one when it chose.
        """
        if self._turns.bound.max() > TIE:
            self._upper_bounds()
            self._lower_clear_bounds()
        for index in np.flatnonzero(self._turns.bound > TIE).tolist():
            self._late.choose(index, -np.inf)
        top = self._turns.iou.max()
        if top <= TIE:
            return True
        for index in np.flatnonzero(self._turns.bound >= top - TIE).tolist():
            self._late.choose(index, -np.inf)
        return False

    def _lower_clear_bounds(self) -> None:
        """Lowers bounds if no waiting object has an IoU above 2.5 TIE with a free anchor.

        The former IoU of a stale object is its IoU with some anchor, at most TIE above its present IoU. If it has no
        IoU between 0 and 5 TIE with any anchor, its former and its present IoU are 0.
        """
        self._turns.bound[(self._turns.bound > 0) & self._clear] = 0.0


def split_indices(indices: IntArray, size: int) -> Iterator[IntArray]:
    """Splits indices into parts of at most `size`."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
