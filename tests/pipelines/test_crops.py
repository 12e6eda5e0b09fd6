"""Views: a function of seed, id and number; what a view shows and where its boxes lie agree."""

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


def windows(count, boxes=BOXES, config=SSD):
    return [sample_crop(7, f"image {number}", 1 + number % 3, boxes, config) for number in range(count)]


def test_view_zero_is_the_whole_image():
    assert sample_crop(7, "a", 0, BOXES, SSD) == Crop(*WHOLE)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8))
    np.testing.assert_array_equal(render_crop(image, Crop(*WHOLE), 30), resize_image(image, 30))
    objects = objects_of(BOXES)
    assert crop_objects(objects, Crop(*WHOLE)) is objects


def test_a_view_depends_on_seed_id_and_number_alone():
    assert sample_crop(7, "a", 1, BOXES, SSD) == sample_crop(7, "a", 1, BOXES, SSD)
    different = {sample_crop(seed, name, view, BOXES, SSD) for seed in (1, 2) for name in "ab" for view in (1, 2)}
    assert len(different) > 4
    # A golden value: prepared data must not change with a version of Python or NumPy.
    window = sample_crop(0, "BloodImage_00004", 1, BOXES, SSD)
    assert (round(window.ymin, 9), round(window.xmin, 9), round(window.ymax, 9), round(window.xmax, 9)) == (
        0.319567524, 0.564964768, 0.978489819, 0.989992002,
    )  # fmt: skip


def test_windows_expand_crop_and_leave_alone():
    found = windows(400)
    areas = np.array([window.height * window.width for window in found])
    assert 0.5 / 7 - 0.05 < (areas == 1).mean() < 0.2
    assert (areas > 1).mean() > 0.2
    assert (areas < 1).mean() > 0.3
    assert areas.max() <= 16
    assert areas.min() >= 0.3**2 - 1e-9
    aspects = np.array([window.width / window.height for window in found])
    assert aspects.min() >= 0.5 - 1e-9
    assert aspects.max() <= 2 + 1e-9


def test_expansion_and_crop_keep_to_the_config():
    found = windows(400, config=AugmentationConfig(largest_expansion=1.5, smallest_crop=0.8))
    areas = np.array([window.height * window.width for window in found])
    assert 1.7 < areas.max() <= 1.5**2
    assert 0.8**2 - 1e-9 <= areas.min() < 0.8**2 + 0.1
    alone = AugmentationConfig(largest_expansion=1.0, smallest_crop=1.0)
    assert set(windows(50, config=alone)) == {Crop(*WHOLE)}


def test_every_view_of_an_image_with_objects_keeps_one():
    objects = objects_of(BOXES)
    assert all(len(crop_objects(objects, window).labels) for window in windows(300))


def test_images_without_objects_have_views_too():
    empty = np.zeros((0, 4), np.float32)
    assert len(set(windows(50, empty))) > 20
    assert len(crop_objects(objects_of(empty), Crop(0.1, 0.1, 0.5, 0.5)).labels) == 0


corner = st.floats(0.01, 0.9)
window_strategy = st.builds(
    lambda y, x, h, w: Crop(y, x, y + h, x + w), st.floats(-2, 0.9), st.floats(-2, 0.9), st.floats(0.1, 4),
    st.floats(0.1, 4),
)  # fmt: skip


@settings(deadline=None)
@given(window=window_strategy, seed=st.integers(0, 1000), crowd=st.booleans())
def test_seen_objects_are_those_of_the_window(window, seed, crowd):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.8, (6, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.01, 0.2, (6, 2))], axis=1).astype(np.float32)
    seen = crop_objects(objects_of(boxes, [crowd] * 6), window)
    assert (seen.boxes >= 0).all()
    assert (seen.boxes <= 1).all()
    assert (seen.boxes[:, 2:] > seen.boxes[:, :2]).all()
    # In units of the image: clipped to the window, and no farther in than that.
    size = np.array([window.height, window.width] * 2)
    back = seen.boxes * size + [window.ymin, window.xmin] * 2
    expected = np.clip(boxes[seen.labels - 1], [window.ymin, window.xmin] * 2, [window.ymax, window.xmax] * 2)
    np.testing.assert_allclose(back, expected, atol=1e-5)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = np.minimum(centers - [window.ymin, window.xmin], [window.ymax, window.xmax] - centers).min(axis=1)
    surely = {int(label) for label in 1 + np.flatnonzero(distance > 1e-5)}
    maybe = {int(label) for label in 1 + np.flatnonzero(distance > -1e-5)}
    assert surely <= set(seen.labels.tolist())
    assert crowd or set(seen.labels.tolist()) <= maybe
    assert (seen.area <= 100 + 1e-3).all()


@settings(deadline=None, max_examples=200)
@given(window=window_strategy, size=st.integers(16, 64), height=st.integers(1, 90), width=st.integers(1, 90))
def test_every_window_can_be_rendered(window, size, height, width):
    if min(window.ymax, window.xmax) <= 0:
        return
    view = render_crop(Image.new("RGB", (width, height), (255, 0, 0)), window, size)
    assert view.size == (size, size)
    colours = {colour for _, colour in view.getcolors()}
    assert colours <= {(255, 0, 0), FILL}
    assert (255, 0, 0) in colours


@pytest.mark.parametrize("seed", range(12))
def test_pixels_and_boxes_agree(seed):
    # A white rectangle on black: wherever the window lies, the box of the view must frame the white pixels.
    image = np.zeros((240, 320, 3), np.uint8)
    image[60:150, 80:260] = 255
    box = np.array([[60 / 240, 80 / 320, 150 / 240, 260 / 320]], np.float32)
    window = sample_crop(seed, "rectangle", 1, box, SSD)
    size = 300
    view = np.asarray(render_crop(Image.fromarray(image), window, size))
    seen = crop_objects(objects_of(box), window)
    assert len(seen.labels) == 1
    rows, columns = np.nonzero(view.min(axis=2) > 170)
    found = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / size
    np.testing.assert_allclose(found, seen.boxes[0], atol=2.5 / size)
