"""The last turns of a greedy assignment: no waiting object overlaps with a free anchor, and the distance decides."""

import math

import numpy as np

from ssd_dist.core.anchor_spots import TIE
from ssd_dist.core.assignment_turns import FREE, Turns, find_linked
from ssd_dist.core.boxes import Float64Array
from ssd_dist.core.waiting_objects import Ranking


class NearestAssignment:
    """Makes the remaining turns, in which all waiting objects are rivals and all free anchors tie."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._anchor_centers = turns.spots.anchor_centers.T.tolist()
        # The centers of the spots with free anchors, infinite for all others.
        self._centers = turns.spots.centers.copy()
        # The free anchors of each spot, descending.
        self._free = [anchors[turns.taken_at[anchors] == FREE][::-1].tolist() for anchors in turns.spots.anchors]
        # Lower bounds of the distance of each spot to the waiting objects.
        self._bounds = np.zeros(len(self._free))
        for spot, anchors in enumerate(self._free):
            if not anchors:
                self._bounds[spot] = self._centers[:, spot] = np.inf
        self._rankings: dict[int, Ranking] = {}

    def run(self, last: int) -> None:
        """Makes all turns before the turn `last`."""
        while self._turns.turn < last:
            nearest = self._refresh_rivals()
            winner = self._turns.pick_nearest(np.flatnonzero(self._turns.distance <= nearest + TIE))
            anchor = int(self._turns.choice[winner])
            spot = int(self._turns.spots.spot_of[anchor])
            self._turns.take(winner)
            self._free[spot].remove(anchor)
            if not self._free[spot]:
                self._bounds[spot] = self._centers[:, spot] = np.inf

    def _refresh_rivals(self) -> float:
        """Lets stale objects choose until no other can be a rival; returns the distance of the nearest choice."""
        nearest = float(self._turns.distance.min())
        visited: list[int] = []
        while True:
            spot = int(self._bounds.argmin())
            if self._bounds[spot] > nearest + 3 * TIE or self._bounds[spot] == np.inf:
                break
            ranking = self._rankings.get(spot)
            if ranking is None or not ranking.drop_done(self._turns.done):
                ranking = self._rankings[spot] = Ranking(-self._spot_column(spot), self._turns.waiting().objects)
                ranking.drop_done(self._turns.done)
            self._bounds[spot] = np.inf
            visited.append(spot)
            for value, index in zip(reversed(ranking.values), reversed(ranking.objects), strict=True):
                if -value > nearest + 3 * TIE:
                    break
                if self._turns.bound[index] > -np.inf:
                    nearest = min(nearest, self._choose_nearest(index))
            else:
                if -ranking.rest <= nearest + 3 * TIE:
                    near = self._spot_column(spot) <= nearest + 3 * TIE
                    for index in self._turns.waiting().objects[near].tolist():
                        if self._turns.bound[index] > -np.inf:
                            nearest = min(nearest, self._choose_nearest(index))
        for spot in visited:
            self._bounds[spot] = -self._rankings[spot].values[-1]
        return nearest

    def _spot_column(self, spot: int) -> Float64Array:
        y, x = self._turns.spots.centers[:, spot].tolist()
        return self._turns.waiting().distances(y, x)

    def _choose_nearest(self, index: int) -> float:
        """Lets a stale object choose by distance alone; returns the distance.

        The choice lies within TIE of the nearest free anchor. If all free anchors within this distance belong to one
        spot, they tie, and the choice is the one with the lowest index. The result does not depend on the turn in which
        the object chose.
        """
        y, x = self._turns.centers[index].tolist()
        distance = np.square(self._centers[0] - y)
        distance += np.square(self._centers[1] - x)
        spot = int(distance.argmin())
        near = np.count_nonzero(distance <= (math.sqrt(distance[spot]) + 3 * TIE) ** 2)
        if near > 1:
            return self._choose_among_spots(index)
        anchor = self._free[spot][-1]
        anchor_y, anchor_x = self._anchor_centers[anchor]
        result = float(np.hypot(y - anchor_y, x - anchor_x))
        self._turns.accept(index, 0.0, result, anchor)
        return result

    def _choose_among_spots(self, index: int) -> float:
        """Lets a stale object choose by distance alone if several spots are near; returns the distance."""
        # The object chose by distance alone from the turn in which the last anchor with an IoU above TIE was taken.
        iou = self._turns.grids.iou(self._turns.grids.measure(self._turns.boxes[index : index + 1]))[0]
        since = max(int(self._turns.since[index]), int(self._turns.taken_at[iou > TIE].max(initial=-1)))
        members = np.flatnonzero(self._turns.taken_at > since)
        y, x = self._turns.spots.anchor_centers[:, members]
        distance = np.sqrt(np.square(y - self._turns.centers[index, 0]) + np.square(x - self._turns.centers[index, 1]))
        taken_at = self._turns.taken_at[members]
        nearest = distance[taken_at == FREE].min()
        lower = -find_linked(-distance[distance < nearest], -nearest, 3 * TIE)
        since = max(since, int(taken_at[distance < lower].max(initial=-1)))
        members = members[(distance >= lower) & (distance <= nearest + 3 * TIE) & (taken_at > since)]
        self._turns.set_choice(index, members, np.zeros(len(members)), since)
        return float(self._turns.distance[index])
