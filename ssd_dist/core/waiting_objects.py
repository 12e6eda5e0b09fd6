"""The objects of an image that wait for an anchor: their boxes, and the best of them for one anchor."""

import numpy as np

from ssd_dist.core.boxes import Float64Array, FloatArray, IntArray

# The number of objects that a ranking stores.
_RANKED = 64


class Ranking:
    """The best waiting objects of one anchor or spot, the best one last, and their values.

    All other waiting objects have at most the value `rest`.
    """

    def __init__(self, values: Float64Array, objects: IntArray) -> None:
        if len(values) > 4 * _RANKED:
            best = np.argpartition(values, -_RANKED)[-_RANKED:]
            best = best[np.argsort(values[best])]
            self.rest = float(values[best[0]])
        else:
            best = np.argsort(values)
            self.rest = -np.inf
        self.values: list[float] = values[best].tolist()
        self.objects: list[int] = objects[best].tolist()

    def drop_done(self, done: bytearray) -> bool:
        """Drops the best objects that do not wait; returns whether a waiting object is left."""
        while self.objects and done[self.objects[-1]]:
            self.objects.pop()
            self.values.pop()
        return bool(self.objects)


class WaitingBoxes:
    """The boxes of the waiting objects in contiguous memory."""

    def __init__(self, objects: IntArray, boxes: FloatArray) -> None:
        """Copies the boxes [N, 4] of the objects."""
        self.objects = objects
        wide = boxes[objects].astype(np.float64)
        self._corners = np.ascontiguousarray(wide.T)
        self._areas = (wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1])
        self._centers = (self._corners[:2] + self._corners[2:]) / 2
        self._removed = np.zeros(len(objects))
        self._left = len(objects)

    def remove(self, index: int) -> bool:
        """Removes an object; returns False if a new copy without the removed objects is worth its time."""
        position = self.objects.searchsorted(index)
        self._centers[:, position] = np.inf
        self._removed[position] = 2.0
        self._left -= 1
        return len(self.objects) < 64 or 3 * self._left > 2 * len(self.objects)

    def iou(self, box: Float64Array, area: float) -> Float64Array:
        """Returns the IoU of all objects with one box; negative for those that were removed."""
        low_y, low_x, high_y, high_x = self._corners
        y0, x0, y1, x1 = box.tolist()
        height = np.minimum(high_y, y1)
        height -= np.maximum(low_y, y0)
        np.maximum(height, 0.0, out=height)
        width = np.minimum(high_x, x1)
        width -= np.maximum(low_x, x0)
        np.maximum(width, 0.0, out=width)
        height *= width
        union = self._areas + area
        union -= height
        height /= union
        height -= self._removed
        return np.asarray(height)

    def distances(self, y: float, x: float) -> Float64Array:
        """Returns the distances of the centers of all objects to one point; infinite for those that were removed."""
        distance = np.square(self._centers[0] - y)
        distance += np.square(self._centers[1] - x)
        return np.asarray(np.sqrt(distance, out=distance))
