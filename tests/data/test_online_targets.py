"""Tests that online crops equal prepared crops and that their targets match their pixels."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st
from support.box_strategies import random_boxes
from support.synthetic import draw_record

from pipelines import crops
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.boxes import decode_boxes, iou_matrix
from ssd_dist.core.config import AugmentationConfig, Config
from ssd_dist.core.crop_sampling import FILL
from ssd_dist.core.records import Objects
from ssd_dist.data import online_targets
from ssd_dist.data.online_targets import GraphObjects, OnlineTargets, crop_objects, render_crop

SSD = AugmentationConfig()
SIZE = 300
CROPS = st.builds(
    lambda y, x, height, width: np.array([y, x, y + height, x + width], np.float32),
    st.floats(-2, 0.9), st.floats(-2, 0.9), st.floats(0.1, 4), st.floats(0.1, 4),
)  # fmt: skip


def objects_of(boxes: np.ndarray, is_crowd: np.ndarray | None = None) -> Objects:
    count = len(boxes)
    crowd = np.zeros(count, bool) if is_crowd is None else is_crowd
    names = tuple(f"class {number}" for number in range(count))
    return Objects(boxes, np.arange(1, count + 1), names, np.zeros(count, bool), crowd, np.ones(count, np.float32))


def to_graph_objects(objects: Objects) -> GraphObjects:
    return GraphObjects(
        tf.constant(objects.boxes), tf.constant(objects.labels, tf.int64), tf.constant(objects.is_crowd)
    )


@given(crop=CROPS, seed=st.integers(0, 2**32 - 1), count=st.integers(0, 8))
def test_online_crops_equal_prepared_crops(crop, seed, count):
    rng = np.random.default_rng(seed)
    objects = objects_of(random_boxes(rng, count), rng.random(count) < 0.5)
    prepared_crop = crops.Crop(*crop.tolist())
    # Crops are computed in float32 and float64: for a center or side exactly at the border, both results are right.
    shifted = prepared_crop.shift(objects.boxes)
    ends = np.concatenate([shifted[:, :2], shifted[:, 2:], (shifted[:, :2] + shifted[:, 2:]) / 2], axis=1)
    assume((np.abs(np.stack([ends, ends - 1])) > 1e-5).all())
    expected = crops.crop_objects(objects, prepared_crop)
    found = crop_objects(to_graph_objects(objects), tf.constant(crop))
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.is_crowd, expected.is_crowd)
    # Coordinates up to 4 have a rounding error of 2.4e-7, which a crop of a tenth of the image multiplies by ten.
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=5e-6)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6))
def test_the_overlap_of_a_crop_is_the_highest_iou_if_it_contains_a_center(seed, count):
    rng = np.random.default_rng(seed)
    crops, boxes = random_boxes(rng, 12, smallest=0.1), random_boxes(rng, count)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (crops[:, None, :2] < centers) & (centers < crops[:, None, 2:])
    expected = np.where(inside.all(axis=2).any(axis=1), iou_matrix(crops, boxes).max(axis=1), -1)
    found = online_targets._highest_overlap(tf.constant(crops.reshape(3, 4, 4)), tf.constant(boxes))
    # Sides down to 0.005 are differences of float32 values near 1: the relative error is 6e-8 / 0.005, twice.
    np.testing.assert_allclose(found, expected.reshape(3, 4), rtol=5e-5, atol=1e-7)


def test_without_boxes_every_crop_is_suitable():
    crops = tf.constant(random_boxes(np.random.default_rng(0), 4).reshape(2, 2, 4))
    np.testing.assert_array_equal(online_targets._highest_overlap(crops, tf.zeros([0, 4])), np.ones((2, 2)))


def test_crops_expand_crop_or_keep_the_image_and_contain_an_object():
    boxes = np.array([[0.1, 0.1, 0.4, 0.5], [0.3, 0.6, 0.9, 0.95]], np.float32)
    draw = tf.function(lambda seed: online_targets.sample_crop(tf.constant(boxes), seed, SSD))
    sampled = [draw(tf.constant([number, 3], tf.int64)) for number in range(400)]
    assert all(len(crop_objects(to_graph_objects(objects_of(boxes)), crop).labels) for crop in sampled)
    areas = np.array([np.prod(crop[2:] - crop[:2]) for crop in sampled])
    # As in prepared copies: half are not expanded. Of these at least a seventh, those without a suitable crop, keep the
    # whole image.
    assert 0.5 / 7 - 0.05 < (np.abs(areas - 1) < 1e-5).mean() < 0.2
    assert (areas > 1.001).mean() > 0.2
    assert (areas < 0.999).mean() > 0.3


def draw_rectangle() -> tuple[np.ndarray, np.ndarray]:
    """Returns a white rectangle on black, and its box [1, 4]."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[75:188, 75:244] = 255
    return image, np.array([[75, 75, 188, 244]], np.float32) / SIZE


