"""How much objects and anchors overlap, without looking at the pairs that hardly do.

Anchors lie on grids: of each shape one in every cell. An intersection is a height times a width, so the heights of an
object with the rows of a grid and its widths with the columns say all about the object and the grid: their greatest
product is the best of the grid, and only rows and columns that reach a given product need to be combined. For 8,732
anchors that is 744 numbers an object, and a few hundred pairs.
"""

import bisect
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ssd_dist.core.anchors import anchors_per_cell, feature_sizes
from ssd_dist.core.boxes import FloatArray, IntArray
from ssd_dist.core.config import AnchorConfig

Float64Array: TypeAlias = npt.NDArray[np.float64]

LARGEST_INPUT = 1 << 14


@dataclass(frozen=True)
class Pairs:
    """Objects and anchors that overlap: `objects` [P] ascending, `anchors` [P] and `iou` [P] belong together."""

    objects: IntArray
    anchors: IntArray
    iou: Float64Array


@dataclass(frozen=True)
class Spans:
    """What boxes [N, 4] share with every row and column.

    Attributes:
      lengths: [N, 2, L], the heights shared with L rows and the widths shared with L columns.
      areas: [N], of the boxes.
    """

    lengths: Float64Array
    areas: Float64Array

    def of(self, index: int) -> "Spans":
        """Those of one box."""
        return Spans(self.lengths[index : index + 1], self.areas[index : index + 1])


class AnchorGrids:
    """One set of anchors as grids, one for each shape of each level; all sums are in float64."""

    def __init__(self, anchors: FloatArray, config: AnchorConfig) -> None:
        """`anchors` are those that `generate_anchors` makes of the config, at any input size; else a ValueError."""
        wide = anchors.astype(np.float64)
        self._areas = (wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1])
        cells = _cells(len(anchors), config)
        # Rows and columns [L], grid by grid. An anchor's index is that of its row's first plus its column's step.
        self._row_first = np.concatenate([grid[:, 0] for grid in cells])
        self._column_step = np.concatenate([grid[0] - grid[0, 0] for grid in cells])
        columns = np.concatenate([grid[0] for grid in cells])
        self._low = np.stack([wide[self._row_first, 0], wide[columns, 1]])
        self._high = np.stack([wide[self._row_first, 2], wide[columns, 3]])
        sides = [len(grid) for grid in cells]
        self._starts = np.cumsum([0, *sides[:-1]])
        self._grid_of = np.repeat(np.arange(len(cells)), sides)
        self._largest = np.array([self._areas[grid].max() for grid in cells])
        self._smallest = np.array([self._areas[grid].min() for grid in cells])
        self._row_of = np.empty(len(anchors), np.int64)
        self._column_of = np.empty(len(anchors), np.int64)
        for start, grid in zip(self._starts, cells, strict=True):
            self._row_of[grid] = start + np.arange(len(grid))[:, None]
            self._column_of[grid] = start + np.arange(len(grid))
        lines = np.stack([self._row_of, self._column_of])
        edges = (*np.take_along_axis(self._low, lines, 1), *np.take_along_axis(self._high, lines, 1))
        if not np.array_equal(np.stack(edges, axis=1), wide):
            raise ValueError("the anchors are not those of the config, on square grids and in its order")

    def measure(self, boxes: FloatArray) -> Spans:
        """What boxes [N, 4] share with every row and column."""
        wide = boxes.astype(np.float64)
        low, high = wide[:, :2], wide[:, 2:]
        lengths = np.minimum(high[:, :, None], self._high)
        lengths -= np.maximum(low[:, :, None], self._low)
        np.maximum(lengths, 0.0, out=lengths)
        sides = high - low
        return Spans(lengths, sides[:, 0] * sides[:, 1])

    def iou(self, spans: Spans) -> Float64Array:
        """IoU [N, A] of all boxes with all anchors."""
        intersection = self._intersection(spans)
        union = spans.areas[:, None] + self._areas
        union -= intersection
        intersection /= union
        return intersection

    def cover(self, spans: Spans) -> Float64Array:
        """The share [N, A] of each anchor that lies within each box."""
        return np.asarray(self._intersection(spans) / self._areas)

    def find_pairs(self, spans: Spans, bound: float, tie: float) -> Pairs:
        """Every pair of an IoU of `bound` or more and, for each box, every one as good as its best, but for a `tie`.

        There may be others among them; each box has one at least.
        """
        longest = np.maximum.reduceat(spans.lengths, self._starts, axis=2)
        best = longest[:, 0] * longest[:, 1]
        # Anchors of one shape differ by their rounding. That much the best anchor reaches at least:
        reached = (best / (spans.areas[:, None] + self._largest - best)).max(axis=1)
        # Twice the tie: rounding must not cost a pair.
        floor = np.minimum(bound, reached) - 2 * tie
        needed = (floor / (1 + floor))[:, None] * (spans.areas[:, None] + self._smallest)
        partner = longest[:, ::-1].take(self._grid_of, axis=2)
        partner *= spans.lengths
        suitable = partner >= needed.take(self._grid_of, axis=1)[:, None]
        return self._combine(spans, suitable[:, 0], suitable[:, 1])

    def _combine(self, spans: Spans, rows: npt.NDArray[np.bool_], columns: npt.NDArray[np.bool_]) -> Pairs:
        """The pairs of each box with every anchor whose row and whose column [N, L] are marked."""
        lines, grids = len(self._grid_of), len(self._starts)
        row, column = np.flatnonzero(rows), np.flatnonzero(columns)
        box, row_line = np.divmod(row, lines)
        # Marked columns of one box and grid lie side by side: each row takes the run of its own.
        runs = np.add.reduceat(columns, self._starts, axis=1, dtype=np.int64).reshape(-1)
        run = box * grids + self._grid_of[row_line]
        length = runs[run]
        shift = (np.cumsum(runs) - runs)[run] - (np.cumsum(length) - length)
        taken = column[np.repeat(shift, length) + np.arange(length.sum())]
        objects = np.repeat(box, length)
        anchors = np.repeat(self._row_first[row_line], length) + self._column_step[taken % lines]
        heights, widths = (np.ascontiguousarray(spans.lengths[:, axis]).reshape(-1) for axis in (0, 1))
        intersection = np.repeat(heights[row], length) * widths[taken]
        union = spans.areas[objects] + self._areas[anchors]
        union -= intersection
        return Pairs(objects, anchors, intersection / union)

    def _intersection(self, spans: Spans) -> Float64Array:
        heights = spans.lengths[:, 0].take(self._row_of, axis=1)
        heights *= spans.lengths[:, 1].take(self._column_of, axis=1)
        return heights


def _cells(count: int, config: AnchorConfig) -> list[IntArray]:
    """Indices [n, n] of the anchors of each grid, rows first, if there are `count` of them in all.

    No level shrinks while the input grows, so one set of level sizes at most has that count.
    """
    shapes = anchors_per_cell(config)

    def anchors_at(input_size: int) -> int:
        return sum(cells * cells * number for cells, number in zip(feature_sizes(input_size), shapes, strict=True))

    input_size = bisect.bisect_left(range(LARGEST_INPUT), count, lo=1, key=anchors_at)
    if input_size == LARGEST_INPUT or anchors_at(input_size) != count:
        raise ValueError(f"no input size has {count} anchors of this config")
    grids = []
    first = 0
    for cells, number in zip(feature_sizes(input_size), shapes, strict=True):
        level = first + np.arange(cells * cells * number, dtype=np.int64).reshape(cells, cells, number)
        grids += list(np.moveaxis(level, 2, 0))
        first += level.size
    return grids
