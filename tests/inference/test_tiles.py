"""Detection in tiles: their placement, the merging, and small objects that the whole image does not show."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssd_dist.core.config import EvalConfig
from ssd_dist.evaluation.detections import Detections
from ssd_dist.inference.loaded_detector import LoadedDetector
from ssd_dist.inference.tiles import MARGIN, OVERLAP, detect_images, merge_tiles, place_tiles
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

    return LoadedDetector(SIZE, 4, ("square",), detect)


def draw_square(top, left, side, size=(160, 128)):
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[top : top + side, left : left + side] = 255
    return Image.fromarray(pixels)


def found(*boxes, scores=None, labels=None):
    scores = scores or [0.9] * len(boxes)
    return Detections("", np.float32(boxes).reshape(-1, 4), np.int64(labels or [1] * len(boxes)), np.float32(scores))


@pytest.mark.parametrize(("height", "width"), [(100, 70), (3000, 4000), (7, 5)])
@pytest.mark.parametrize("tiles", [2, 3, 5])
def test_tiles_cover_the_image_and_each_small_crop_is_in_one_of_them(height, width, tiles):
    crops = place_tiles(height, width, tiles)
    assert len(crops) == 1 + tiles**2
    assert crops[0].tolist() == [0, 0, height, width]
    for axis, length in enumerate((height, width)):
        starts, ends = crops[1:, axis], crops[1:, axis + 2]
        assert starts.min() == 0
        assert ends.max() == length
        side = int((ends - starts)[0])
        assert (ends - starts == side).all(), "all tiles have one size"
        # Rounding to pixels takes up to one pixel from the overlap.
        small = int(OVERLAP * side) - 1
        for start in range(length - small + 1):
            assert ((starts <= start) & (start + small <= ends)).any()


def test_one_tile_is_the_whole_image_alone():
    assert place_tiles(30, 40, 1).tolist() == [[0, 0, 30, 40]]


@pytest.mark.parametrize(("top", "left"), [(8, 8), (78, 60), (152, 120), (90, 70)])
def test_an_object_that_is_too_small_for_the_whole_image_is_found_in_tiles(detector, top, left):
    image = draw_square(top, left, side=6)
    (whole,) = detect_images(detector, [image], ["a"])
    assert len(whole.labels) == 0, "6 of 160 pixels are 1 of 32"
    (tiled,) = detect_images(dataclasses.replace(detector, tiles=3), [image], ["a"])
    assert tiled.source_id == "a"
    assert len(tiled.labels) == 1, "tiles that share the object yield one detection"
    expected = np.array([[top / 160, left / 128, (top + 6) / 160, (left + 6) / 128]])
    # A pixel of the input is 1 / 32 of a tile, whose side is 0.4 of the image.
    np.testing.assert_allclose(tiled.boxes, expected, atol=0.4 / SIZE)


def test_an_object_larger_than_a_tile_is_found_once(detector):
    (tiled,) = detect_images(dataclasses.replace(detector, tiles=3), [draw_square(16, 8, side=100)], ["a"])
    np.testing.assert_allclose(tiled.boxes, [[16 / 160, 8 / 128, 116 / 160, 108 / 128]], atol=1 / SIZE)


def test_images_of_different_sizes_keep_their_order_and_names(detector):
    images = [draw_square(40, 40, 20), draw_square(0, 0, 4, size=(40, 30)), draw_square(2, 2, 0)]
    for tiles in (1, 2):
        results = list(detect_images(dataclasses.replace(detector, tiles=tiles), images, ["a", "b", "c"]))
        assert [(result.source_id, len(result.labels)) for result in results] == [("a", 1), ("b", 1), ("c", 0)]


def test_boxes_cut_by_an_inner_edge_are_dropped_and_others_are_kept():
    left_half, right_half = np.float32([0, 0, 1, 0.5]), np.float32([0, 0.5, 1, 1])
    inside, beyond = 2 * MARGIN, MARGIN / 2
    at_inner_edge = [0.2, 0.5, 0.4, 1 - beyond]
    at_image_edge = [0.2, 0.0, 0.4, 0.3]
    near_inner_edge = [0.6, 0.5, 0.8, 1 - inside]
    tiles = [found(), found(at_inner_edge, at_image_edge, near_inner_edge), found([0.2, beyond, 0.4, 0.3])]
    merged = merge_tiles("a", tiles, np.stack([WHOLE, left_half, right_half]), EvalConfig())
    expected = [[0.2, 0.0, 0.4, 0.15], [0.6, 0.25, 0.8, 0.5 - MARGIN]]
    np.testing.assert_allclose(sorted(merged.boxes.tolist()), expected, rtol=1e-5)


def test_the_best_of_overlapping_boxes_of_a_class_is_kept():
    tile = np.float32([0, 0, 0.5, 0.5])
    box, same = [0.1, 0.1, 0.3, 0.3], [0.2, 0.2, 0.6, 0.6]
    tiles = [found(box, box, scores=[0.6, 0.5], labels=[1, 2]), found(same, scores=[0.8])]
    merged = merge_tiles("a", tiles, np.stack([WHOLE, tile]), EvalConfig())
    assert merged.labels.tolist() == [1, 2]
    np.testing.assert_allclose(merged.scores, [0.8, 0.5])
    np.testing.assert_allclose(merged.boxes, [box, box], rtol=1e-6)


def test_at_most_max_detections_are_kept():
    rows = [[0.1 * k, 0.1, 0.1 * k + 0.05, 0.2] for k in range(8)]
    tiles = [found(*rows), found()]
    assert len(merge_tiles("a", tiles, np.stack([WHOLE, WHOLE / 2]), EvalConfig(max_detections=5)).labels) == 5
