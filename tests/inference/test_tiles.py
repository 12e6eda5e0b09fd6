"""Detection in tiles: their placement, the merging, and small objects that the whole image does not show."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssd_dist.core.config import EvalConfig
from ssd_dist.core.errors import UsageError
from ssd_dist.core.file_kinds import MOST_TILES
from ssd_dist.evaluation.detections import Detections
from ssd_dist.inference.loaded_detector import LoadedDetector
from ssd_dist.inference.tiles import MARGIN, count_images_per_batch, detect_images, merge_tiles, place_tiles
from ssd_dist.model.postprocessing import DetectionBatch

SIZE = 32
WHOLE = np.float32([0, 0, 1, 1])


@pytest.fixture
def detector():
    """Detects white squares of 2 pixels or more at its input as one box around all white pixels, score = brightness."""

    def detect(images):
        boxes, scores = [], []
        for image in images.numpy():
            rows, columns = np.nonzero(image[..., 0] > 200)
            is_visible = len(rows) >= 4
            edges = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1] if is_visible else [0] * 4
            boxes.append(np.float32([edges]) / SIZE)
            scores.append([image.max() / 255 if is_visible else 0])
        labels = np.int32(np.array(scores) > 0)
        return DetectionBatch(*map(tf.constant, (np.stack(boxes), labels, np.float32(scores))))

    return LoadedDetector(SIZE, 4, ("square",), detect, EvalConfig())


def draw_square(top, left, side, size=(160, 128)):
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[top : top + side, left : left + side] = 255
    return Image.fromarray(pixels)


def found(*boxes, scores=None, labels=None):
    scores = scores or [0.9] * len(boxes)
    return Detections("", np.float32(boxes).reshape(-1, 4), np.int64(labels or [1] * len(boxes)), np.float32(scores))


@pytest.mark.parametrize(("height", "width"), [(100, 70), (640, 401), (3000, 4000), (7, 5), (1, 2)])
@pytest.mark.parametrize("tiles", [2, 3, 5, MOST_TILES])
def test_each_pixel_is_in_a_tile_and_small_objects_are_complete_in_one(height, width, tiles):
    placed = place_tiles(height, width, tiles)
    assert placed[0].tolist() == [0, 0, height, width]
    assert len(np.unique(placed, axis=0)) == len(placed) <= 1 + tiles**2
    # A tile of the smallest images is the whole image, which occurs once.
    rows = placed[1:] if len(placed) > 1 else placed
    for axis, length in enumerate((height, width)):
        starts, ends = np.unique(rows[:, axis]), np.unique(rows[:, axis + 2])
        assert len(starts) == len(ends) <= tiles
        assert starts[0] == 0
        assert ends[-1] == length
        side = int(ends[0])
        assert (ends - starts == side).all(), "all tiles have one size"
        assert (starts[1:] <= ends[:-1]).all(), "no pixel is between two tiles"
        # A fifth of the side, less one pixel, by which the placement is rounded.
        small = max(side / 5 - 1, 0)
        margins = np.where(starts > 0, MARGIN * side, 0), np.where(ends < length, MARGIN * side, 0)
        for start in np.linspace(0, length - small, 500):
            is_inside = (starts + margins[0] <= start) & (start + small <= ends - margins[1])
            assert is_inside.any() or small == 0


def test_one_tile_is_the_whole_image_alone():
    assert place_tiles(30, 40, 1).tolist() == [[0, 0, 30, 40]]


@pytest.mark.parametrize(("top", "left"), [(8, 8), (78, 60), (152, 120), (154, 122), (0, 0), (90, 70)])
def test_an_object_that_is_too_small_for_the_whole_image_is_found_in_tiles(detector, top, left):
    image = draw_square(top, left, side=6)
    (whole,) = detect_images(detector, [image], ["a"])
    assert len(whole.labels) == 0, "6 of 160 pixels are 1 of 32"
    (tiled,) = detect_images(detector, [image], ["a"], tiles=3)
    assert tiled.source_id == "a"
    assert len(tiled.labels) == 1, "tiles that share the object yield one detection"
    expected = np.array([[top / 160, left / 128, (top + 6) / 160, (left + 6) / 128]])
    # A pixel of the input is 1 / 32 of a tile, whose side is 0.4 of the image.
    np.testing.assert_allclose(tiled.boxes, expected, atol=0.4 / SIZE)


def test_an_object_larger_than_a_tile_is_found_once(detector):
    (tiled,) = detect_images(detector, [draw_square(16, 8, side=100)], ["a"], tiles=3)
    np.testing.assert_allclose(tiled.boxes, [[16 / 160, 8 / 128, 116 / 160, 108 / 128]], atol=1 / SIZE)


def test_images_of_different_sizes_keep_their_order_and_names(detector):
    images = [draw_square(40, 40, 20), draw_square(0, 0, 4, size=(40, 30)), draw_square(2, 2, 0)]
    for tiles in (1, 2):
        results = list(detect_images(detector, images, ["a", "b", "c"], tiles))
        assert [(result.source_id, len(result.labels)) for result in results] == [("a", 1), ("b", 1), ("c", 0)]


@pytest.mark.parametrize("tiles", [0, -1, 2.0, 2.5, "3", MOST_TILES + 1])
def test_an_invalid_number_of_tiles_is_refused(detector, tiles):
    with pytest.raises(UsageError, match=rf"tiles={tiles} is not valid; give a whole number from 1 to 20"):
        list(detect_images(detector, [draw_square(0, 0, 9)], ["a"], tiles))
    with pytest.raises(UsageError, match=rf"tiles={tiles} is not valid"):
        count_images_per_batch(16, tiles)


def test_a_batch_contains_the_tiles_of_its_images(detector):
    sizes = []

    def detect(images):
        sizes.append(len(images))
        return detector.detect(images)

    counting = dataclasses.replace(detector, detect=detect)
    list(detect_images(counting, [draw_square(0, 0, 9)] * 2, ["a", "b"], tiles=2))
    assert sizes == [4, 4, 2]
    # 1 + 2 * 2 parts per image.
    assert [count_images_per_batch(16, tiles) for tiles in (1, 2, 3, 4)] == [16, 3, 1, 1]


def test_boxes_cut_by_an_inner_edge_are_dropped_and_others_are_kept():
    inside, beyond = 2 * MARGIN, MARGIN / 2
    low, high = [0.4, 0.3, 0.6, 1 - beyond], [0.4, beyond, 0.6, 0.7]
    middle, at_both = [0.4, inside, 0.6, 1 - inside], [0.4, 0.0, 0.6, 1.0]
    boxes = np.float32([low, high, middle, at_both])
    # (tile, the indices of the boxes that no inner edge of it cuts), from left to right.
    cases = [
        ([0, 0, 1, 0.5], [1, 2]),
        ([0, 0.25, 1, 0.75], [2]),
        ([0, 0.5, 1, 1], [0, 2]),
        ([0, 0, 1, 1], [0, 1, 2, 3]),
    ]
    for tile, expected in cases:
        # The same from top to bottom.
        for order in ([0, 1, 2, 3], [1, 0, 3, 2]):
            part, edges = found(*boxes[:, order], labels=[1, 2, 3, 4]), np.float32(tile)[order]
            merged = merge_tiles("a", [found(), part], np.stack([WHOLE, edges]), EvalConfig())
            assert sorted(merged.labels - 1) == expected
            start, side = edges[:2], edges[2:] - edges[:2]
            for box, label in zip(merged.boxes, merged.labels, strict=True):
                original = boxes[label - 1][order]
                np.testing.assert_allclose(box.reshape(2, 2), start + original.reshape(2, 2) * side, rtol=1e-5)


@pytest.mark.parametrize(("nms_iou", "kept"), [(0.5, [0.8]), (0.7, [0.8, 0.6])])
def test_boxes_of_a_class_that_overlap_more_than_the_bound_are_merged(nms_iou, kept):
    tile = np.float32([0, 0, 0.5, 0.5])
    # The box of the tile is [0.1, 0.1, 0.3, 0.22] in the image, whose IoU with the other is 0.12 / 0.2.
    box, smaller = [0.1, 0.1, 0.3, 0.3], [0.2, 0.2, 0.6, 0.44]
    tiles = [found(box, box, scores=[0.6, 0.5], labels=[1, 2]), found(smaller, scores=[0.8])]
    merged = merge_tiles("a", tiles, np.stack([WHOLE, tile]), EvalConfig(nms_iou=nms_iou))
    np.testing.assert_allclose(merged.scores[merged.labels == 1], kept)
    np.testing.assert_allclose(merged.scores[merged.labels == 2], [0.5])
    np.testing.assert_allclose(merged.boxes[0], [0.1, 0.1, 0.3, 0.22], rtol=1e-6)


def test_no_detection_is_lost_by_the_limit_for_one_image():
    rows = [[0.2 * k, 0.3, 0.2 * k + 0.1, 0.4] for k in range(4)]
    tiles = [found(*rows, scores=[0.9, 0.8, 0.7, 0.6]) for _ in range(3)]
    parts = np.float32([[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0.5, 1, 1]])
    merged = merge_tiles("a", tiles, parts, EvalConfig(max_detections=4))
    np.testing.assert_allclose(merged.scores, np.repeat([0.9, 0.8, 0.7, 0.6], 3))
