"""Computes the IoU of objects with anchors, skipping pairs with little overlap.

The anchors of one level and shape form a grid, with one anchor per cell. All anchors in a row of a grid have the same
vertical extent, and all anchors in a column the same horizontal extent. The intersection of an object with an anchor is
therefore the height that it shares with the row times the width that it shares with the column. The product of the
largest shared height and the largest shared width is the largest intersection in the grid. Only rows and columns whose
product can reach a given bound are combined. For 8,732 anchors, this computes 744 heights and widths and a few hundred
pairs per object.
"""

from dataclasses import dataclass

import numpy as np

from ssd_dist.core.anchors import anchors_per_cell, feature_sizes
from ssd_dist.core.boxes import BoolArray, Float64Array, FloatArray, IntArray
from ssd_dist.core.config import AnchorConfig


@dataclass(frozen=True)
class Pairs:
    """Pairs of an object and an anchor: indices `objects` [P], ascending, and `anchors` [P], and their `iou` [P]."""

    objects: IntArray
    anchors: IntArray
    iou: Float64Array


@dataclass(frozen=True)
class Spans:
    """Lengths that boxes [N, 4] share with the L rows and the L columns of all anchor grids.

    Attributes:
      lengths: float64 [N, 2, L], the height shared with each row and the width shared with each column.
      areas: float64 [N], the areas of the boxes.
    """

    lengths: Float64Array
    areas: Float64Array


