"""Drawings of detections: boxes at their positions, readable names inside the image, deterministic output."""

import numpy as np
import pytest
from PIL import Image

from ssd_dist.evaluation.visualization import PALETTE, class_color, draw_boxes, draw_comparison, draw_image_grid

CLASSES = ("cat", "dog", "a class with a name far too long for any box")
NO_BOXES = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def make_image(width=200, height=150, color=(90, 90, 90)):
    return Image.new("RGB", (width, height), color)


def make_boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def find_changed_area(before, after):
    """Returns (top, bottom, left, right) of the area that differs, bottom and right exclusive."""
    difference = (np.asarray(before) != np.asarray(after)).any(axis=2)
    rows, columns = np.flatnonzero(difference.any(axis=1)), np.flatnonzero(difference.any(axis=0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_input_image_is_not_modified():
    image = make_image()
    assert draw_boxes(image, *NO_BOXES, CLASSES).tobytes() == image.tobytes()
    draw_boxes(image, make_boxes([0, 0, 1, 1]), np.array([1]), CLASSES)
    assert image.tobytes() == make_image().tobytes()


@pytest.mark.timeout(60)
def test_any_name_can_be_drawn():
    """Pillow cannot measure a text with line breaks, and takes long for a very long one."""
    names = ("a\nb", "\x00\x1b[31m\ud800", "x" * 1_000_000)
    boxes, labels = make_boxes([0, 0, 0.5, 0.5], [0, 0, 1, 1], [0.5, 0.5, 1, 1]), np.array([1, 2, 3])
    drawn = draw_boxes(make_image(), boxes, labels, names, np.float32([0.1, 0.2, 0.3]))
    assert drawn.tobytes() != draw_boxes(make_image(), boxes, labels, ("", "", "")).tobytes()
    draw_image_grid([drawn], 1, *names[:2], names)


def test_frame_lies_on_the_inner_edge_of_the_box():
    drawn = draw_boxes(make_image(400, 300), make_boxes([0.5, 0.25, 0.75, 0.5]), np.array([1]), CLASSES)
    # In pixels: rows 150 to 225, columns 100 to 200. The name is above, so the lower half contains only the frame.
    top, bottom, left, right = find_changed_area(make_image(400, 300), drawn)
    assert (bottom, left, right) == (225, 100, 200)
    assert 150 - 40 < top < 150
    pixels = np.asarray(drawn)
    assert tuple(pixels[187, 150]) == (90, 90, 90), "the inside is unchanged"
    assert any(tuple(pixels[187, column]) == class_color(1) for column in range(100, 106))
    assert any(tuple(pixels[row, 150]) == class_color(1) for row in range(219, 225))


@pytest.mark.parametrize("size", [(400, 300), (60, 40), (16, 16), (3, 2), (1, 1), (1200, 90)])
def test_any_box_can_be_drawn_on_any_size(size):
    """Boxes at and beyond the edges, without area, and of the whole image; names longer than the image."""
    boxes = make_boxes(
        [-0.5, -0.5, 0.2, 0.2], [0.9, 0.9, 1.5, 1.5], [0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], [0, 0.99, 1, 1]
    )
    drawn = draw_boxes(make_image(*size), boxes, np.array([3, 3, 3, 2, 1]), CLASSES, np.full(5, 0.5, np.float32))
    assert drawn.size == size
    assert drawn.tobytes() != make_image(*size).tobytes()


@pytest.mark.parametrize(
    "corner",
    [[0, 0, 0.15, 0.1], [0.85, 0.9, 1, 1], [0, 0.9, 0.1, 1], [0.9, 0, 1, 0.1], [0, 0, 1, 1], [0.5, 1, 0.6, 1.2]],
)
def test_name_is_complete_for_boxes_at_every_edge(corner):
    """The letters cover as many pixels at an edge as in the middle, where there is room on all sides."""

    def letters(box):
        drawn = np.asarray(draw_boxes(make_image(400, 300), make_boxes(box), np.array([1]), ("MMM",)))
        return (drawn < 60).all(axis=2).sum()

    assert letters(corner) == letters([0.4, 0.4, 0.55, 0.5]) > 20


def test_scores_are_drawn():
    box, label = make_boxes([0.2, 0.2, 0.8, 0.8]), np.array([2])
    plain = draw_boxes(make_image(), box, label, CLASSES)
    low, high = (draw_boxes(make_image(), box, label, CLASSES, np.array([s], np.float32)) for s in (0.12, 0.98))
    assert len({image.tobytes() for image in (plain, low, high)}) == 3


def test_small_boxes_stay_visible_in_any_order():
    # The boxes share a part of their left edges.
    boxes, labels = make_boxes([0, 0, 1, 1], [0.4, 0, 0.6, 0.2]), np.array([1, 2])
    forward = draw_boxes(make_image(), boxes, labels, CLASSES)
    backward = draw_boxes(make_image(), boxes[::-1], labels[::-1], CLASSES)
    assert forward.tobytes() == backward.tobytes()
    edge = np.asarray(forward)[70:80, :5].reshape(-1, 3)
    assert (edge == class_color(2)).all(axis=1).any()
    assert not (edge == class_color(1)).all(axis=1).any()


def test_names_of_overlapping_boxes_do_not_overlap():
    """Two boxes share a corner: both names are readable, so the first color keeps most of its area."""
    boxes, labels = make_boxes([0.3, 0.3, 0.9, 0.9], [0.3, 0.3, 0.8, 0.85]), np.array([1, 2])
    together = np.asarray(draw_boxes(make_image(400, 300), boxes, labels, ("cat", "cat")))
    alone = [np.asarray(draw_boxes(make_image(400, 300), boxes[[i]], labels[[i]], ("cat", "cat"))) for i in range(2)]
    first = (alone[0] == class_color(1)).all(axis=2).sum()
    assert (together == class_color(1)).all(axis=2).sum() > 0.6 * first


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_any_mode_can_be_drawn_on(mode):
    drawn = draw_boxes(make_image().convert(mode), make_boxes([0.2, 0.2, 0.8, 0.8]), np.array([1]), CLASSES)
    assert (drawn.mode, drawn.size) == ("RGB", (200, 150))


def relative_luminance(color):
    """WCAG 2.1."""
    parts = [part / 255 for part in color]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("label", range(1, len(PALETTE) + 1))
def test_names_contrast_with_their_background(label):
    """The contrast between the background and its text is at least 4.5 to 1, level AA of WCAG."""
    names = ["MMMM"] * len(PALETTE)
    drawn = draw_boxes(make_image(800, 600), make_boxes([0.5, 0.1, 0.9, 0.9]), np.array([label]), names)
    tag = np.asarray(drawn)[: 300 - 4, 80:400].reshape(-1, 3)
    text = tag[((tag == 0).all(axis=1)) | ((tag == 255).all(axis=1))]
    assert len(text) > 20
    lights = sorted([relative_luminance(text[0]), relative_luminance(class_color(label))])
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5


def simulate_deuteranopia(color):
    """Viénot, Brettel and Mollon 1999, on linear RGB."""
    red, green, blue = (part**2.2 for part in np.asarray(color) / 255)
    mixed = 0.29275 * red + 0.70725 * green
    return np.array([mixed, mixed, -0.02234 * red + 0.02234 * green + blue]).clip(0, 1) ** (1 / 2.2) * 255


def test_colors_differ_for_color_blind_people():
    seen = [simulate_deuteranopia(color) for color in PALETTE]
    gaps = [np.abs(one - other).max() for i, one in enumerate(seen) for other in seen[:i]]
    assert min(gaps) > 25


def test_colors_repeat_from_the_ninth_class():
    assert [class_color(label) for label in range(1, 9)] == list(PALETTE)
    assert class_color(9) == class_color(1)


def test_comparison_shows_ground_truth_left_and_predictions_right():
    image = make_image(240, 160)
    annotated = (make_boxes([0.1, 0.1, 0.5, 0.5]), np.array([1]))
    prediction = (make_boxes([0.4, 0.4, 0.9, 0.9]), np.array([2]), np.array([0.7], np.float32))
    tile = draw_comparison(image, annotated, prediction, CLASSES)
    assert tile.height > 160
    assert tile.width > 2 * 240
    left, right = draw_boxes(image, *annotated, CLASSES), draw_boxes(image, *prediction[:2], CLASSES, prediction[2])
    top = tile.height - 160
    assert tile.crop((0, top, 240, tile.height)).tobytes() == left.tobytes()
    assert tile.crop((tile.width - 240, top, tile.width, tile.height)).tobytes() == right.tobytes()


def test_captions_fit_tiny_tiles():
    tile = draw_comparison(make_image(30, 20), NO_BOXES, (*NO_BOXES, np.zeros(0, np.float32)), CLASSES)
    assert tile.width < 80


def test_grid_contains_every_tile_unchanged():
    rng = np.random.default_rng(0)
    sizes = [(60, 40), (50, 70), (80, 30), (60, 40), (20, 20)]
    tiles = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    grid = draw_image_grid(tiles, 2, "runs/demo, split val", "mAP@0.5 0.812", CLASSES)
    pixels = np.asarray(grid)
    found = []
    for tile in tiles:
        part = np.asarray(tile)
        places = np.argwhere((pixels[: -part.shape[0], : -part.shape[1]] == part[0, 0]).all(axis=2))
        matching = [(y, x) for y, x in places if (pixels[y : y + part.shape[0], x : x + part.shape[1]] == part).all()]
        assert len(matching) == 1
        found.append(matching[0])
    rows = [y for y, _ in found]
    assert max(rows[:2]) < min(rows[2:4]), "filled row by row"
    assert max(rows[2:4]) < rows[4]
    assert found[0][1] < found[1][1]


@pytest.mark.parametrize("count", [0, 1, 3, 12])
@pytest.mark.parametrize("classes", [(), CLASSES, tuple(f"class {i}" for i in range(400)), ("word " * 400,)])
def test_grids_of_any_length_and_legend(count, classes):
    grid = draw_image_grid([make_image(60, 40)] * count, 3, "a title " * 40, "", classes)
    assert grid.mode == "RGB"
    assert grid.width >= 480
    # Even with the longest legend, most of a full grid is images.
    assert grid.height < 400 + count * 110


def test_legend_shows_the_colors_of_the_classes():
    grid = np.asarray(draw_image_grid([], 2, "title", "subtitle", CLASSES[:2])).reshape(-1, 3)
    counts = [(grid == class_color(label)).all(axis=1).sum() for label in (1, 2, 3)]
    assert counts[0] > 50
    assert counts[1] > 50
    assert counts[2] == 0


def test_output_is_deterministic():
    def draw():
        prediction = (make_boxes([0.4, 0.4, 0.9, 0.9]), np.array([2]), np.array([0.7], np.float32))
        tile = draw_comparison(make_image(), NO_BOXES, prediction, CLASSES)
        return draw_image_grid([tile] * 3, 2, "title", "subtitle", CLASSES).tobytes()

    assert draw() == draw()
