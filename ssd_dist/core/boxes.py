"""Box arithmetic: IoU, the offsets that SSD regresses, and the horizontal flip.

Boxes are `[ymin, xmin, ymax, xmax]`, normalized to the image, float32. Offsets are `[ty, tx, th, tw]`.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


def areas(boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Returns the areas [N] of boxes [N, 4], as fractions of the image; 0 for reversed boxes.

    Examples:
      >>> areas(np.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.0, 0.0]])).tolist()
      [0.25, 0.0]
    """
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def iou_matrix(boxes: FloatArray, others: FloatArray) -> Float64Array:
    """Returns the intersection over union [N, M] of boxes [N, 4] and others [M, 4]; 0 where the union is empty.

    It is computed in float64, so that equal overlaps compare as equal.

    Examples:
      >>> left, whole = np.float32([[0, 0, 1, 0.5]]), np.float32([[0, 0, 1, 1]])
      >>> iou_matrix(left, np.concatenate([left, whole])).tolist()
      [[1.0, 0.5]]
    """
    intersection = _intersect(boxes, others)
    union = areas(boxes.astype(np.float64))[:, None] + areas(others.astype(np.float64)) - intersection
    return _divide(intersection, union)


def cover_matrix(boxes: FloatArray, others: FloatArray) -> Float64Array:
    """Returns the share [N, M] of the area of boxes [N, 4] that others [M, 4] cover; 0 for boxes without area.

    Examples:
      >>> left, whole = np.float32([[0, 0, 1, 0.5]]), np.float32([[0, 0, 1, 1]])
      >>> cover_matrix(np.concatenate([left, whole]), left).tolist()
      [[1.0], [0.5]]
    """
    return _divide(_intersect(boxes, others), areas(boxes.astype(np.float64))[:, None])


def _intersect(boxes: FloatArray, others: FloatArray) -> Float64Array:
    """Returns the areas [N, M] of the intersections."""
    a, b = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def _divide(values: Float64Array, divisors: npt.NDArray[np.floating]) -> Float64Array:
    return np.asarray(np.divide(values, divisors, out=np.zeros_like(values), where=divisors > 0))


def encode_boxes(boxes: FloatArray, anchors: FloatArray, center_variance: float, size_variance: float) -> FloatArray:
    """Returns the offsets [N, 4] of boxes [N, 4] from anchors [N, 4] (Liu et al. 2016, equation 2, with variances).

        (ty, tx) = (box center - anchor center) / anchor size / center_variance
        (th, tw) = log(box size / anchor size) / size_variance

    Every box must have positive height and width.

    Examples:
      >>> anchor, box = np.float32([[0.25, 0.25, 0.75, 0.75]]), np.float32([[0.25, 0.5, 0.75, 1.0]])
      >>> encode_boxes(box, anchor, center_variance=0.1, size_variance=0.2).tolist()
      [[0.0, 5.0, 0.0, 0.0]]
    """
    centers, sizes = _centers_and_sizes(boxes)
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    shift = (centers - anchor_centers) / anchor_sizes / center_variance
    scale = np.log(sizes / anchor_sizes) / size_variance
    return np.concatenate([shift, scale], axis=-1).astype(np.float32)


def decode_boxes(offsets: FloatArray, anchors: FloatArray, center_variance: float, size_variance: float) -> FloatArray:
    """Returns the boxes [N, 4] for offsets [N, 4] from anchors [N, 4]: the inverse of `encode_boxes`.

    Examples:
      >>> anchor = np.float32([[0.25, 0.25, 0.75, 0.75]])
      >>> decode_boxes(np.float32([[0, 5, 0, 0]]), anchor, center_variance=0.1, size_variance=0.2).tolist()
      [[0.25, 0.5, 0.75, 1.0]]
    """
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    shift, scale = np.split(offsets.astype(np.float64), 2, axis=-1)
    centers = shift * center_variance * anchor_sizes + anchor_centers
    half = np.exp(scale * size_variance) * anchor_sizes / 2
    return np.concatenate([centers - half, centers + half], axis=-1).astype(np.float32)


def flip_boxes(boxes: FloatArray, vertical: bool = False) -> FloatArray:
    """Returns the boxes [N, 4] after the image is flipped left to right, or upside down if `vertical`.

    Examples:
      >>> flip_boxes(np.float32([[0.0, 0.0, 0.5, 0.25]])).tolist()
      [[0.0, 0.75, 0.5, 1.0]]
    """
    ymin, xmin, ymax, xmax = np.moveaxis(boxes, -1, 0)
    if vertical:
        return np.stack([1 - ymax, xmin, 1 - ymin, xmax], axis=-1).astype(np.float32)
    return np.stack([ymin, 1 - xmax, ymax, 1 - xmin], axis=-1).astype(np.float32)


def _centers_and_sizes(boxes: FloatArray) -> tuple[Float64Array, Float64Array]:
    low, high = np.split(boxes.astype(np.float64), 2, axis=-1)
    return (low + high) / 2, high - low
