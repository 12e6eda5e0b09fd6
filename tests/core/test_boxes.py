"""Compares box arithmetic with scalar loops; decoding inverts encoding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.box_strategies import adversarial_boxes, general_boxes, random_boxes
from support.reference_boxes import area_reference, decode_reference, encode_reference, iou_reference

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.boxes import areas, decode_boxes, encode_boxes, flip_boxes, iou_matrix
from ssd_dist.core.config import AnchorConfig

VARIANCES = (0.1, 0.2)
BOXES = st.one_of(general_boxes(), adversarial_boxes())


@settings(deadline=None, max_examples=60)
@given(BOXES, BOXES)
def test_iou_equals_the_reference(boxes, others):
    expected = np.array([[iou_reference(a, b) for b in others] for a in boxes]).reshape(len(boxes), len(others))
    iou = iou_matrix(boxes, others)
    assert iou.dtype == np.float64
    np.testing.assert_allclose(iou, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(iou, iou_matrix(others, boxes).T)
    np.testing.assert_allclose(areas(boxes), [area_reference(box) for box in boxes], rtol=1e-6)
    assert ((iou >= 0) & (iou <= 1)).all()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1.0),
        ((0, 0, 0.5, 1), (0.5, 0, 1, 1), 0.0),  # they touch and do not overlap
        ((0, 0, 0.5, 0.5), (0, 0.25, 0.5, 0.75), 1 / 3),
        ((0, 0, 1, 1), (0.25, 0.25, 0.5, 0.5), 1 / 16),
        ((0.2, 0.2, 0.2, 0.2), (0.2, 0.2, 0.2, 0.2), 0.0),  # an empty union causes no division by zero
        ((0.5, 0.5, 0.2, 0.2), (0, 0, 1, 1), 0.0),  # a reversed box has no area
    ],
)
def test_iou_by_hand(a, b, expected):
    assert iou_matrix(np.array([a], np.float32), np.array([b], np.float32)).item() == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), BOXES)
def test_encode_equals_the_reference_and_decode_inverts_it(seed, boxes):
    rng = np.random.default_rng(seed)
    anchors = rng.permutation(generate_anchors(AnchorConfig(), 300))[: len(boxes)]
    offsets = encode_boxes(boxes, anchors, *VARIANCES)
    assert offsets.dtype == np.float32
    expected = [encode_reference(*pair, *VARIANCES) for pair in zip(boxes, anchors, strict=True)]
    np.testing.assert_allclose(offsets, np.reshape(expected, (-1, 4)), rtol=2e-7, atol=1e-7)
    np.testing.assert_allclose(decode_boxes(offsets, anchors, *VARIANCES), boxes, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_decode_equals_the_reference_and_encode_inverts_it(seed):
    rng = np.random.default_rng(seed)
    anchors = random_boxes(rng, 5, smallest=0.05)
    offsets = rng.normal(0, 3, (5, 4)).astype(np.float32)
    boxes = decode_boxes(offsets, anchors, *VARIANCES)
    expected = [decode_reference(*pair, *VARIANCES) for pair in zip(offsets, anchors, strict=True)]
    np.testing.assert_allclose(boxes, expected, rtol=2e-7, atol=1e-7)
    np.testing.assert_allclose(encode_boxes(boxes, anchors, *VARIANCES), offsets, rtol=0, atol=1e-3)


def test_encode_by_hand():
    # An anchor of 0.2 x 0.4 at (0.5, 0.5); the box is twice as high, half as wide and 0.1 lower: 0.1 / 0.2 / 0.1 = 5.
    anchor = np.array([[0.4, 0.3, 0.6, 0.7]], np.float32)
    box = np.array([[0.4, 0.4, 0.8, 0.6]], np.float32)
    np.testing.assert_allclose(encode_boxes(box, anchor, 0.1, 0.2), [[5, 0, 3.4657359, -3.4657359]], atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(BOXES, st.booleans())
def test_flip_mirrors_and_is_its_own_inverse(boxes, vertical):
    flipped = flip_boxes(boxes, vertical)
    kept, low, high = ([1, 3], 0, 2) if vertical else ([0, 2], 1, 3)
    np.testing.assert_array_equal(flipped[:, kept], boxes[:, kept])
    np.testing.assert_allclose(flipped[:, low] + boxes[:, high], 1, atol=1e-6)
    np.testing.assert_allclose(flip_boxes(flipped, vertical), boxes, atol=1e-7)


def test_functions_accept_zero_boxes():
    none = np.zeros((0, 4), np.float32)
    assert iou_matrix(none, none).shape == (0, 0)
    assert iou_matrix(none, np.zeros((3, 4), np.float32)).shape == (0, 3)
    for result in (encode_boxes(none, none, *VARIANCES), decode_boxes(none, none, *VARIANCES), flip_boxes(none)):
        assert result.shape == (0, 4)
