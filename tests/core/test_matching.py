"""Compares matching with plain loops, and tests properties that hold for all boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.box_strategies import adversarial_boxes, general_boxes, random_boxes
from support.reference_boxes import encode_reference, iou_reference, match_reference

from ssd_dist.core.anchors import flip_permutation, generate_anchors
from ssd_dist.core.boxes import decode_boxes, flip_boxes
from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.matching import Matcher, Targets

POLICIES = pytest.mark.parametrize("policy", ["multi", "one_to_one"])
ANCHORS = AnchorConfig()
# 390 anchors: the loops of the reference stay quick.
SMALL = 64


def matcher(policy: str = "multi", input_size: int = 300, **bounds: float) -> Matcher:
    return Matcher(ANCHORS, input_size, MatchingConfig(policy=policy, **bounds))


def labels_of(boxes: np.ndarray) -> np.ndarray:
    return np.arange(1, len(boxes) + 1, dtype=np.int64)


def check_equals_reference(targets: Targets, boxes: np.ndarray, crowd, policy: str, input_size: int, **bounds) -> None:
    anchors = generate_anchors(ANCHORS, input_size)
    expected = match_reference(boxes, anchors, policy, is_crowd=crowd, **bounds)
    assert dict(zip(targets.anchors.tolist(), targets.objects.tolist(), strict=True)) == expected.positives
    assert set(targets.ignored.tolist()) == expected.ignored
    np.testing.assert_array_equal(targets.labels, labels_of(boxes)[targets.objects])
    for anchor, owner, offsets in zip(targets.anchors, targets.objects, targets.offsets, strict=True):
        np.testing.assert_allclose(
            offsets, encode_reference(boxes[owner], anchors[anchor], 0.1, 0.2), rtol=1e-5, atol=1e-5
        )


@POLICIES
@settings(deadline=None, max_examples=60)
@given(boxes=st.one_of(general_boxes(), adversarial_boxes()), data=st.data())
def test_equals_the_reference(policy, boxes, data):
    crowd = np.array(data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes))), bool)
    targets = matcher(policy, SMALL).match(boxes, labels_of(boxes), crowd)
    check_equals_reference(targets, boxes, crowd, policy, SMALL)


@settings(deadline=None, max_examples=30)
@given(boxes=general_boxes(), bounds=st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)).map(sorted))
def test_equals_the_reference_at_any_bounds(boxes, bounds):
    bounds = {"negative_iou": bounds[0], "positive_iou": bounds[1]}
    targets = matcher("multi", SMALL, **bounds).match(boxes, labels_of(boxes))
    check_equals_reference(targets, boxes, None, "multi", SMALL, **bounds)


@POLICIES
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference_on_ssd300(policy, seed):
    boxes = random_boxes(np.random.default_rng(seed), 5)
    crowd = np.array([False, False, False, False, True])
    check_equals_reference(matcher(policy).match(boxes, labels_of(boxes), crowd), boxes, crowd, policy, 300)


@POLICIES
@settings(deadline=None, max_examples=100, derandomize=True)
@given(boxes=general_boxes(largest_count=20))
def test_flip_commutes(policy, boxes):
    permutation = flip_permutation(ANCHORS, 300)
    plain = matcher(policy).match(boxes, labels_of(boxes))
    mirrored = matcher(policy).match(flip_boxes(boxes), labels_of(boxes))
    # Anchor a of the plain image is anchor permutation[a] of the mirrored one.
    moved = permutation[plain.anchors]
    order = np.argsort(moved)
    np.testing.assert_array_equal(mirrored.anchors, moved[order])
    np.testing.assert_array_equal(mirrored.objects, plain.objects[order])
    np.testing.assert_array_equal(mirrored.ignored, np.sort(permutation[plain.ignored]))
    np.testing.assert_allclose(mirrored.offsets, (plain.offsets * [1, -1, 1, 1])[order], rtol=1e-4, atol=1e-3)


@POLICIES
@settings(deadline=None, max_examples=100)
@given(boxes=adversarial_boxes(smallest_count=1))
def test_every_object_has_a_positive_whatever_the_boxes(policy, boxes):
    targets = matcher(policy).match(boxes, labels_of(boxes))
    counts = np.bincount(targets.objects, minlength=len(boxes))
    assert (counts >= 1).all()
    if policy == "one_to_one":
        assert (counts == 1).all()


@POLICIES
@settings(deadline=None, max_examples=60)
@given(boxes=st.one_of(general_boxes(), adversarial_boxes()), data=st.data())
def test_targets_are_well_formed(policy, boxes, data):
    crowd = np.array(data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes))), bool)
    targets = matcher(policy).match(boxes, labels_of(boxes), crowd)
    for indices in (targets.anchors, targets.ignored):
        assert indices.dtype == np.int64
        assert (np.diff(indices) > 0).all()
        assert ((indices >= 0) & (indices < 8732)).all()
    assert not set(targets.anchors) & set(targets.ignored)
    assert targets.offsets.dtype == np.float32
    assert targets.offsets.shape == (len(targets.anchors), 4)
    assert targets.labels.dtype == np.int64
    assert np.isfinite(targets.offsets).all()
    assert not crowd[targets.objects].any()
    decoded = decode_boxes(targets.offsets, generate_anchors(ANCHORS, 300)[targets.anchors], 0.1, 0.2)
    np.testing.assert_allclose(decoded, boxes[targets.objects], atol=1e-5)


@POLICIES
@pytest.mark.parametrize("negative_iou", [0.0, 0.4])
@settings(deadline=None, max_examples=30)
@given(images=st.lists(st.one_of(general_boxes(), adversarial_boxes()), min_size=1, max_size=6), data=st.data())
def test_match_all_equals_match_of_each_image(policy, negative_iou, images, data):
    crowds = [
        np.array(data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes))), bool) for boxes in images
    ]
    one = matcher(policy, SMALL, negative_iou=negative_iou)
    labels = [labels_of(boxes) for boxes in images]
    together = one.match_all(images, labels, crowds)
    for targets, boxes, own_labels, crowd in zip(together, images, labels, crowds, strict=True):
        alone = one.match(boxes, own_labels, crowd)
        for name in ("anchors", "labels", "offsets", "ignored", "objects"):
            np.testing.assert_array_equal(getattr(targets, name), getattr(alone, name))
            assert getattr(targets, name).dtype == getattr(alone, name).dtype


@POLICIES
def test_an_empty_image_is_all_background(policy):
    targets = matcher(policy).match(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert [len(x) for x in (targets.anchors, targets.labels, targets.ignored, targets.objects)] == [0, 0, 0, 0]
    assert targets.offsets.shape == (0, 4)


@POLICIES
def test_identical_boxes_each_get_their_own_anchor(policy):
    # Trap 1: the TF Object Detection API keeps the first, the PyTorch SSDs the last.
    boxes = np.tile(np.array([[0.31, 0.22, 0.52, 0.47]], np.float32), (30, 1))
    targets = matcher(policy).match(boxes, labels_of(boxes))
    assert set(targets.objects) == set(range(30))


def test_the_second_object_of_a_contested_anchor_takes_its_next_best_anchor():
    anchors = generate_anchors(ANCHORS, SMALL)
    # Both lie in the 1x1 level's largest square (0.88) better than in anything else.
    boxes = np.array([[0.06, 0.06, 0.94, 0.94], [0.07, 0.07, 0.93, 0.93]], np.float32)
    targets = matcher("one_to_one", SMALL).match(boxes, labels_of(boxes))
    ranks = [sorted(range(len(anchors)), key=lambda a: -iou_reference(box, anchors[a])) for box in boxes]
    assert ranks[0][0] == ranks[1][0]
    owner = dict(zip(targets.objects.tolist(), targets.anchors.tolist(), strict=True))
    assert owner == {0: ranks[0][0], 1: ranks[1][1]}


def test_more_objects_than_anchors_give_every_anchor_an_object():
    boxes = random_boxes(np.random.default_rng(0), 200)
    targets = matcher("one_to_one", 32).match(boxes, labels_of(boxes))
    # 4^2 x 4 + 2^2 x 6 + 6 + 6 + 4 + 4.
    assert len(set(targets.objects)) == len(targets.anchors) == 108


def test_forced_match_beats_the_ignore_band():
    # Half an anchor of the first level, so no IoU exceeds 0.5, yet 0.4 is reached.
    anchor = generate_anchors(ANCHORS, 300)[(17 * 38 + 21) * 4].astype(np.float64)
    box = anchor.copy()
    box[3] = (anchor[1] + anchor[3]) / 2
    targets = matcher().match(box[None].astype(np.float32), np.array([1]))
    best = max(iou_reference(box, a) for a in generate_anchors(ANCHORS, 300))
    assert 0.4 < best < 0.55
    assert len(targets.anchors) >= 1
    assert not set(targets.anchors) & set(targets.ignored)


def test_an_iou_at_a_bound_is_neither_above_nor_below_it():
    # Against the anchor 0.88 x 0.88: the same height and half the width is an IoU of exactly 1/2.
    anchors = generate_anchors(ANCHORS, 300)
    square = 8728
    box = anchors[square].copy()
    box[3] = (box[1] + box[3]) / 2
    iou = iou_reference(box, anchors[square])
    assert iou == pytest.approx(0.5, abs=1e-7)
    at_positive = matcher("multi", positive_iou=0.5, negative_iou=0.4).match(box[None], np.array([1]))
    at_negative = matcher("multi", positive_iou=0.95, negative_iou=0.5).match(box[None], np.array([1]))
    below_negative = matcher("multi", positive_iou=0.95, negative_iou=0.51).match(box[None], np.array([1]))
    assert square in at_positive.ignored
    assert square in at_negative.ignored
    assert square not in below_negative.ignored


def test_ties_in_iou_go_to_the_nearer_center_then_to_the_lower_index():
    # A small object has one IoU with all anchors of one area that hold it: those of several cells, and in each cell
    # the square of side 0.1 and both boxes of ratio 2.
    y, x = 0.5 / 38, 20.52 / 38
    box = np.array([[y - 0.004, x - 0.005, y + 0.004, x + 0.005]], np.float32)
    anchors = generate_anchors(ANCHORS, 300)
    ious = np.array([iou_reference(box[0], anchor) for anchor in anchors])
    tied = np.flatnonzero(ious >= ious.max() - 1e-6)
    assert {a % 4 for a in tied} == {0, 2, 3}
    assert len({a // 4 for a in tied}) > 1
    # Row 0, column 20, its first shape.
    assert matcher("one_to_one").match(box, np.array([1])).anchors.tolist() == [20 * 4]


def test_of_two_objects_tied_for_an_anchor_the_nearer_gets_it():
    # Two small objects of one size in one cell: the second lies nearer to its center.
    y, x = 10.5 / 38, 20.5 / 38
    boxes = np.array([[y - 0.004, x - 0.001, y + 0.004, x + 0.009], [y - 0.004, x - 0.004, y + 0.004, x + 0.006]])
    targets = matcher("one_to_one").match(boxes.astype(np.float32), np.array([1, 2]))
    owner = dict(zip(targets.objects.tolist(), targets.anchors.tolist(), strict=True))
    assert owner[1] == (10 * 38 + 20) * 4
    # The first takes the next shape of the same area at the same place.
    assert owner[0] == (10 * 38 + 20) * 4 + 2


def test_an_anchor_between_two_objects_of_one_iou_goes_to_the_nearer():
    # Both lie wholly inside the largest square anchor; the second shares its center.
    boxes = np.array([[0.07, 0.07, 0.81, 0.81], [0.13, 0.13, 0.87, 0.87]], np.float32)
    anchors = generate_anchors(ANCHORS, 300)
    square = 8728
    assert iou_reference(boxes[0], anchors[square]) == pytest.approx(iou_reference(boxes[1], anchors[square]), abs=1e-6)
    for order in ([0, 1], [1, 0]):
        targets = matcher("multi").match(boxes[order], np.array([1, 2]))
        owner = dict(zip(targets.anchors.tolist(), targets.objects.tolist(), strict=True))
        assert order[owner[square]] == 1


def test_a_small_difference_in_distance_still_decides():
    # 2e-5 nearer to the right one of two cells: a mirrored image must choose the mirrored anchor.
    x = 20 / 38 + 1e-5
    box = np.array([[0.5 / 38 - 0.004, x - 0.005, 0.5 / 38 + 0.004, x + 0.005]], np.float32)
    plain = matcher("one_to_one").match(box, np.array([1])).anchors
    mirrored = matcher("one_to_one").match(flip_boxes(box), np.array([1])).anchors
    np.testing.assert_array_equal(mirrored, flip_permutation(ANCHORS, 300)[plain])


def test_anchors_covered_by_a_crowd_are_ignored_and_none_are_positive():
    box = np.array([[0.0, 0.0, 1.0, 0.5]], np.float32)
    targets = matcher().match(box, np.array([1]), np.array([True]))
    assert len(targets.anchors) == 0
    anchors = generate_anchors(ANCHORS, 300).astype(np.float64)
    height = np.minimum(anchors[:, 2], 1) - np.maximum(anchors[:, 0], 0)
    width = np.minimum(anchors[:, 3], 0.5) - np.maximum(anchors[:, 1], 0)
    cover = height * np.maximum(width, 0) / ((anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1]))
    np.testing.assert_array_equal(targets.ignored, np.flatnonzero(cover >= 0.4 - 1e-6))


def test_best_iou_is_the_highest_over_all_anchors():
    boxes = random_boxes(np.random.default_rng(1), 4)
    anchors = generate_anchors(ANCHORS, SMALL)
    expected = [max(iou_reference(box, anchor) for anchor in anchors) for box in boxes]
    np.testing.assert_allclose(matcher("multi", SMALL).best_iou(boxes), expected, atol=1e-12)
    assert matcher().best_iou(np.zeros((0, 4), np.float32)).shape == (0,)
