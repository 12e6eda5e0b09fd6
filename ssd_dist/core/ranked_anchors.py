"""The anchors of an object in the order in which the object chooses them.

Sorted by IoU, the anchors of an object form groups that are further apart than TIE. The object chooses from a group
when all groups before are taken. Most groups are clear: all IoUs of the group are within TIE of each other, and the
distances of its anchors form groups in the same way. From a clear group the object chooses the anchors by distance,
then by index, whatever other objects take in between.
"""

import numpy as np

from ssd_dist.core.anchor_iou import Pairs
from ssd_dist.core.anchor_spots import TIE, AnchorSpots
from ssd_dist.core.boxes import BoolArray, Float64Array, IntArray

# Values further apart than this belong to different groups, and values of one group that are closer than _WIDTH tie.
# The numbers between cover rounding.
_GAP = 1.5 * TIE
_WIDTH = 0.9 * TIE


class RankedAnchors:
    """The anchors of one object with an IoU above `rest`, in the order of its choices.

    Attributes:
      anchors: their indices.
      iou: their IoUs.
      distances: the distances of their centers.
      stops: for each the position after its group; negative if the group is not clear.
      rest: no other anchor has a higher IoU.
      position: the first anchor that may be free.
    """

    __slots__ = ("anchors", "distances", "iou", "position", "rest", "stops")

    def __init__(self, anchors: IntArray, iou: Float64Array, distances: Float64Array, stops: IntArray, rest: float):
        self.anchors: list[int] = anchors.tolist()
        self.iou: list[float] = iou.tolist()
        self.distances: list[float] = distances.tolist()
        self.stops: list[int] = stops.tolist()
        self.rest = rest
        self.position = 0

    def skip_taken(self, taken_at: list[int], free: int, since: int) -> int:
        """Moves to the first anchor that is free, or to the start of its group if the group is not clear.

        Args:
          taken_at: the turn in which each anchor was taken.
          free: the value of `taken_at` for free anchors.
          since: a turn in which the object chose.

        Returns:
          The turn in which the object chose from the group of that anchor, or in which the last anchor was taken.
        """
        anchors, stops, position = self.anchors, self.stops, self.position
        while position < len(anchors):
            stop = stops[position]
            if stop > 0:
                turn, following = taken_at[anchors[position]], position + 1
            else:
                turn, following = max(taken_at[anchor] for anchor in anchors[position:-stop]), -stop
            if turn == free:
                break
            since = max(since, turn)
            position = following
        self.position = position
        return since


def rank_anchors(spots: AnchorSpots, centers: Float64Array, pairs: Pairs, floors: Float64Array) -> list[RankedAnchors]:
    """Ranks the anchors of each object.

    Args:
      spots: the centers of the anchors.
      centers: [N, 2], the centers of the objects.
      pairs: pairs with an IoU above the floor, all that matter.
      floors: [N].
    """
    order = np.argsort(2.0 * pairs.objects - pairs.iou)
    objects, anchors, iou = pairs.objects[order], pairs.anchors[order], pairs.iou[order]
    is_start = np.ones(len(iou), bool)
    is_start[1:] = (objects[1:] != objects[:-1]) | (iou[:-1] - iou[1:] > _GAP)
    starts, stops, group = _find_runs(is_start)
    highest, lowest = iou[starts], iou[stops - 1]
    distances = spots.distances(centers[objects], anchors)
    # By distance in each group, then by index in each group of distances.
    order = np.argsort(4.0 * group + distances)
    ascending = distances[order]
    is_start[1:] |= ascending[1:] - ascending[:-1] > _GAP
    near_starts, near_stops, near_group = _find_runs(is_start)
    is_clear = highest - lowest <= _WIDTH
    is_clear[group[near_starts[ascending[near_stops - 1] - ascending[near_starts] > _WIDTH]]] = False
    order = order[np.argsort(near_group * len(spots.spot_of) + anchors[order])]
    anchors, iou, distances = anchors[order], iou[order], distances[order]
    firsts = np.searchsorted(objects[starts], np.arange(len(floors) + 1))
    bounds = np.append(starts, len(iou))[firsts]
    shifted = stops - bounds[objects[starts]]
    stop_of = np.where(is_clear, shifted, -shifted)[group]
    ranked = []
    for start, stop, last, floor in zip(
        bounds[:-1].tolist(), bounds[1:].tolist(), (firsts[1:] - 1).tolist(), floors.tolist(), strict=True
    ):
        rest = floor
        # The lowest group of an object is dropped if anchors below the floor can belong to it.
        if start < stop and lowest[last] <= floor + _GAP:
            stop, rest = int(starts[last]), float(highest[last])
        own = slice(start, stop)
        ranked.append(RankedAnchors(anchors[own], iou[own], distances[own], stop_of[own], rest))
    return ranked


def _find_runs(is_start: BoolArray) -> tuple[IntArray, IntArray, IntArray]:
    """Returns the starts and stops of runs, and the run of each element."""
    starts = np.flatnonzero(is_start)
    return starts, np.append(starts[1:], len(is_start))[: len(starts)], np.cumsum(is_start) - 1
