"""Generates boxes for property tests: in general position, and hard cases of matching."""

import numpy as np
from hypothesis import strategies as st

GRID = 64
CELLS = np.array([38, 19, 10, 5, 3, 1])


def random_boxes(rng: np.random.Generator, count: int, smallest: float = 0.005, largest: float = 0.9) -> np.ndarray:
    """Draws boxes in general position, float32 [count, 4], with log-uniform sides.

    No center lies within 5e-6 of the middle between two cells of SSD300, where the nearest anchor is ambiguous.
    """
    boxes: list[np.ndarray] = []
    while len(boxes) < count:
        sides = np.exp(rng.uniform(np.log(smallest), np.log(largest), 2))
        corner = rng.uniform(0, 1 - sides)
        middles = np.outer(corner + sides / 2, CELLS)
        if (np.abs(middles - np.round(middles)) / CELLS > 5e-6).all():
            boxes.append(np.concatenate([corner, corner + sides]))
    return np.array(boxes, np.float32).reshape(-1, 4)


@st.composite
def general_boxes(draw: st.DrawFn, smallest_count: int = 0, largest_count: int = 8) -> np.ndarray:
    """Draws boxes in general position."""
    count = draw(st.integers(smallest_count, largest_count))
    return random_boxes(np.random.default_rng(draw(st.integers(0, 2**32 - 1))), count)


def _grid_box(corners: tuple[int, int, int, int]) -> tuple[float, ...]:
    y, x, height, width = corners
    y, x = min(y, GRID - 1), min(x, GRID - 1)
    return (y / GRID, x / GRID, min(y + height, GRID) / GRID, min(x + width, GRID) / GRID)


_ON_GRID = st.tuples(
    st.integers(0, GRID - 1), st.integers(0, GRID - 1), st.integers(1, GRID), st.integers(1, GRID)
).map(_grid_box)
# Shifted copies of one size: an anchor has the same IoU with each copy inside it.
_SMALL_COPY = st.tuples(st.integers(96, 104), st.integers(96, 104)).map(
    lambda corner: (corner[0] / 256, corner[1] / 256, (corner[0] + 3) / 256, (corner[1] + 2) / 256)
)
_LARGE_COPY = st.tuples(st.integers(4, 12), st.integers(4, 12)).map(lambda corner: _grid_box((*corner, 48, 48)))
_EXTREME = st.sampled_from(
    [
        (0.0, 0.0, 1.0, 1.0),  # the full image
        (0.5, 0.5, 0.5001, 0.5001),  # tiny, at the center
        (0.0, 0.0, 1e-4, 1e-4),  # tiny, in the corner
        (0.999, 0.999, 1.0, 1.0),
        (0.0, 0.3, 1.0, 0.301),  # a sliver as high as the image
        (0.9, 0.0, 1.0, 1.0),  # at the lower border
        (0.25, 0.25, 0.75, 0.75),
    ]
)


@st.composite
def adversarial_boxes(draw: st.DrawFn, smallest_count: int = 0, largest_count: int = 6) -> np.ndarray:
    """Draws hard cases of matching: ties, shared best anchors, and boxes that are tiny or touch the border.

    The boxes lie on a coarse grid, have extreme shapes, or are shifted or exact copies of each other.
    """
    boxes = draw(
        st.one_of(
            st.lists(st.one_of(_ON_GRID, _EXTREME), min_size=smallest_count, max_size=largest_count),
            st.lists(st.one_of(_SMALL_COPY, _LARGE_COPY), min_size=smallest_count, max_size=largest_count),
        )
    )
    if boxes:
        boxes += draw(st.lists(st.sampled_from(boxes), max_size=3))
    return np.array(boxes, np.float32).reshape(-1, 4)
