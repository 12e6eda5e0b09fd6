"""Box arithmetic: IoU, the offsets that SSD regresses, and the horizontal flip.

Boxes are `[ymin, xmin, ymax, xmax]`, normalised to the image, float32. Offsets are `[ty, tx, th, tw]`.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]


def areas(boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Areas [N] of boxes [N, 4], in units of the image; 0 for reversed boxes."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def iou_matrix(boxes: FloatArray, others: FloatArray) -> npt.NDArray[np.float64]:
    """Intersection over union [N, M] of boxes [N, 4] with others [M, 4]; 0 where the union is empty.

    Computed in float64 so that equal overlaps compare equal and ties are real ties.
    """
    a, b = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0)
    intersection = sides[..., 0] * sides[..., 1]
    union = areas(a) + areas(b) - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0))


def encode_boxes(boxes: FloatArray, anchors: FloatArray, center_variance: float, size_variance: float) -> FloatArray:
    """Offsets [N, 4] of boxes [N, 4] from anchors [N, 4] (Liu et al. 2016, equation 2, over the variances).

    (ty, tx) = (box centre - anchor centre) / anchor size / center_variance
    (th, tw) = log(box size / anchor size) / size_variance
    Every box must have positive height and width.
    """
    centers, sizes = _centers_and_sizes(boxes)
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    shift = (centers - anchor_centers) / anchor_sizes / center_variance
    scale = np.log(sizes / anchor_sizes) / size_variance
    return np.concatenate([shift, scale], axis=-1).astype(np.float32)


def decode_boxes(offsets: FloatArray, anchors: FloatArray, center_variance: float, size_variance: float) -> FloatArray:
    """Boxes [N, 4] from offsets [N, 4] at anchors [N, 4]: the inverse of `encode_boxes`."""
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    shift, scale = np.split(offsets.astype(np.float64), 2, axis=-1)
    centers = shift * center_variance * anchor_sizes + anchor_centers
    half = np.exp(scale * size_variance) * anchor_sizes / 2
    return np.concatenate([centers - half, centers + half], axis=-1).astype(np.float32)


def flip_boxes(boxes: FloatArray, vertical: bool = False) -> FloatArray:
    """Boxes [N, 4] mirrored left to right, or upside down."""
    ymin, xmin, ymax, xmax = np.moveaxis(boxes, -1, 0)
    if vertical:
        return np.stack([1 - ymax, xmin, 1 - ymin, xmax], axis=-1).astype(np.float32)
    return np.stack([ymin, 1 - xmax, ymax, 1 - xmin], axis=-1).astype(np.float32)


def _centers_and_sizes(boxes: FloatArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    low, high = np.split(boxes.astype(np.float64), 2, axis=-1)
    return (low + high) / 2, high - low