class AnchorGrids:
    """Represents a set of anchors as grids, one per level and shape; computes in float64.

    Attributes:
      boxes: float64 [A, 4], the anchors.
      areas: float64 [A], their areas.
    """

    def __init__(self, anchors: FloatArray, config: AnchorConfig, input_size: int) -> None:
        """Decomposes the anchors into grids.

        Args:
          anchors: float32 [A, 4], the result of `generate_anchors(config, input_size)`.
          config: the configuration of the anchors.
          input_size: side of the model input in pixels.

        Raises:
          ValueError: if the configuration generates different anchors.
        """
        wide = anchors.astype(np.float64)
        self.boxes = wide
        self.areas = (wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1])
        cells = _grid_indices(config, input_size)
        if sum(grid.size for grid in cells) != len(anchors):
            raise ValueError(
                f"got {len(anchors)} anchors, but the config generates a different number at input size {input_size}"
            )
        # Rows and columns [L] of all grids. The index of an anchor is the index of the first anchor of its row plus the
        # offset of its column.
        self._row_first = np.concatenate([grid[:, 0] for grid in cells])
        self._column_offset = np.concatenate([grid[0] - grid[0, 0] for grid in cells])
        columns = np.concatenate([grid[0] for grid in cells])
        self._low = np.stack([wide[self._row_first, 0], wide[columns, 1]])
        self._high = np.stack([wide[self._row_first, 2], wide[columns, 3]])
        sides = [len(grid) for grid in cells]
        self._starts = np.cumsum([0, *sides[:-1]])
        self._grid_of = np.repeat(np.arange(len(cells)), sides)
        self._largest = np.array([self.areas[grid].max() for grid in cells])
        self._smallest = np.array([self.areas[grid].min() for grid in cells])
        self._row_of = np.empty(len(anchors), np.int64)
        self._column_of = np.empty(len(anchors), np.int64)
        for start, grid in zip(self._starts, cells, strict=True):
            self._row_of[grid] = start + np.arange(len(grid))[:, None]
            self._column_of[grid] = start + np.arange(len(grid))
        lines = np.stack([self._row_of, self._column_of])
        edges = (*np.take_along_axis(self._low, lines, 1), *np.take_along_axis(self._high, lines, 1))
        if not np.array_equal(np.stack(edges, axis=1), wide):
            raise ValueError("the anchors or their order differ from the anchors that the config generates")

    def measure(self, boxes: FloatArray) -> Spans:
        """Returns the lengths that boxes [N, 4] share with the rows and columns of all grids."""
        wide = boxes.astype(np.float64)
        low, high = wide[:, :2], wide[:, 2:]
        lengths = np.minimum(high[:, :, None], self._high)
        lengths -= np.maximum(low[:, :, None], self._low)
        np.maximum(lengths, 0.0, out=lengths)
        sides = high - low
        return Spans(lengths, sides[:, 0] * sides[:, 1])

    def iou(self, spans: Spans) -> Float64Array:
        """Returns the IoU [N, A] of all boxes with all anchors."""
        intersection = self._intersection(spans)
        union = spans.areas[:, None] + self.areas
        union -= intersection
        intersection /= union
        return intersection

    def cover(self, spans: Spans) -> Float64Array:
        """Returns the fraction [N, A] of the area of each anchor that lies within each box."""
        return np.asarray(self._intersection(spans) / self.areas)

    def find_pairs(self, spans: Spans, bound: float, tie: float) -> Pairs:
        """Returns the pairs whose IoU is at least `bound`, and for each box those whose IoU equals its highest IoU.

        The result may contain other pairs, too. Every box has at least one pair.

        Args:
          spans: the result of `measure` for the boxes.
          bound: all pairs with at least this IoU are returned.
          tie: differences of IoU up to this value count as equal.
        """
        longest = np.maximum.reduceat(spans.lengths, self._starts, axis=2)
        best = longest[:, 0] * longest[:, 1]
        # A lower bound of the highest IoU per box; the areas of anchors of one shape differ by rounding.
        reached = (best / (spans.areas[:, None] + self._largest - best)).max(axis=1)
        # Twice the tie, so that rounding does not exclude a needed pair.
        return self._select(spans, longest, np.minimum(bound, reached) - 2 * tie)

    def find_above(self, spans: Spans, floors: Float64Array) -> Pairs:
        """Returns at least all pairs whose IoU is at least the floor [N] of the box; the floors must be positive."""
        longest = np.maximum.reduceat(spans.lengths, self._starts, axis=2)
        return self._select(spans, longest, floors * (1 - 1e-9))

    def _select(self, spans: Spans, longest: Float64Array, floor: Float64Array) -> Pairs:
        """Returns the pairs in rows and columns that can reach the floor [N]; `longest` [N, 2, G] is per grid."""
        needed = (floor / (1 + floor))[:, None] * (spans.areas[:, None] + self._smallest)
        partner = longest[:, ::-1].take(self._grid_of, axis=2)
        partner *= spans.lengths
        suitable = partner >= needed.take(self._grid_of, axis=1)[:, None]
        return self._combine(spans, suitable[:, 0], suitable[:, 1])

    def _combine(self, spans: Spans, rows: BoolArray, columns: BoolArray) -> Pairs:
        """Returns the pairs of each box with the anchors whose row and column are both true in the masks [N, L]."""
        lines, grids = len(self._grid_of), len(self._starts)
        row, column = np.flatnonzero(rows), np.flatnonzero(columns)
        box, row_line = np.divmod(row, lines)
        # The selected columns of one box and grid are consecutive: each row is combined with the run of its grid.
        runs = np.add.reduceat(columns, self._starts, axis=1, dtype=np.int64).reshape(-1)
        run = box * grids + self._grid_of[row_line]
        length = runs[run]
        shift = (np.cumsum(runs) - runs)[run] - (np.cumsum(length) - length)
        taken = column[np.repeat(shift, length) + np.arange(length.sum())]
        objects = np.repeat(box, length)
        anchors = np.repeat(self._row_first[row_line], length) + self._column_offset[taken % lines]
        heights, widths = (np.ascontiguousarray(spans.lengths[:, axis]).reshape(-1) for axis in (0, 1))
        intersection = np.repeat(heights[row], length) * widths[taken]
        union = spans.areas[objects] + self.areas[anchors]
        union -= intersection
        return Pairs(objects, anchors, intersection / union)

    def _intersection(self, spans: Spans) -> Float64Array:
        heights = spans.lengths[:, 0].take(self._row_of, axis=1)
        heights *= spans.lengths[:, 1].take(self._column_of, axis=1)
        return heights


def _grid_indices(config: AnchorConfig, input_size: int) -> list[IntArray]:
    """Returns for each grid the indices [n, n] of its anchors, by row and column."""
    grids: list[IntArray] = []
    first = 0
    for cells, shapes in zip(feature_sizes(input_size), anchors_per_cell(config), strict=True):
        level = first + np.arange(cells * cells * shapes, dtype=np.int64).reshape(cells, cells, shapes)
        grids += list(np.moveaxis(level, 2, 0))
        first += level.size
    return grids
