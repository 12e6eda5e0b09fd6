"""The default boxes of SSD (Liu et al. 2016, section 2.2): 8,732 at 300x300.

The order is level, row, column, shape, as in the heads' outputs reshaped to [batch, anchors, ...].
Centers lie at (i + 0.5) / n, so mirroring the image permutes the anchors exactly.
"""

import math
from functools import lru_cache

import numpy as np

from ssd_dist.core.boxes import FloatArray, IntArray
from ssd_dist.core.config import AnchorConfig

# MobileNetV2 is tapped at these strides; three stride-2 levels follow, the last without padding.
BACKBONE_STRIDES = (8, 16, 32)


def feature_sizes(input_size: int) -> tuple[int, ...]:
    """Returns the number of rows (= columns) of the six feature maps.

    Examples:
      >>> feature_sizes(300)
      (38, 19, 10, 5, 3, 1)
    """
    sizes = [math.ceil(input_size / stride) for stride in BACKBONE_STRIDES]
    sizes += [math.ceil(sizes[-1] / 2)]
    sizes += [math.ceil(sizes[-1] / 2)]
    sizes += [(sizes[-1] - 3) // 2 + 1 if last_level_is_unpadded(sizes[-1]) else 1]
    return tuple(sizes)


def last_level_is_unpadded(size_below: int) -> bool:
    """Returns whether the last 3x3 convolution runs without padding (3 -> 1, as in SSD300): it needs 3 rows."""
    return size_below >= 3


def anchors_per_cell(config: AnchorConfig) -> tuple[int, ...]:
    """Returns the number of anchor shapes per cell of each level.

    Examples:
      >>> anchors_per_cell(AnchorConfig())
      (4, 6, 6, 6, 4, 4)
    """
    return tuple(2 + 2 * len(ratios) for ratios in config.aspect_ratios)


@lru_cache(maxsize=8)
def generate_anchors(config: AnchorConfig, input_size: int) -> FloatArray:
    """Returns the anchors [A, 4], not clipped to the image; the array is read-only, because it is shared.

    Examples:
      >>> generate_anchors(AnchorConfig(), 300).shape
      (8732, 4)
    """
    levels = [
        _level_anchors(cells, _cell_shapes(config, level)) for level, cells in enumerate(feature_sizes(input_size))
    ]
    anchors = np.concatenate(levels).astype(np.float32)
    anchors.setflags(write=False)
    return anchors


@lru_cache(maxsize=8)
def flip_permutation(config: AnchorConfig, input_size: int, vertical: bool = False) -> IntArray:
    """Returns the index [A] of the mirror image of each anchor: flip_boxes(anchors)[i] == anchors[permutation[i]].

    Mirrors left to right, or upside down if `vertical`.
    """
    parts = []
    start = 0
    for cells, shapes in zip(feature_sizes(input_size), anchors_per_cell(config), strict=True):
        grid = start + np.arange(cells * cells * shapes, dtype=np.int64).reshape(cells, cells, shapes)
        parts.append((grid[::-1] if vertical else grid[:, ::-1]).reshape(-1))
        start += grid.size
    permutation = np.concatenate(parts)
    permutation.setflags(write=False)
    return permutation


def _cell_shapes(config: AnchorConfig, level: int) -> list[tuple[float, float]]:
    """Returns (height, width) of each shape in a cell: ratio 1 twice, then each ratio wide (w > h) and tall."""
    size, following = config.sizes[level], config.sizes[level + 1]
    between = math.sqrt(size * following)
    shapes = [(size, size), (between, between)]
    for ratio in config.aspect_ratios[level]:
        long, short = size * math.sqrt(ratio), size / math.sqrt(ratio)
        shapes += [(short, long), (long, short)]
    return shapes


def _level_anchors(cells: int, shapes: list[tuple[float, float]]) -> FloatArray:
    centers = (np.arange(cells) + 0.5) / cells
    y, x = np.meshgrid(centers, centers, indexing="ij")
    center = np.stack([y, x], axis=-1)[:, :, None, :]
    half = np.asarray(shapes)[None, None] / 2
    return np.concatenate([center - half, center + half], axis=-1).reshape(-1, 4).astype(np.float32)
