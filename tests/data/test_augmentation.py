"""Tests that flipped targets match flipped boxes, the effect of each color map, and the keys of random draws."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.box_strategies import general_boxes

from ssd_dist.core.anchors import flip_permutation
from ssd_dist.core.boxes import flip_boxes
from ssd_dist.core.config import AnchorConfig, AugmentationConfig, MatchingConfig
from ssd_dist.core.matching import Matcher
from ssd_dist.data.augmentation import (
    apply_color_map,
    draw_colors,
    draw_uniform,
    flip_targets,
    make_color_maps,
    record_seed,
)
from ssd_dist.data.batch import SparseTargets

ANCHORS = AnchorConfig()
NO_CHANGE = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
# ITU-R BT.601.
LUMA = np.array([0.299, 0.587, 0.114])
SEEDS = range(40)


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("policy", ["multi", "one_to_one"])
@settings(deadline=None, max_examples=40, derandomize=True)
@given(boxes=general_boxes(), crowds=st.integers(0, 2))
def test_flipped_targets_are_the_targets_of_the_flipped_boxes(policy, vertical, boxes, crowds):
    matcher = Matcher(ANCHORS, 300, MatchingConfig(policy=policy))
    labels = np.arange(1, len(boxes) + 1)
    is_crowd = np.arange(len(boxes)) < crowds
    plain = matcher.match(boxes, labels, is_crowd)
    expected = matcher.match(flip_boxes(boxes, vertical), labels, is_crowd)
    # A batch of the same image twice, with padded targets; only the second one is flipped.
    both = SparseTargets(*(tf.stack([pad(part, fill)] * 2) for part, fill in (
        (plain.anchors, -1), (plain.labels, -1), (plain.offsets, 0), (plain.ignored, -1))))  # fmt: skip
    permutation = tf.constant(flip_permutation(ANCHORS, 300, vertical), tf.int32)
    kept, flipped = (
        SparseTargets(
            *(part[row].numpy() for part in flip_targets(both, tf.constant([False, True]), permutation, vertical))
        )
        for row in (0, 1)
    )
    for before, after in zip(both, kept, strict=True):
        np.testing.assert_array_equal(before[0], after)
    count, ignored = len(plain.anchors), len(plain.ignored)
    assert (flipped.anchors[count:] == -1).all()
    assert (flipped.ignored[ignored:] == -1).all()
    order = np.argsort(flipped.anchors[:count])
    np.testing.assert_array_equal(flipped.anchors[:count][order], expected.anchors)
    np.testing.assert_array_equal(plain.labels[order], expected.labels)
    np.testing.assert_allclose(flipped.offsets[:count][order], expected.offsets, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(np.sort(flipped.ignored[:ignored]), expected.ignored)


def pad(part, fill) -> tf.Tensor:
    """Appends three rows of padding."""
    part = np.asarray(part, np.float32 if fill == 0 else np.int32)
    return tf.constant(np.concatenate([part, np.full((3, *part.shape[1:]), fill, part.dtype)]))


def color_map(seed: int, **config: float) -> np.ndarray:
    draws = draw_colors(seed, tf.constant([0], tf.int64), tf.constant(["a"]))
    return make_color_maps(draws, AugmentationConfig(**NO_CHANGE | config)).numpy()[0]


def test_color_maps_without_augmentation_are_the_identity():
    for seed in SEEDS:
        np.testing.assert_allclose(color_map(seed), np.eye(3, 4), atol=2e-6)


def test_hue_rotates_colors_around_the_gray_axis():
    colors = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    cosines = set()
    for seed in SEEDS:
        matrix = color_map(seed, hue=0.5)
        np.testing.assert_array_equal(matrix[:, 3], 0)
        moved = colors @ matrix[:, :3].T
        np.testing.assert_allclose(moved @ LUMA, colors @ LUMA, atol=1e-5)
        np.testing.assert_allclose(matrix[:, :3] @ np.ones(3), np.ones(3), atol=1e-5)
        # A rotation has determinant 1 and trace 1 + 2 cos(angle) in any basis.
        assert np.linalg.det(matrix[:, :3]) == pytest.approx(1, abs=1e-4)
        cosine = (np.trace(matrix[:, :3]) - 1) / 2
        assert -1 - 1e-4 <= cosine <= 1 + 1e-4
        cosines.add(round(float(cosine), 2))
    # Up to half the circle in each direction: all angles occur.
    assert min(cosines) < -0.8
    assert max(cosines) > 0.8


def test_a_small_hue_range_limits_the_rotation():
    # 0.05 of the circle is 18 degrees.
    cosines = [(np.trace(color_map(seed, hue=0.05)[:, :3]) - 1) / 2 for seed in SEEDS]
    assert min(cosines) >= np.cos(np.radians(18)) - 1e-5
    assert min(cosines) < np.cos(np.radians(15))


def test_brightness_adds_the_same_value_to_all_channels():
    shifts = np.array([color_map(seed, brightness=0.2)[:, 3] for seed in SEEDS])
    np.testing.assert_array_equal(shifts.max(1), shifts.min(1))
    # 0.2 of the pixel range, which has a width of 2.
    assert np.abs(shifts).max() <= 0.4
    assert shifts.min() < -0.3
    assert shifts.max() > 0.3
    for seed in SEEDS:
        np.testing.assert_allclose(color_map(seed, brightness=0.2)[:, :3], np.eye(3), atol=2e-6)


def test_contrast_scales_all_channels_by_one_factor():
    factors = []
    for seed in SEEDS:
        matrix = color_map(seed, contrast=0.5)[:, :3]
        np.testing.assert_allclose(matrix, np.eye(3) * matrix[0, 0], atol=2e-6)
        factors.append(matrix[0, 0])
    assert 0.5 <= min(factors) < 0.6
    assert 1.4 < max(factors) <= 1.5


def test_saturation_scales_the_distance_from_gray():
    factors = []
    for seed in SEEDS:
        matrix = color_map(seed, saturation=0.5)[:, :3].astype(np.float64)
        gray = np.tile(LUMA, (3, 1))
        factor = (matrix[0, 0] - LUMA[0]) / (1 - LUMA[0])
        np.testing.assert_allclose(matrix, factor * np.eye(3) + (1 - factor) * gray, atol=1e-5)
        factors.append(factor)
    assert 0.5 - 1e-5 <= min(factors) < 0.6
    assert 1.4 < max(factors) <= 1.5 + 1e-5


def test_the_map_is_applied_to_each_image_and_clipped():
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (3, 5, 4, 3)).astype(np.float32)
    maps = np.stack([color_map(seed, brightness=0.5, contrast=0.9, hue=0.3) for seed in range(3)])
    expected = np.empty(images.shape)
    for b, y, x in np.ndindex(3, 5, 4):
        for channel in range(3):
            value = sum(float(maps[b, channel, k]) * float(images[b, y, x, k]) for k in range(3)) + maps[b, channel, 3]
            expected[b, y, x, channel] = min(max(value, -1.0), 1.0)
    np.testing.assert_allclose(apply_color_map(tf.constant(images), tf.constant(maps)), expected, atol=1e-5)
    assert (np.abs(expected) == 1).any()


NAMES = [f"image {number}" for number in range(300)]


def draw(seed, epoch, names, purposes=("flip",)) -> np.ndarray:
    return draw_uniform(seed, tf.fill([len(names)], np.int64(epoch)), tf.constant(names), purposes).numpy()


def test_draws_depend_only_on_seed_epoch_record_and_purpose():
    tf.random.set_seed(0)
    first = draw(0, 0, NAMES)
    tf.random.set_seed(1)
    np.testing.assert_array_equal(draw(0, 0, NAMES), first)
    # The draws do not depend on the other records of the batch either.
    np.testing.assert_array_equal(draw(0, 0, NAMES[7:3:-1])[:, 0], first[7:3:-1, 0])
    others = [
        draw(1, 0, NAMES),
        draw(0, 1, NAMES),
        draw(0, 0, [name + "x" for name in NAMES]),
        draw(0, 0, NAMES, ["hue"]),
    ]
    for other in others:
        # The correlation of 300 independent pairs has a standard deviation of 0.058.
        assert abs(np.corrcoef(first[:, 0], other[:, 0])[0, 1]) < 0.25
    seeds = {
        tuple(record_seed(seed, tf.constant(epoch, tf.int64), tf.constant(name)).numpy().tolist())
        for seed in range(3) for epoch in range(3) for name in "abc"
    }  # fmt: skip
    assert len(seeds) == 27


def test_draws_are_uniform():
    draws = np.concatenate([draw(5, epoch, NAMES, ["a", "b"]) for epoch in range(40)])
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        # Kolmogorov-Smirnov test: one of a thousand samples exceeds 1.95 / sqrt(n).
        sample = np.sort(column)
        distance = np.abs(sample - (np.arange(len(sample)) + 0.5) / len(sample)).max()
        assert distance < 1.95 / np.sqrt(len(sample))
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.04


def test_the_color_map_of_a_record_does_not_depend_on_the_batch():
    ids = tf.constant([f"{index}" for index in range(200)])
    draws = draw_colors(0, tf.zeros([200], tf.int64), ids)
    together = make_color_maps(draws, AugmentationConfig()).numpy()
    for count in (1, 2, 3, 7, 16, 33):
        apart = [make_color_maps(draws[i : i + count], AugmentationConfig()).numpy() for i in range(0, 200, count)]
        np.testing.assert_array_equal(np.concatenate(apart), together, err_msg=f"{count} records")
