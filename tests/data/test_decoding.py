"""From a record to pixels, mirrored targets and a colour map."""

import io

import numpy as np
import pytest
import tensorflow as tf
from box_strategies import general_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssd_dist.core.anchors import flip_permutation, generate_anchors
from ssd_dist.core.boxes import flip_boxes
from ssd_dist.core.config import AnchorConfig, AugmentationConfig, MatchingConfig
from ssd_dist.core.matching import Matcher
from ssd_dist.data.decoding import (
    apply_color_map,
    decode_image,
    draw_colors,
    flip_targets,
    make_color_maps,
    record_seed,
)

ANCHORS = AnchorConfig()
NOTHING = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
# ITU-R BT.601.
LUMA = np.array([0.299, 0.587, 0.114])
SEEDS = range(40)


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("policy", ["multi", "one_to_one"])
@settings(deadline=None, max_examples=40, derandomize=True)
@given(boxes=general_boxes(), crowds=st.integers(0, 2))
def test_flipped_targets_are_the_targets_of_the_flipped_boxes(policy, vertical, boxes, crowds):
    matcher = Matcher(generate_anchors(ANCHORS, 300), ANCHORS, MatchingConfig(policy=policy))
    labels = np.arange(1, len(boxes) + 1)
    is_crowd = np.arange(len(boxes)) < crowds
    plain = matcher.match(boxes, labels, is_crowd)
    expected = matcher.match(flip_boxes(boxes, vertical), labels, is_crowd)
    anchors, offsets, ignored = flip_targets(
        tf.constant(plain.anchors), tf.constant(plain.offsets), tf.constant(plain.ignored),
        tf.constant(flip_permutation(ANCHORS, 300, vertical)), vertical,
    )  # fmt: skip
    order = np.argsort(anchors)
    np.testing.assert_array_equal(anchors.numpy()[order], expected.anchors)
    np.testing.assert_array_equal(plain.labels[order], expected.labels)
    np.testing.assert_allclose(offsets.numpy()[order], expected.offsets, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(np.sort(ignored), expected.ignored)


def color_map(seed: int, **config: float) -> np.ndarray:
    draws = draw_colors(tf.constant([seed, 0], tf.int64))
    return make_color_maps(draws, AugmentationConfig(**NOTHING | config)).numpy()


def test_nothing_asked_is_the_identity():
    for seed in SEEDS:
        np.testing.assert_allclose(color_map(seed), np.eye(3, 4), atol=2e-6)


def test_hue_turns_colours_around_the_grey_axis():
    colors = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    turned = set()
    for seed in SEEDS:
        matrix = color_map(seed, hue=0.5)
        np.testing.assert_array_equal(matrix[:, 3], 0)
        moved = colors @ matrix[:, :3].T
        np.testing.assert_allclose(moved @ LUMA, colors @ LUMA, atol=1e-5)
        np.testing.assert_allclose(matrix[:, :3] @ np.ones(3), np.ones(3), atol=1e-5)
        # A turn has the determinant 1 and the trace 1 + 2 cos(angle), in whatever axes it is written.
        assert np.linalg.det(matrix[:, :3]) == pytest.approx(1, abs=1e-4)
        cosine = (np.trace(matrix[:, :3]) - 1) / 2
        assert -1 - 1e-4 <= cosine <= 1 + 1e-4
        turned.add(round(float(cosine), 2))
    # Half the circle to either side: all angles occur.
    assert min(turned) < -0.8
    assert max(turned) > 0.8


def test_a_small_hue_is_a_small_turn():
    # 0.05 of the circle is 18 degrees.
    cosines = [(np.trace(color_map(seed, hue=0.05)[:, :3]) - 1) / 2 for seed in SEEDS]
    assert min(cosines) >= np.cos(np.radians(18)) - 1e-5
    assert min(cosines) < np.cos(np.radians(15))


def test_brightness_adds_one_number_to_all_channels():
    shifts = np.array([color_map(seed, brightness=0.2)[:, 3] for seed in SEEDS])
    np.testing.assert_array_equal(shifts.max(1), shifts.min(1))
    # 0.2 of the range of 2.
    assert np.abs(shifts).max() <= 0.4
    assert shifts.min() < -0.3
    assert shifts.max() > 0.3
    for seed in SEEDS:
        np.testing.assert_allclose(color_map(seed, brightness=0.2)[:, :3], np.eye(3), atol=2e-6)


def test_contrast_is_one_factor():
    factors = []
    for seed in SEEDS:
        matrix = color_map(seed, contrast=0.5)[:, :3]
        np.testing.assert_allclose(matrix, np.eye(3) * matrix[0, 0], atol=2e-6)
        factors.append(matrix[0, 0])
    assert 0.5 <= min(factors) < 0.6
    assert 1.4 < max(factors) <= 1.5


def test_saturation_moves_colours_from_and_to_their_grey():
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


def test_draws_depend_on_seed_epoch_and_record_alone():
    def seed_of(seed, epoch, name):
        return tuple(record_seed(seed, tf.constant(epoch, tf.int64), tf.constant(name)).numpy().tolist())

    tf.random.set_seed(0)
    first = seed_of(0, 0, "a")
    tf.random.set_seed(1)
    assert seed_of(0, 0, "a") == first
    draws = {seed_of(seed, epoch, name) for seed in range(3) for epoch in range(3) for name in "abc"}
    assert len(draws) == 27


def encode_jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_pixels_are_those_of_another_decoder():
    y, x = np.mgrid[0:48, 0:48]
    pixels = np.stack([5 * y, 5 * x, 120 + 2 * y - x], -1).astype(np.uint8)
    data = encode_jpeg(pixels)
    decoded = decode_image(tf.constant(data), 48).numpy()
    assert decoded.dtype == np.uint8
    other = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(decoded.astype(int) - other).max() <= 2


def test_a_grey_image_has_three_channels():
    decoded = decode_image(tf.constant(encode_jpeg(np.full((32, 32), 77, np.uint8))), 32).numpy()
    assert decoded.shape == (32, 32, 3)
    assert np.abs(decoded.astype(int) - 77).max() <= 1


def test_an_image_of_another_size_is_no_record_of_this_set():
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        decode_image(tf.constant(encode_jpeg(np.zeros((32, 40, 3), np.uint8))), 32)
