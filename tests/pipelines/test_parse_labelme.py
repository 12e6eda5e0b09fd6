"""Parser of labelme: shapes, names of images, and files that are wrong."""

import json

import pytest
from parsed import describe, reasons

from pipelines.readers.labelme import parse_labelme


def parse(shapes, **fields):
    root = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None}
    (image,) = parse_labelme(json.dumps({**root, "imageHeight": 72, "imageWidth": 96, **fields}).encode())
    return image


def shape(kind, points, label="bolt"):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}


def test_a_rectangle_may_start_at_any_corner():
    image = parse([shape("rectangle", [[10, 12], [50, 60]]), shape("rectangle", [[50, 12.5], [10, 60]], "nut")])
    assert (image.filename, image.size, image.problem, image.reduced) == ("a.jpg", (72, 96), None, 0)
    assert describe(image) == [("bolt", (12, 10, 60, 50)), ("nut", (12.5, 10, 60, 50))]
    assert [box.where for box in image.boxes] == ["shapes[0]", "shapes[1]"]


def test_the_flag_of_difficult_objects_is_read():
    shapes = [shape(kind, [[1, 2], [5, 3]]) | {"difficult": True} for kind in ("rectangle", "circle", "line")]
    assert [box.difficult for box in parse([*shapes, shape("line", [[1, 2], [5, 3]])]).boxes] == [True] * 3 + [False]


@pytest.mark.parametrize(
    ("kind", "points", "corners"),
    [
        ("polygon", [[1, 2], [5, 3], [4, 9]], (2, 1, 9, 5)),
        (None, [[1, 2], [5, 3], [4, 9]], (2, 1, 9, 5)),  # labelme 3.0
        ("rotation", [[5, 0], [10, 5], [5, 10], [0, 5]], (0, 0, 10, 10)),  # X-AnyLabeling
        ("circle", [[30, 40], [33, 44]], (35, 25, 45, 35)),  # the radius is 5
        ("line", [[9, 1], [2, 8]], (1, 2, 8, 9)),
        ("linestrip", [[0, 5], [2, 3], [4, 6]], (3, 0, 6, 4)),
        ("mask", [[7, 8], [20, 30]], (8, 7, 30, 20)),
    ],
)
def test_other_shapes_are_reduced_to_their_bounds(kind, points, corners):
    image = parse([{**shape(kind, points), "mask": "iVBORw0KGgo="}])
    assert describe(image) == [("bolt", corners)]
    assert image.reduced == 1


@pytest.mark.parametrize("kind", ["point", "points"])
def test_points_have_no_box(kind):
    assert reasons(parse([shape(kind, [[1, 2]])])) == ["no_box"]


@pytest.mark.parametrize(
    "bad",
    [
        shape("rectangle", [[10, 12]]),
        shape("rectangle", [[10, 12], ["x", 60]]),
        shape("rectangle", [[10, 12], [float("nan"), 60]]),
        shape("rectangle", [[10], [50, 60]]),
        shape("rectangle", None),
        shape("rectangle", [[10, 12], [50, 60]], ""),
        shape("rectangle", [[10, 12], [50, 60]], None),
        shape("circle", [[10, 12], [50, 60], [1, 2]]),
        shape("spiral", [[10, 12], [50, 60]]),
        "shape",
        None,
    ],
)
def test_a_broken_shape_is_a_box_with_a_problem(bad):
    image = parse([bad, shape("rectangle", [[10, 12], [50, 60]])])
    assert reasons(image) == ["broken_box"]
    assert describe(image)[1] == ("bolt", (12, 10, 60, 50))


def test_backslashes_in_a_path_become_slashes_and_a_label_may_be_a_number():
    image = parse([shape("rectangle", [[10, 12], [50, 60]], 7)], imagePath="..\\images\\a b.jpg", imageHeight=None)
    assert (image.filename, image.size) == ("../images/a b.jpg", None)
    assert image.boxes[0].category == "7"


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"shapes": 3}', b"\xff\xfe\x00", b"[" * 100_000])
def test_another_file_is_refused(data):
    with pytest.raises(ValueError, match=r"not an annotation of labelme|not valid JSON") as error:
        list(parse_labelme(data))
    assert "\n" not in str(error.value)
