"""Assigns one anchor to each object of an image: greedy bipartite matching on the global maximum of IoU.

The rule, in turns:

    each waiting object has a choice: of the free anchors within TIE of its highest IoU, the one with the nearest centre
    the rivals are the objects whose highest IoU is within TIE of the highest of all
    the rival whose choice has the nearest centre wins and takes its choice
    the objects that had chosen the same anchor choose again among the free anchors

Applied literally, the rule takes as many choices as there are pairs of similar objects. Here an object whose choice was
taken becomes stale: it chooses again only when it could be a rival. Two kinds of upper bounds show which stale objects
could be: the former IoU of each object, and for each anchor the highest IoU with any waiting object.

A late choice must equal the choice that the rule would have made immediately. Ties are not transitive, so that a choice
depends on the anchors that were free at that time. Therefore the turn in which each anchor was taken is stored, and a
late choice starts from a turn in which the object certainly chose:

    sorted by IoU, the anchors of an object form groups that are further apart than TIE
    a choice lies in the first group with a free anchor
    so the object chose when the last anchor of all groups before was taken

If no waiting object overlaps with a free anchor, the distance alone decides; the same argument holds for distances.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ssd_dist.core.anchor_iou import AnchorGrids
from ssd_dist.core.anchor_spots import TIE, AnchorSpots
from ssd_dist.core.boxes import FloatArray, IntArray
from ssd_dist.core.waiting_objects import RANKED, Ranking, WaitingBoxes

Float64Array = npt.NDArray[np.float64]

# The turn in which an anchor is taken if it is still free.
_FREE = np.iinfo(np.int64).max
# The number of steps that the search for rivals takes before it tries the other method.
_EFFORT = 8


class _NearAnchors(NamedTuple):
    """Anchors [K], ascending, with the IoU [K] of one object; its IoU with all others that matter is at most `rest`."""

    anchors: IntArray
    iou: Float64Array
    rest: float


class GreedyAssignment:
    """Assigns the anchors of one image, turn by turn.

    Identical boxes are one object with several members, because all of them have the same choice in every turn.
    """

    def __init__(
        self,
        grids: AnchorGrids,
        spots: AnchorSpots,
        boxes: FloatArray,
        choices: tuple[Float64Array, Float64Array, IntArray],
    ) -> None:
        """Starts before the first turn.

        Args:
          grids: the anchors.
          spots: their centres.
          boxes: float32 [N, 4].
          choices: the first choice of each box: its highest IoU [N] (-inf if it is at most TIE and was not
            computed), and the distance [N] and the index [N] of its anchor.
        """
        self._grids = grids
        self._spots = spots
        self._members = _group_identical(boxes)
        self._assigned = np.full(len(boxes), -1, np.int64)
        first = np.array([members[-1] for members in self._members])
        self._head = first.copy()
        self._boxes = boxes[first]
        wide = self._boxes.astype(np.float64)
        self._centers = (wide[:, :2] + wide[:, 2:]) / 2
        # Whether all members of an object have their anchors.
        self._done = bytearray(len(first))
        iou, distance, anchor = choices
        # The IoU is -inf if an object is stale or done; the bound is -inf if it is not stale.
        self._iou = iou[first].copy()
        known = self._iou > -np.inf
        self._distance = np.where(known, distance[first], np.inf)
        self._choice = anchor[first].copy()
        self._bound = np.where(known, -np.inf, TIE)
        # The turn in which the choice of a stale object was taken.
        self._since = np.full(len(first), -1, np.int64)
        # The objects that are not stale by their choice.
        self._choosers: dict[int, list[int]] = {}
        for index in np.flatnonzero(known).tolist():
            self._choosers.setdefault(int(self._choice[index]), []).append(index)
        # The turn in which each anchor was taken, and the anchors in the order of turns.
        self._taken_at = np.full(len(grids.areas), _FREE, np.int64)
        self._order = np.empty(len(grids.areas), np.int64)
        # Subtracted from IoUs, it makes those of taken anchors negative.
        self._penalty = np.zeros(len(grids.areas))
        self._turn = 0
        self._highest: Float64Array | None = None
        self._rankings: dict[int, Ranking] = {}
        self._near: dict[int, _NearAnchors] = {}
        self._search_by_anchor = False
        self._packed: WaitingBoxes | None = None

    def run(self) -> IntArray:
        """Returns one distinct anchor for each box [N], or -1 if all anchors are taken before its turn."""
        turns = min(len(self._assigned), len(self._taken_at))
        pause = skipped = 0
        while self._turn < turns:
            # The pauses grow while there is nothing to gain, as in crowded images.
            if skipped < pause:
                skipped += 1
            elif self._highest is None:
                pause = 0 if self._take_undisputed() else 2 * pause + 1
                skipped = 0
            if len(self._choosers) == len(self._assigned) - self._turn:
                # Each waiting object has a choice of its own, so that the order of the turns does not matter.
                waiting = self._head >= 0
                self._assigned[self._head[waiting]] = self._choice[waiting]
                break
            if not self._refresh_rivals():
                self._run_nearest(turns)
                break
            top = self._iou.max()
            self._take(self._pick_nearest(np.flatnonzero(self._iou >= top - TIE)))
        return self._assigned

    def _take_undisputed(self) -> int:
        """Makes several turns in one step, until a turn has several rivals or several objects with the same choice.

        Returns the number of turns.
        """
        order = np.argsort(-self._iou)
        iou = self._iou[order]
        disputed = iou <= max(float(self._bound.max()) + TIE, 3 * TIE)
        disputed[:-1] |= iou[1:] >= iou[:-1] - TIE
        count = 0
        for index, stop in zip(order.tolist(), disputed.tolist(), strict=True):
            choice = int(self._choice[index])
            if stop or len(self._choosers[choice]) > 1 or len(self._members[index]) > 1:
                break
            count += 1
        winners = order[:count]
        anchors = self._choice[winners]
        self._order[self._turn : self._turn + count] = anchors
        self._taken_at[anchors] = self._turn + np.arange(count)
        self._turn += count
        self._penalty[anchors] = 2.0
        self._assigned[self._head[winners]] = anchors
        self._iou[winners] = -np.inf
        self._distance[winners] = np.inf
        self._head[winners] = -1
        for index, anchor in zip(winners.tolist(), anchors.tolist(), strict=True):
            del self._choosers[anchor]
            self._near.pop(index, None)
            self._done[index] = True
        return count

    def _pick_nearest(self, rivals: IntArray) -> int:
        if len(rivals) == 1:
            return int(rivals[0])
        distance = self._distance[rivals]
        near = rivals[distance <= distance.min() + TIE]
        return int(near[self._head[near].argmin()])

    def _take(self, winner: int) -> None:
        """Gives the winner its choice; all objects with the same choice become stale."""
        anchor = int(self._choice[winner])
        self._order[self._turn] = anchor
        self._taken_at[anchor] = self._turn
        self._penalty[anchor] = 2.0
        if self._highest is not None:
            self._highest[anchor] = -np.inf
            self._rankings.pop(anchor, None)
        members = self._members[winner]
        self._assigned[members.pop()] = anchor
        losers = self._choosers.pop(anchor)
        self._bound[losers] = self._iou[losers]
        self._iou[losers] = -np.inf
        self._distance[losers] = np.inf
        self._since[losers] = self._turn
        self._turn += 1
        if members:
            self._head[winner] = members[-1]
            return
        self._bound[winner] = -np.inf
        self._head[winner] = -1
        self._near.pop(winner, None)
        self._done[winner] = True
        if self._packed is not None and not self._packed.remove(winner):
            self._packed = None

    def _refresh_rivals(self) -> bool:
        """Lets stale objects choose until no other stale object can be a rival.

        Returns False if distance alone decides all later turns, because all waiting objects are rivals and all free
        anchors tie; else True.
        """
        top = float(self._iou.max())
        highest_bound = float(self._bound.max())
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
                        self._choose(candidate, -np.inf)
                    break
            else:
                for _ in range(2 * effort):
                    index = int(self._bound.argmax())
                    if self._bound[index] < top - TIE or (top <= TIE and self._bound[index] <= 2 * TIE):
                        break
                    self._choose(index, top)
                    top = max(top, float(self._iou[index]))
                else:
                    by_anchor = True
                    continue
                break
            by_anchor, effort = False, 2 * effort
        self._search_by_anchor = by_anchor
        return float(self._iou.max()) > TIE or self._bound.max() > 2 * TIE or not self._are_all_tied()

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
                    self._bound[self._bound > 2 * TIE] = 2 * TIE
                return np.flatnonzero(self._bound >= best - TIE).tolist() if best > TIE else []
            ranking = self._rankings.get(anchor)
            if ranking is None or not ranking.drop_assigned(self._done):
                ranking = self._rankings[anchor] = Ranking(self._column(anchor), self._waiting().objects)
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
                found.update(self._waiting().objects[self._column(anchor) >= floor].tolist())
            else:
                for value, index in zip(reversed(ranking.values), reversed(ranking.objects), strict=True):
                    if value < floor:
                        break
                    found.add(index)
        if cost >= effort:
            return None
        return [index for index in found if self._bound[index] >= best - TIE]

    def _upper_bounds(self) -> Float64Array:
        """Returns upper bounds [A] of the IoU of each anchor with the waiting objects; -inf for anchors not free."""
        if self._highest is None:
            self._highest = np.full(len(self._taken_at), -np.inf)
            self._clear = np.zeros(len(self._iou), bool)
            for part in split_indices(self._waiting().objects, 8):
                rows = self._grids.iou(self._grids.measure(self._boxes[part]))
                np.maximum(self._highest, rows.max(axis=0), out=self._highest)
                self._clear[part] = np.count_nonzero(rows, axis=1) == np.count_nonzero(rows > 5 * TIE, axis=1)
            self._highest[self._order[: self._turn]] = -np.inf
        return self._highest

    def _waiting(self) -> WaitingBoxes:
        if self._packed is None:
            self._packed = WaitingBoxes(np.flatnonzero(self._head >= 0), self._boxes)
        return self._packed

    def _column(self, anchor: int) -> Float64Array:
        return self._waiting().iou(self._grids.boxes[anchor], self._grids.areas[anchor])

    def _choose(self, index: int, top: float) -> None:
        """Sets the choice that the rule made for a stale object in the turn in which its last choice was taken.

        If its IoU is 0 with all free anchors and far below `top`, only its bound is lowered.
        """
        since = int(self._since[index])
        near = self._near.get(index)
        highest = -np.inf
        if near is not None:
            free = near.iou - self._penalty[near.anchors]
            highest = float(free.max())
        if near is None or highest < near.rest + 3 * TIE:
            near = self._find_near(index)
            free = near.iou - self._penalty[near.anchors]
            highest = float(free.max())
        if highest <= TIE and top > 3 * TIE:
            self._bound[index] = min(self._bound[index], 2 * TIE)
            return
        taken_at = self._taken_at[near.anchors]
        later = (taken_at > since) & (taken_at < _FREE)
        above = later & (near.iou > highest)
        linked = _link(near.iou[above], highest)
        members = near.anchors[free >= highest - TIE]
        if len(members) == 1 and linked == highest:
            # Whenever the object chose this anchor, it had the highest IoU.
            distance = self._spots.distances(self._centers[index], members)
            self._accept(index, highest, distance[0], int(members[0]))
            return
        since = max(since, int(taken_at[later & (near.iou > linked)].max(initial=-1)))
        kept = (taken_at > since) & (near.iou >= highest - TIE)
        self._set_choice(index, near.anchors[kept], near.iou[kept], since)

    def _find_near(self, index: int) -> "_NearAnchors":
        """Returns the anchors with the highest IoU among those that were free when an object became stale."""
        iou = self._grids.iou(self._grids.measure(self._boxes[index : index + 1]))[0]
        highest = float((iou - self._penalty).max())
        rest = 0.6 * highest if highest > 100 * TIE else -1.0
        kept = (iou > rest) & (self._taken_at > self._since[index])
        anchors = np.flatnonzero(kept)
        near = _NearAnchors(anchors, iou[anchors], rest)
        if rest > 0:
            self._near[index] = near
        return near

    def _set_choice(self, index: int, members: IntArray, iou: Float64Array, since: int) -> None:
        """Sets the choice among members, anchors that were free after the turn `since`, in which the object chose."""
        everyone, everyone_iou = members, iou
        taken_at = self._taken_at[members]
        if len(members) > RANKED and iou.min() >= iou.max() - TIE:
            # All members tie in every turn, so that only the distances matter.
            y, x = self._spots.anchor_centers[:, members]
            distance = np.sqrt(np.square(y - self._centers[index, 0]) + np.square(x - self._centers[index, 1]))
            nearest = distance[taken_at == _FREE].min()
            lower = -_link(-distance[distance < nearest], -nearest)
            since = max(since, int(taken_at[distance < lower].max(initial=-1)))
            near = (distance >= lower) & (distance <= nearest + 2 * TIE) & (taken_at > since)
            members, iou, taken_at = members[near], iou[near], taken_at[near]
        distance = self._spots.distances(self._centers[index], members)
        while True:
            open_members = taken_at > since
            top = iou[open_members].max()
            tied = open_members & (iou >= top - TIE)
            nearest = distance[tied].min()
            position = int((tied & (distance <= nearest + TIE)).argmax())
            if taken_at[position] == _FREE:
                break
            since = int(taken_at[position])
        if len(members) < len(everyone):
            top = everyone_iou[self._taken_at[everyone] > since].max()
        self._accept(index, top, distance[position], int(members[position]))

    def _accept(self, index: int, iou: float, distance: float, anchor: int) -> None:
        self._iou[index] = iou
        self._distance[index] = distance
        self._choice[index] = anchor
        self._bound[index] = -np.inf
        self._choosers.setdefault(anchor, []).append(index)

    def _are_all_tied(self) -> bool:
        """Returns whether all waiting objects are rivals and all free anchors tie.

        No waiting object has an IoU above 2.5 TIE with a free anchor, but it may have had one when it chose.
        """
        if self._bound.max() > TIE:
            self._upper_bounds()
            self._lower_clear_bounds()
        for index in np.flatnonzero(self._bound > TIE).tolist():
            self._choose(index, -np.inf)
        top = self._iou.max()
        if top <= TIE:
            return True
        for index in np.flatnonzero(self._bound >= top - TIE).tolist():
            self._choose(index, -np.inf)
        return False

    def _lower_clear_bounds(self) -> None:
        """Lowers bounds if no waiting object has an IoU above 2.5 TIE with a free anchor.

        The former IoU of a stale object is its IoU with some anchor, at most TIE above its present IoU. If it has no
        IoU between 0 and 5 TIE with any anchor, its former and its present IoU are 0.
        """
        self._bound[(self._bound > 0) & self._clear] = 0.0

    def _run_nearest(self, turns: int) -> None:
        """Makes the remaining turns, in which the distance alone decides."""
        centers = self._spots.centers.copy()
        self._anchor_centers = self._spots.anchor_centers.T.tolist()
        # The free anchors of each spot, descending.
        free = [anchors[self._taken_at[anchors] == _FREE][::-1].tolist() for anchors in self._spots.anchors]
        # Lower bounds of the distance of each spot to the waiting objects.
        bounds = np.zeros(len(free))
        for spot, anchors in enumerate(free):
            if not anchors:
                bounds[spot] = centers[:, spot] = np.inf
        rankings: dict[int, Ranking] = {}
        while self._turn < turns:
            nearest = float(self._distance.min())
            visited: list[int] = []
            while True:
                spot = int(bounds.argmin())
                if bounds[spot] > nearest + 3 * TIE or bounds[spot] == np.inf:
                    break
                ranking = rankings.get(spot)
                if ranking is None or not ranking.drop_assigned(self._done):
                    ranking = rankings[spot] = Ranking(-self._spot_column(spot), self._waiting().objects)
                    ranking.drop_assigned(self._done)
                bounds[spot] = np.inf
                visited.append(spot)
                for value, index in zip(reversed(ranking.values), reversed(ranking.objects), strict=True):
                    if -value > nearest + 3 * TIE:
                        break
                    if self._bound[index] > -np.inf:
                        nearest = min(nearest, self._choose_nearest(index, centers, free))
                else:
                    if -ranking.rest <= nearest + 3 * TIE:
                        for index in self._waiting().objects[self._spot_column(spot) <= nearest + 3 * TIE].tolist():
                            if self._bound[index] > -np.inf:
                                nearest = min(nearest, self._choose_nearest(index, centers, free))
            for spot in visited:
                bounds[spot] = -rankings[spot].values[-1]
            winner = self._pick_nearest(np.flatnonzero(self._distance <= nearest + TIE))
            anchor = int(self._choice[winner])
            spot = int(self._spots.spot_of[anchor])
            self._take(winner)
            free[spot].remove(anchor)
            if not free[spot]:
                bounds[spot] = centers[:, spot] = np.inf

    def _spot_column(self, spot: int) -> Float64Array:
        y, x = self._spots.centers[:, spot].tolist()
        return self._waiting().distances(y, x)

    def _choose_nearest(self, index: int, centers: Float64Array, free: list[list[int]]) -> float:
        """Lets a stale object choose by distance alone; returns the distance.

        The choice lies within TIE of the nearest free anchor. If all free anchors within this distance belong to one
        spot, they tie, and the choice is the one with the lowest index. The result does not depend on the turn in which
        the object chose.
        """
        y, x = self._centers[index].tolist()
        distance = np.square(centers[0] - y)
        distance += np.square(centers[1] - x)
        spot = int(distance.argmin())
        near = np.count_nonzero(distance <= (math.sqrt(distance[spot]) + 3 * TIE) ** 2)
        if near > 1:
            return self._choose_among_spots(index)
        anchor = free[spot][-1]
        anchor_y, anchor_x = self._anchor_centers[anchor]
        result = float(np.hypot(y - anchor_y, x - anchor_x))
        self._accept(index, 0.0, result, anchor)
        return result

    def _choose_among_spots(self, index: int) -> float:
        """Lets a stale object choose by distance alone if several spots are near; returns the distance."""
        # The object chose by distance alone from the turn in which the last anchor with an IoU above TIE was taken.
        iou = self._grids.iou(self._grids.measure(self._boxes[index : index + 1]))[0]
        since = max(int(self._since[index]), int(self._taken_at[iou > TIE].max(initial=-1)))
        members = np.flatnonzero(self._taken_at > since)
        y, x = self._spots.anchor_centers[:, members]
        distance = np.sqrt(np.square(y - self._centers[index, 0]) + np.square(x - self._centers[index, 1]))
        taken_at = self._taken_at[members]
        nearest = distance[taken_at == _FREE].min()
        lower = -_link(-distance[distance < nearest], -nearest, 3 * TIE)
        since = max(since, int(taken_at[distance < lower].max(initial=-1)))
        members = members[(distance >= lower) & (distance <= nearest + 3 * TIE) & (taken_at > since)]
        self._set_choice(index, members, np.zeros(len(members)), since)
        return float(self._distance[index])


def _group_identical(boxes: FloatArray) -> list[list[int]]:
    """Returns the indices of identical boxes, descending, for each distinct box; few boxes are not grouped."""
    if len(boxes) <= RANKED:
        # Grouping would take more time than it saves.
        return [[index] for index in range(len(boxes))]
    keys = np.ascontiguousarray(boxes).view(np.uint64)
    order = np.lexsort((keys[:, 0], keys[:, 1]))
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]))
    return [part[::-1].tolist() for part in np.split(order, starts[1:])]


def _link(values: Float64Array, start: float, gap: float = 1.5 * TIE) -> float:
    """Returns the highest of values above `start` that is connected with `start` by steps of at most `gap`."""
    if not len(values) or values.min() > start + gap:
        return start
    ascending = np.sort(values)
    far = np.flatnonzero(np.diff(ascending) > gap)
    return float(ascending[far[0] if len(far) else -1])


def split_indices(indices: IntArray, size: int) -> Iterator[IntArray]:
    """Splits indices into parts of at most `size`."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
