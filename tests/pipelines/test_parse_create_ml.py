"""Parser of Create ML: both spellings of the keys, centers of boxes, and files that are wrong."""

import json

import pytest
from parsed import describe, reasons

from pipelines.readers.create_ml import parse_create_ml

BOX = {"label": "bolt", "coordinates": {"x": 30, "y": 36, "width": 40, "height": 48}}


def parse(entries):
    return list(parse_create_ml(json.dumps(entries).encode()))


@pytest.mark.parametrize(
    ("image_key", "list_key"),
    [("image", "annotations"), ("imagefilename", "annotation"), ("imageFilename", "annotations")],
)
def test_x_and_y_are_the_center(image_key, list_key):
    first, second = parse([{image_key: "a.jpg", list_key: [BOX]}, {image_key: "b.jpg", list_key: []}])
    assert (first.filename, first.where, describe(first)) == ("a.jpg", "[0]", [("bolt", (12, 10, 60, 50))])
    assert (second.filename, second.boxes, second.problem) == ("b.jpg", (), None)


@pytest.mark.parametrize(
    "bad",
    [
        {"label": "bolt"},
        {"label": "", "coordinates": BOX["coordinates"]},
        {"label": "bolt", "coordinates": {**BOX["coordinates"], "x": None}},
        {"label": "bolt", "coordinates": {**BOX["coordinates"], "x": 10**400}},
        {"label": "bolt", "coordinates": [1, 2, 3, 4]},
        "bolt",
    ],
)
def test_a_broken_object_is_a_box_with_a_problem(bad):
    (image,) = parse([{"image": "a.jpg", "annotations": [bad, BOX]}])
    assert reasons(image) == ["broken_box"]
    assert describe(image)[1] == ("bolt", (12, 10, 60, 50))


def test_a_broken_image_keeps_its_boxes():
    images = parse(
        [{"image": "a.jpg", "annotations": []}, {"annotations": [BOX]}, 3, {"image": "c.jpg", "annotation": "x"}]
    )
    assert [image.problem and image.problem.reason for image in images] == [None, *["broken_annotation"] * 3]
    assert describe(images[1]) == [("bolt", (12, 10, 60, 50))]


def test_an_empty_list_has_no_images():
    assert parse([]) == []


@pytest.mark.parametrize(
    "data", [b"{}", b"[3]", b'[{"image": "a.jpg"}]', b"nothing", b'[{"id": 1, "annotations": []}]']
)
def test_another_file_is_refused(data):
    with pytest.raises(ValueError, match=r"not an annotation of Create ML|not valid JSON"):
        list(parse_create_ml(data))
