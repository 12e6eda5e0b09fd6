"""The turns of a greedy assignment: which objects wait, what they chose, and when each anchor was taken.

`greedy_assignment` describes the rule and the words: choice, stale, bound, turn.
"""

import numpy as np

from ssd_dist.core.anchor_iou import AnchorGrids
from ssd_dist.core.anchor_spots import TIE, AnchorSpots
from ssd_dist.core.boxes import Float64Array, FloatArray, IntArray
from ssd_dist.core.waiting_objects import WaitingBoxes

# The turn in which an anchor is taken if it is still free.
FREE = np.iinfo(np.int64).max
# Groups of at most this many boxes or anchors are not simplified: this would take more time than it saves.
_FEW = 16


class Turns:
    """The state of an assignment.

    Identical boxes are one object with several members, because all of them have the same choice in every turn.

    Attributes:
      grids: the anchors.
      spots: their centers.
      boxes: float32 [N, 4], the boxes of the objects.
      centers: float64 [N, 2], their centers.
      assigned: int64 [B], the anchor of each box, -1 for none.
      head: int64 [N], the next member of each object that gets an anchor, -1 if all have one.
      done: whether all members of an object have their anchors.
      iou: float64 [N], the highest IoU of each object when it chose; -inf if it is stale or done.
      distance: float64 [N], the distance of the anchor that it chose; inf if it is stale or done.
      choice: int64 [N], the anchor that it chose.
      bound: float64 [N], an upper bound of the IoU of each stale object; -inf if it is not stale.
      since: int64 [N], a turn in which each stale object chose; its choice was taken in that turn or later.
      choosers: the objects that are not stale by their choice.
      taken_at: int64 [A], the turn in which each anchor was taken, or FREE.
      turn_of: the same as a list, which is faster for single anchors.
      turn: the number of the present turn.
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
          spots: their centers.
          boxes: float32 [B, 4].
          choices: the first choice of each box: its highest IoU [B] (-inf if it is at most TIE and was not
            computed), and the distance [B] and the index [B] of its anchor.
        """
        self.grids = grids
        self.spots = spots
        self._members = _group_identical(boxes)
        self.assigned = np.full(len(boxes), -1, np.int64)
        first = np.array([members[-1] for members in self._members])
        self.head = first.copy()
        self.boxes = boxes[first]
        wide = self.boxes.astype(np.float64)
        self.centers = (wide[:, :2] + wide[:, 2:]) / 2
        self.done = bytearray(len(first))
        iou, distance, anchor = choices
        self.iou = iou[first].copy()
        known = self.iou > -np.inf
        self.distance = np.where(known, distance[first], np.inf)
        self.choice = anchor[first].copy()
        self.bound = np.where(known, -np.inf, TIE)
        self.since = np.full(len(first), -1, np.int64)
        self.choosers: dict[int, list[int]] = {}
        for index in np.flatnonzero(known).tolist():
            self.choosers.setdefault(int(self.choice[index]), []).append(index)
        self.taken_at = np.full(len(grids.areas), FREE, np.int64)
        self.turn_of = [FREE] * len(grids.areas)
        self.turn = 0
        self._packed: WaitingBoxes | None = None

    def take(self, winner: int) -> None:
        """Gives the winner its choice; all objects with the same choice become stale."""
        anchor = int(self.choice[winner])
        self.taken_at[anchor] = self.turn_of[anchor] = self.turn
        members = self._members[winner]
        self.assigned[members.pop()] = anchor
        losers = self.choosers.pop(anchor)
        self.bound[losers] = self.iou[losers]
        self.iou[losers] = -np.inf
        self.distance[losers] = np.inf
        self.since[losers] = self.turn
        self.turn += 1
        if members:
            self.head[winner] = members[-1]
            return
        self.bound[winner] = -np.inf
        self.head[winner] = -1
        self.done[winner] = True
        if self._packed is not None and not self._packed.remove(winner):
            self._packed = None

    def pick_nearest(self, rivals: IntArray) -> int:
        """Returns the rival whose choice has the nearest center; ties go to the lowest index."""
        if len(rivals) == 1:
            return int(rivals[0])
        distance = self.distance[rivals]
        near = rivals[distance <= distance.min() + TIE]
        return int(near[self.head[near].argmin()])

    def waiting(self) -> WaitingBoxes:
        """Returns the boxes of the objects that wait for an anchor."""
        if self._packed is None:
            self._packed = WaitingBoxes(np.flatnonzero(self.head >= 0), self.boxes)
        return self._packed

    def accept(self, index: int, iou: float, distance: float, anchor: int) -> None:
        """Sets the choice of a stale object."""
        self.iou[index] = iou
        self.distance[index] = distance
        self.choice[index] = anchor
        self.bound[index] = -np.inf
        self.choosers.setdefault(anchor, []).append(index)

    def set_choice(self, index: int, members: IntArray, iou: Float64Array, since: int) -> None:
        """Sets the choice among members, anchors that were free after the turn `since`, in which the object chose."""
        everyone, everyone_iou = members, iou
        taken_at = self.taken_at[members]
        if len(members) > _FEW and iou.min() >= iou.max() - TIE:
            # All members tie in every turn, so that only the distances matter.
            y, x = self.spots.anchor_centers[:, members]
            distance = np.sqrt(np.square(y - self.centers[index, 0]) + np.square(x - self.centers[index, 1]))
            nearest = distance[taken_at == FREE].min()
            lower = -find_linked(-distance[distance < nearest], -nearest)
            since = max(since, int(taken_at[distance < lower].max(initial=-1)))
            near = (distance >= lower) & (distance <= nearest + 2 * TIE) & (taken_at > since)
            members, iou, taken_at = members[near], iou[near], taken_at[near]
        distance = self.spots.distances(self.centers[index], members)
        while True:
            open_members = taken_at > since
            top = iou[open_members].max()
            tied = open_members & (iou >= top - TIE)
            nearest = distance[tied].min()
            position = int((tied & (distance <= nearest + TIE)).argmax())
            if taken_at[position] == FREE:
                break
            since = int(taken_at[position])
        if len(members) < len(everyone):
            top = everyone_iou[self.taken_at[everyone] > since].max()
        self.accept(index, top, distance[position], int(members[position]))


def _group_identical(boxes: FloatArray) -> list[list[int]]:
    """Returns the indices of identical boxes, descending, for each distinct box; few boxes are not grouped."""
    if len(boxes) <= _FEW:
        return [[index] for index in range(len(boxes))]
    keys = np.ascontiguousarray(boxes).view(np.uint64)
    order = np.lexsort((keys[:, 0], keys[:, 1]))
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]))
    return [part[::-1].tolist() for part in np.split(order, starts[1:])]


def find_linked(values: Float64Array, start: float, gap: float = 1.5 * TIE) -> float:
    """Returns the highest of values above `start` that is connected with `start` by steps of at most `gap`."""
    if not len(values) or values.min() > start + gap:
        return start
    ascending = np.sort(values)
    far = np.flatnonzero(np.diff(ascending) > gap)
    return float(ascending[far[0] if len(far) else -1])
