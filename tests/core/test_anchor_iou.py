"""Compares IoUs computed from rows and columns of anchors with those computed for each pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.box_strategies import adversarial_boxes, general_boxes

from ssd_dist.core.anchor_iou import AnchorGrids
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import AnchorConfig

ANCHORS = AnchorConfig()
# All anchors of equal size.
EVEN = AnchorConfig(sizes=(0.5,) * 7)
TIE = 1e-6


def grids_of(config: AnchorConfig, input_size: int) -> tuple[AnchorGrids, np.ndarray]:
    anchors = generate_anchors(config, input_size)
    return AnchorGrids(anchors, config, input_size), anchors


@pytest.mark.parametrize(("config", "input_size"), [(ANCHORS, 300), (ANCHORS, 64), (EVEN, 32), (ANCHORS, 512)])
@settings(deadline=None, max_examples=25)
@given(boxes=st.one_of(general_boxes(), adversarial_boxes()), bound=st.floats(0, 1))
def test_all_required_pairs_are_found(config, input_size, boxes, bound):
    grids, anchors = grids_of(config, input_size)
    if not len(boxes):
        return
    expected = iou_matrix(boxes, anchors)
    spans = grids.measure(boxes)
    np.testing.assert_allclose(grids.iou(spans), expected, rtol=1e-12, atol=1e-15)
    pairs = grids.find_pairs(spans, bound, TIE)
    found = np.full(expected.shape, -1.0)
    found[pairs.objects, pairs.anchors] = pairs.iou
    assert len(set(zip(pairs.objects.tolist(), pairs.anchors.tolist(), strict=True))) == len(pairs.iou)
    assert (np.diff(pairs.objects) >= 0).all()
    is_required = expected >= np.minimum(bound, expected.max(axis=1, keepdims=True)) - TIE
    np.testing.assert_allclose(found[is_required], expected[is_required], rtol=1e-12, atol=1e-15)


def test_only_a_small_share_of_the_pairs_is_computed():
    grids, anchors = grids_of(ANCHORS, 300)
    box = np.array([[0.3, 0.3, 0.5, 0.55]], np.float32)
    assert len(grids.find_pairs(grids.measure(box), 0.4, TIE).iou) < len(anchors) / 50


def test_anchors_in_another_order_are_rejected():
    anchors = generate_anchors(ANCHORS, 300)
    for wrong in (anchors[:-1], anchors[::-1], np.roll(anchors, 1, axis=0)):
        with pytest.raises(ValueError, match="anchors"):
            AnchorGrids(np.ascontiguousarray(wrong), ANCHORS, 300)
