"""Tests that crops depend only on seed, image id and copy number, and that their pixels and boxes agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.crops import WHOLE, Crop, crop_objects, render_crop, sample_crop
from ssd_dist.core.config import AugmentationConfig
from ssd_dist.core.crop_sampling import FILL
from ssd_dist.core.images import resize_image
from ssd_dist.core.records import Objects

SSD = AugmentationConfig()
BOXES = np.array([[0.1, 0.1, 0.4, 0.5], [0.3, 0.6, 0.9, 0.95]], np.float32)


def objects_of(boxes, crowd=None):
    count = len(boxes)
    return Objects(
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=np.arange(1, count + 1),
        names=tuple(f"class {number}" for number in range(1, count + 1)),
        difficult=np.zeros(count, bool),
        is_crowd=np.zeros(count, bool) if crowd is None else np.array(crowd),
        area=np.full(count, 100, np.float32),
    )


def sample_crops(count, boxes=BOXES, config=SSD):
    return [sample_crop(7, f"image {number}", 1 + number % 3, boxes, config) for number in range(count)]


def test_copy_zero_is_the_whole_image():
    assert sample_crop(7, "a", 0, BOXES, SSD) == Crop(*WHOLE)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8))
    np.testing.assert_array_equal(render_crop(image, Crop(*WHOLE), 30), resize_image(image, 30))
    objects = objects_of(BOXES)
    assert crop_objects(objects, Crop(*WHOLE)) is objects


def test_a_crop_depends_only_on_seed_image_id_and_copy_number():
    assert sample_crop(7, "a", 1, BOXES, SSD) == sample_crop(7, "a", 1, BOXES, SSD)
    different = {sample_crop(seed, name, number, BOXES, SSD) for seed in (1, 2) for name in "ab" for number in (1, 2)}
    assert len(different) > 4
    # A golden value: prepared data must not change with a version of Python or NumPy.
    crop = sample_crop(0, "BloodImage_00004", 1, BOXES, SSD)
    assert (round(crop.ymin, 9), round(crop.xmin, 9), round(crop.ymax, 9), round(crop.xmax, 9)) == (
        0.319567524, 0.564964768, 0.978489819, 0.989992002,
    )  # fmt: skip


def test_images_are_expanded_cropped_or_unchanged():
    found = sample_crops(400)
    areas = np.array([crop.height * crop.width for crop in found])
    assert 0.5 / 7 - 0.05 < (areas == 1).mean() < 0.2
    assert (areas > 1).mean() > 0.2
    assert (areas < 1).mean() > 0.3
    assert areas.max() <= 16
    assert areas.min() >= 0.3**2 - 1e-9
    aspects = np.array([crop.width / crop.height for crop in found])
    assert aspects.min() >= 0.5 - 1e-9
    assert aspects.max() <= 2 + 1e-9


def test_expansion_and_crop_stay_within_the_config():
    found = sample_crops(400, config=AugmentationConfig(largest_expansion=1.5, smallest_crop=0.8))
    areas = np.array([crop.height * crop.width for crop in found])
    assert 1.7 < areas.max() <= 1.5**2
    assert 0.8**2 - 1e-9 <= areas.min() < 0.8**2 + 0.1
    unchanged = AugmentationConfig(largest_expansion=1.0, smallest_crop=1.0)
    assert set(sample_crops(50, config=unchanged)) == {Crop(*WHOLE)}


def test_every_crop_of_an_image_with_objects_keeps_at_least_one():
    objects = objects_of(BOXES)
    assert all(len(crop_objects(objects, crop).labels) for crop in sample_crops(300))


def test_images_without_objects_are_cropped_too():
    empty = np.zeros((0, 4), np.float32)
    assert len(set(sample_crops(50, empty))) > 20
    assert len(crop_objects(objects_of(empty), Crop(0.1, 0.1, 0.5, 0.5)).labels) == 0


corner = st.floats(0.01, 0.9)
crop_strategy = st.builds(
    lambda y, x, h, w: Crop(y, x, y + h, x + w), st.floats(-2, 0.9), st.floats(-2, 0.9), st.floats(0.1, 4),
    st.floats(0.1, 4),
)  # fmt: skip


@settings(deadline=None)
@given(crop=crop_strategy, seed=st.integers(0, 1000), crowd=st.booleans())
def test_a_crop_keeps_and_clips_objects_whose_center_is_inside(crop, seed, crowd):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.8, (6, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.01, 0.2, (6, 2))], axis=1).astype(np.float32)
    cropped = crop_objects(objects_of(boxes, [crowd] * 6), crop)
    assert (cropped.boxes >= 0).all()
    assert (cropped.boxes <= 1).all()
    assert (cropped.boxes[:, 2:] > cropped.boxes[:, :2]).all()
    # In units of the image, each box is clipped to the crop and not changed otherwise.
    size = np.array([crop.height, crop.width] * 2)
    back = cropped.boxes * size + [crop.ymin, crop.xmin] * 2
    expected = np.clip(boxes[cropped.labels - 1], [crop.ymin, crop.xmin] * 2, [crop.ymax, crop.xmax] * 2)
    np.testing.assert_allclose(back, expected, atol=1e-5)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = np.minimum(centers - [crop.ymin, crop.xmin], [crop.ymax, crop.xmax] - centers).min(axis=1)
    certain = {int(label) for label in 1 + np.flatnonzero(distance > 1e-5)}
    possible = {int(label) for label in 1 + np.flatnonzero(distance > -1e-5)}
    assert certain <= set(cropped.labels.tolist())
    assert crowd or set(cropped.labels.tolist()) <= possible
    assert (cropped.area <= 100 + 1e-3).all()


@settings(deadline=None, max_examples=200)
@given(crop=crop_strategy, size=st.integers(16, 64), height=st.integers(1, 90), width=st.integers(1, 90))
def test_every_crop_can_be_rendered(crop, size, height, width):
    if min(crop.ymax, crop.xmax) <= 0:
        return
    rendered = render_crop(Image.new("RGB", (width, height), (255, 0, 0)), crop, size)
    assert rendered.size == (size, size)
    colors = {color for _, color in rendered.getcolors()}
    assert colors <= {(255, 0, 0), FILL}
    assert (255, 0, 0) in colors


@pytest.mark.parametrize("seed", range(12))
def test_pixels_and_boxes_agree(seed):
    # A white rectangle on black: for every crop, the cropped box must enclose the white pixels.
    image = np.zeros((240, 320, 3), np.uint8)
    image[60:150, 80:260] = 255
    box = np.array([[60 / 240, 80 / 320, 150 / 240, 260 / 320]], np.float32)
    crop = sample_crop(seed, "rectangle", 1, box, SSD)
    size = 300
    rendered = np.asarray(render_crop(Image.fromarray(image), crop, size))
    cropped = crop_objects(objects_of(box), crop)
    assert len(cropped.labels) == 1
    rows, columns = np.nonzero(rendered.min(axis=2) > 170)
    found = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / size
    np.testing.assert_allclose(found, cropped.boxes[0], atol=2.5 / size)
