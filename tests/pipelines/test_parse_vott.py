"""Parser of VoTT 2: exports, files of assets, and files that are wrong."""

import json

import pytest
from parsed import describe, reasons

from pipelines.readers.vott import parse_vott

BOX = {"left": 10, "top": 12, "width": 40, "height": 48}
POINTS = [{"x": 10, "y": 12}, {"x": 50, "y": 12}, {"x": 50, "y": 60}, {"x": 10, "y": 60}]
RECTANGLE = {"id": "r", "type": "RECTANGLE", "tags": ["bolt"], "boundingBox": BOX, "points": POINTS}


def asset(regions, name="a.jpg", **fields):
    size = {"width": 96, "height": 72}
    given = {
        "format": "jpg",
        "id": "2e4c",
        "name": name,
        "path": f"file:C:/d/{name}",
        "size": size,
        "state": 2,
        "type": 1,
    }
    return {"asset": {**given, **fields}, "regions": regions, "version": "2.2.0"}


def parse(*entries):
    assets = {f"id{i}": entry for i, entry in enumerate(entries)}
    return list(parse_vott(json.dumps({"name": "project", "tags": [], "assets": assets}).encode()))


def test_an_export_and_the_file_of_an_asset_give_the_same_image():
    (exported,) = parse(asset([RECTANGLE]))
    (single,) = parse_vott(json.dumps(asset([RECTANGLE])).encode())
    for image in (exported, single):
        assert (image.filename, image.size, image.problem, image.reduced) == ("a.jpg", (72, 96), None, 0)
        assert describe(image) == [("bolt", (12, 10, 60, 50))]
    assert (exported.where, exported.boxes[0].where) == ("assets['id0']", "assets['id0'].regions[0]")


def test_a_region_with_two_tags_gives_two_boxes():
    (image,) = parse(asset([{**RECTANGLE, "tags": ["bolt", "metal"]}]))
    assert describe(image) == [("bolt", (12, 10, 60, 50)), ("metal", (12, 10, 60, 50))]


def test_a_polygon_and_a_rectangle_without_a_box_use_their_points():
    triangle = [{"x": 1, "y": 2}, {"x": 5, "y": 3}, {"x": 4, "y": 9}]
    polygon = {**RECTANGLE, "type": "POLYGON", "points": triangle}
    (image,) = parse(asset([polygon, {**RECTANGLE, "boundingBox": None}]))
    assert describe(image) == [("bolt", (2, 1, 9, 5)), ("bolt", (12, 10, 60, 50))]
    assert image.reduced == 2


@pytest.mark.parametrize(
    "bad",
    [
        {**RECTANGLE, "tags": []},
        {**RECTANGLE, "tags": None},
        {**RECTANGLE, "tags": [""]},
        {**RECTANGLE, "boundingBox": {**BOX, "left": "x"}},
        {**RECTANGLE, "boundingBox": [10, 12, 40, 48]},
        {**RECTANGLE, "type": "POLYGON", "points": [{"x": 1, "y": 2}]},
        {**RECTANGLE, "type": "POLYGON", "points": [{"x": 1}, {"x": 2}]},
        None,
    ],
)
def test_a_broken_region_is_a_box_with_a_problem(bad):
    (image,) = parse(asset([bad, RECTANGLE]))
    assert reasons(image) == ["broken_box"]
    assert describe(image)[1] == ("bolt", (12, 10, 60, 50))


def test_names_are_decoded_and_a_missing_name_is_taken_from_the_path():
    images = parse(
        asset([RECTANGLE], "a%20b.jpg"), asset([RECTANGLE], "", path="https://x.org/d/c.jpg?sig=1"),
        asset([RECTANGLE], "", path="file:C:\\d\\e.jpg"),
    )  # fmt: skip
    assert [image.filename for image in images] == ["a b.jpg", "c.jpg", "e.jpg"]


def test_an_image_that_was_never_opened_is_rejected():
    images = parse(asset([], state=0), asset([], state=1), asset([RECTANGLE], state=0))
    assert [image.problem and image.problem.reason for image in images] == ["not_annotated", None, None]


def test_a_broken_asset_keeps_its_boxes():
    images = parse(asset([RECTANGLE], "", path=None), {**asset([]), "regions": None}, 3)
    assert [image.problem.reason for image in images] == ["broken_annotation"] * 3
    assert len(images[0].boxes) == 1


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"assets": []}', b'{"assets": {"a": {"name": "a.jpg"}}}', b"x"])
def test_another_file_is_refused(data):
    with pytest.raises(ValueError, match=r"not a JSON file of VoTT|a project of VoTT|not valid JSON"):
        list(parse_vott(data))
