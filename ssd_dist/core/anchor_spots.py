"""The distinct centers of anchors, by which ties in IoU are decided."""

import numpy as np

from ssd_dist.core.boxes import Float64Array, IntArray

# Float32 coordinates are accurate to about 1e-7; IoUs and distances that differ by less than this count as equal.
TIE = 1e-6


class AnchorSpots:
    """The distinct centers (spots) of a set of anchors; the anchors of a cell share one, up to rounding."""

    def __init__(self, centers: Float64Array) -> None:
        """Groups the anchors by their centers [2, A]."""
        self.anchor_centers = centers
        _, first, spot_of = np.unique(
            np.round(centers / (TIE / 4)).astype(np.int64), axis=1, return_index=True, return_inverse=True
        )
        # int64 [A], the spot of each anchor, and float64 [2, S], the centers of the spots. The center of an anchor
        # differs from that of its spot by at most a quarter of TIE along each axis.
        self.spot_of = spot_of.reshape(-1)
        self.centers = np.ascontiguousarray(centers[:, first])
        order = np.argsort(self.spot_of, kind="stable")
        starts = np.searchsorted(self.spot_of[order], np.arange(1, len(first)))
        self.anchors = np.split(order, starts)

    def find_nearest(self, centers: Float64Array) -> tuple[Float64Array, IntArray]:
        """Returns for centers [N, 2] the distance [N] and the index [N] of the nearest anchor (ties: the lowest)."""
        distance = np.square(centers[:, :1] - self.centers[0])
        distance += np.square(centers[:, 1:] - self.centers[1])
        np.sqrt(distance, out=distance)
        near = distance <= distance.min(axis=1, keepdims=True) + 3 * TIE
        chosen = np.array([self.anchors[spot][0] for spot in near.argmax(axis=1).tolist()])
        for index in np.flatnonzero(near.sum(axis=1) > 1).tolist():
            anchors = np.sort(np.concatenate([self.anchors[spot] for spot in np.flatnonzero(near[index]).tolist()]))
            exact = self.distances(centers[index], anchors)
            chosen[index] = anchors[(exact <= exact.min() + TIE).argmax()]
        return self.distances(centers, chosen), chosen

    def distances(self, centers: Float64Array, anchors: IntArray) -> Float64Array:
        """Returns the distances [K] of centers [K, 2], or of one center [2], to the centers of anchors [K].

        They are not squared: with a tolerance on squares, anchors that differ by 20 times the float32 error would tie.
        """
        y, x = self.anchor_centers[:, anchors]
        return np.asarray(np.hypot(centers[..., 0] - y, centers[..., 1] - x))
