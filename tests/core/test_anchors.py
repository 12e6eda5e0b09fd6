"""Tests the number, size and order of the anchors, and that mirroring permutes them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference_boxes import anchors_reference

from ssd_dist.core.anchors import anchors_per_cell, feature_sizes, flip_permutation, generate_anchors
from ssd_dist.core.boxes import flip_boxes
from ssd_dist.core.config import AnchorConfig

# Output sizes of 3x3 convolutions of stride 2: padded at strides 8, 16, 32 and the next two; the last one is
# unpadded if its input has at least 3 cells.
FEATURE_SIZES = {
    300: (38, 19, 10, 5, 3, 1),
    320: (40, 20, 10, 5, 3, 1),
    512: (64, 32, 16, 8, 4, 1),
    64: (8, 4, 2, 1, 1, 1),
    32: (4, 2, 1, 1, 1, 1),
    1000: (125, 63, 32, 16, 8, 3),
}
SHAPES = (4, 6, 6, 6, 4, 4)


@pytest.mark.parametrize("input_size", FEATURE_SIZES)
def test_feature_sizes(input_size):
    assert feature_sizes(input_size) == FEATURE_SIZES[input_size]


def test_ssd300_has_8732_anchors():
    # Liu et al. 2016, section 3: 38^2 4 + 19^2 6 + 10^2 6 + 5^2 6 + 3^2 4 + 1^2 4.
    assert [cells**2 * shapes for cells, shapes in zip(feature_sizes(300), SHAPES, strict=True)] == [
        5776, 2166, 600, 150, 36, 4,
    ]  # fmt: skip
    anchors = generate_anchors(AnchorConfig(), 300)
    assert anchors.shape == (8732, 4)
    assert anchors.dtype == np.float32
    assert anchors_per_cell(AnchorConfig()) == SHAPES


@pytest.mark.parametrize("input_size", FEATURE_SIZES)
def test_anchors_equal_the_reference(input_size):
    config = AnchorConfig()
    expected = anchors_reference(config.sizes, config.aspect_ratios, FEATURE_SIZES[input_size])
    np.testing.assert_allclose(generate_anchors(config, input_size), expected, rtol=0, atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.floats(0.01, 2.0), min_size=7, max_size=7),
    ratios=st.lists(st.lists(st.floats(1.1, 5.0), max_size=3), min_size=6, max_size=6),
    input_size=st.sampled_from([32, 64, 300]),
)
def test_any_sizes_and_ratios_equal_the_reference_and_mirror(sizes, ratios, input_size):
    config = AnchorConfig(sizes=tuple(sizes), aspect_ratios=tuple(map(tuple, ratios)))
    anchors = generate_anchors(config, input_size)
    expected = anchors_reference(sizes, ratios, FEATURE_SIZES[input_size])
    np.testing.assert_allclose(anchors, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(flip_boxes(anchors), anchors[flip_permutation(config, input_size)], rtol=0, atol=1e-6)


def test_first_cell_by_hand():
    # Level 1 of 38 cells: center 0.5 / 38; s = 0.1, s' = sqrt(0.1 x 0.2), then ratio 2, first wide, then tall.
    first = generate_anchors(AnchorConfig(), 300)[:5].astype(np.float64)
    center, size = (first[:, :2] + first[:, 2:]) / 2, first[:, 2:] - first[:, :2]
    np.testing.assert_allclose(center[:4], 0.5 / 38, atol=1e-7)
    np.testing.assert_allclose(
        size[:4], [[0.1, 0.1], [0.1414214, 0.1414214], [0.0707107, 0.1414214], [0.1414214, 0.0707107]], atol=1e-6
    )
    # The fifth anchor is the first of the next column: x varies faster than y.
    np.testing.assert_allclose(center[4], [0.5 / 38, 1.5 / 38], atol=1e-7)


def test_order_is_level_row_column_shape():
    anchors = generate_anchors(AnchorConfig(), 300).astype(np.float64)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    start = 0
    for cells, shapes in zip(FEATURE_SIZES[300], SHAPES, strict=True):
        grid = centers[start : start + cells * cells * shapes].reshape(cells, cells, shapes, 2)
        middle = (np.arange(cells) + 0.5) / cells
        np.testing.assert_allclose(grid[..., 0], np.broadcast_to(middle[:, None, None], grid.shape[:3]), atol=1e-6)
        np.testing.assert_allclose(grid[..., 1], np.broadcast_to(middle[None, :, None], grid.shape[:3]), atol=1e-6)
        start += cells * cells * shapes
    assert start == len(anchors)


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("input_size", FEATURE_SIZES)
def test_flip_is_a_permutation_and_its_own_inverse(input_size, vertical):
    config = AnchorConfig()
    anchors, permutation = generate_anchors(config, input_size), flip_permutation(config, input_size, vertical)
    np.testing.assert_array_equal(np.sort(permutation), np.arange(len(anchors)))
    np.testing.assert_array_equal(permutation[permutation], np.arange(len(anchors)))
    np.testing.assert_allclose(flip_boxes(anchors, vertical), anchors[permutation], rtol=0, atol=2.5e-7)


def test_shared_arrays_are_read_only():
    config = AnchorConfig()
    for array in (generate_anchors(config, 300), flip_permutation(config, 300)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