def find_box(pixels: np.ndarray) -> np.ndarray:
    """Returns the box [4] of the white pixels."""
    rows, columns = np.nonzero(pixels.min(axis=2) > 170)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / SIZE


@pytest.mark.parametrize("seed", range(12))
def test_pixels_and_boxes_agree(seed):
    image, box = draw_rectangle()
    crop = online_targets.sample_crop(tf.constant(box), tf.constant([seed, 7], tf.int64), SSD)
    rendered = render_crop(tf.constant(image), crop).numpy()
    found = crop_objects(to_graph_objects(objects_of(box)), crop)
    # A pixel of the image covers up to 3.3 pixels of a crop. From the center of a white pixel to that of a black one,
    # the interpolated value falls from 255 to 0, so it reaches the threshold of 170 after a third of the distance.
    np.testing.assert_allclose(find_box(rendered), found.boxes[0], atol=2.5 / SIZE)


@pytest.mark.parametrize("size", [41, 47, 97, SIZE])  # for the first three, 0.5 / S * S is not 0.5 in float32
def test_the_crop_of_the_whole_image_equals_the_image(size):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    np.testing.assert_array_equal(render_crop(tf.constant(image), tf.constant([0.0, 0.0, 1.0, 1.0])), image)


@pytest.mark.parametrize("crop", [(0.1, 0.2, 0.5, 0.9), (0.5, 0.01, 0.9, 0.3)])
def test_pixels_are_sampled_at_their_centers(crop):
    # On a ramp, bilinear values equal the positions: row 30 of 256 has the value 30.
    ramp = np.arange(256, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(0)), axis=-1)
    rendered = render_crop(tf.constant(image), tf.constant(crop)).numpy()
    centers = (np.arange(256) + 0.5) / 256
    for channel, along in ((0, rendered[:, 128, 0]), (1, rendered[128, :, 1])):
        low, high = crop[channel], crop[channel + 2]
        # Rounding to uint8 changes a value by up to 0.5; a shift by half a pixel would add 0.5.
        np.testing.assert_allclose(along, (low + centers * (high - low)) * 256 - 0.5, atol=0.5 + 1e-3)


def test_downscaling_is_anti_aliased():
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:, ::4] = 255
    rendered = render_crop(tf.constant(image), tf.constant([0.0, 0.0, 4.0, 4.0])).numpy()
    # The triangle filter covers eight columns, two periods: their mean, up to rounding. Without anti-aliasing, bilinear
    # values use two columns and would be black.
    assert np.abs(rendered[2:73, 2:73].astype(int) - 255 // 4).max() <= 1


def test_the_area_outside_the_image_is_filled():
    image = np.full((SIZE, SIZE, 3), 255, np.uint8)
    rendered = render_crop(tf.constant(image), tf.constant([-1.0, -2.0, 3.0, 2.0])).numpy()
    # The image begins at a quarter of the height and half of the width, and has 75 of 300 rows and columns.
    expected = np.full((SIZE, SIZE, 3), FILL, np.uint8)
    expected[75:150, 150:225] = 255
    np.testing.assert_array_equal(rendered, expected)


def test_targets_match_the_pixels_of_a_new_crop_in_each_epoch():
    config = Config.model_validate({"data": {"targets": "online"}})
    image, box = draw_rectangle()
    record = draw_record(0, "rectangle", config, 0)
    record = record.__class__(
        **{**vars(record), "encoded": tf.io.encode_jpeg(image, quality=100).numpy(), "objects": objects_of(box)}
    )
    anchors = generate_anchors(config.anchors, SIZE)
    make = OnlineTargets(config.data.augmentation, config.anchors, config.matching, SIZE, seed=0).make
    boxes = []
    for epoch in range(6):
        pixels, targets, name = make(tf.constant(record.to_bytes()), tf.constant(epoch, tf.int64))
        assert name == b"rectangle"
        found = decode_boxes(targets.offsets.numpy(), anchors[targets.anchors.numpy()], 0.1, 0.2)
        assert len(found) > 0
        boxes.append(find_box(pixels.numpy()))
        np.testing.assert_allclose(found, np.tile(boxes[-1], (len(found), 1)), atol=2.5 / SIZE)
    # At least a seventh of all images are not cropped.
    assert len({tuple(found_box) for found_box in boxes}) >= 3
