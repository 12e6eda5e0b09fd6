"""Parser of Label Studio: JSON, JSON-MIN, the choice of the annotation, and references to images."""

import base64
import json

import pytest
from parsed import describe, reasons

from pipelines.readers.label_studio import parse_label_studio
from pipelines.readers.label_studio_paths import original_path, remove_upload_prefix, to_upload_name

BOX = {"x": 10, "y": 20, "width": 40, "height": 30, "rotation": 0}
SIZE = {"original_width": 200, "original_height": 100, "image_rotation": 0}
CORNERS = pytest.approx((0.2, 0.1, 0.5, 0.5))


def result(value, kind="rectanglelabels", labels=("bolt",), **fields):
    given = {"id": "r1", "from_name": "label", "to_name": "image", "type": kind, **SIZE}
    return {**given, "value": {**value, kind: list(labels)}, **fields}


def task(*results, image="/data/upload/1/0a1b2c3d-a.jpg", **fields):
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 5, "result": list(results)}], **fields}


def parse(*tasks):
    return list(parse_label_studio(json.dumps(list(tasks)).encode()))


def test_percentages_become_fractions():
    (image,) = parse(task(result(BOX)))
    assert (image.filename, image.size, image.problem, image.reduced) == ("0a1b2c3d-a.jpg", (100, 200), None, 0)
    assert describe(image) == [("bolt", CORNERS)]
    assert image.boxes[0].normalized
    assert image.boxes[0].where == "[0].annotations[0].result[0]"


def test_a_box_is_rotated_around_its_top_left_corner_in_pixels():
    # The box is 80 x 30 pixels at (20, 20). A quarter turn gives x from -10 to 20 and y from 20 to 100.
    (image,) = parse(task(result({**BOX, "rotation": 90})))
    assert image.boxes[0].corners == pytest.approx((0.2, -0.05, 1.0, 0.1))
    assert image.reduced == 1


def test_a_full_turn_is_no_rotation_and_a_rotation_needs_the_size():
    no_size = {"original_width": None, "original_height": None}
    (image,) = parse(
        task(result({**BOX, "rotation": 360}, id="r1", **no_size), result({**BOX, "rotation": 5}, id="r2", **no_size))
    )
    assert describe(image)[0] == ("bolt", CORNERS)
    assert (reasons(image), image.reduced, image.size) == (["broken_box"], 0, None)


@pytest.mark.parametrize(
    ("kind", "value", "corners"),
    [
        ("polygonlabels", {"points": [[10, 20], [50, 30], [40, 90]], "closed": True}, (0.2, 0.1, 0.9, 0.5)),
        ("ellipselabels", {"x": 30, "y": 40, "radiusX": 20, "radiusY": 5, "rotation": 0}, (0.35, 0.1, 0.45, 0.5)),
        # Radii of 40 and 5 pixels around (60, 40), turned by 90 degrees: 5 and 40 pixels.
        ("ellipselabels", {"x": 30, "y": 40, "radiusX": 20, "radiusY": 5, "rotation": 90}, (0, 0.275, 0.8, 0.325)),
        ("vectorlabels", {"vertices": [{"x": 10, "y": 20}, {"x": 50, "y": 90}]}, (0.2, 0.1, 0.9, 0.5)),
    ],
)
def test_other_shapes_are_reduced_to_their_bounds(kind, value, corners):
    (image,) = parse(task(result(value, kind)))
    assert image.boxes[0].corners == pytest.approx(corners)
    assert image.reduced == 1


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("keypointlabels", {"x": 30, "y": 40, "width": 0.5}),
        ("brushlabels", {"format": "rle", "rle": [0, 1, 2]}),
        ("bitmasklabels", {"imageDataURL": "data:image/png;base64,iVBO"}),
    ],
)
def test_key_points_and_masks_have_no_box(kind, value):
    assert reasons(parse(task(result(value, kind)))[0]) == ["no_box"]


def test_the_tags_rectangle_and_labels_describe_one_region():
    rectangle = {**result(BOX), "type": "rectangle", "value": dict(BOX)}
    (image,) = parse(task(rectangle, result(BOX, "labels"), result(BOX, "choices", ["dirty"])))
    assert describe(image) == [("bolt", CORNERS)]


def test_results_about_the_whole_image_and_relations_are_not_objects():
    choice = {"id": "c", "type": "choices", "value": {"choices": ["indoor"]}}
    relation = {"type": "relation", "from_id": "r1", "to_id": "r1", "direction": "right"}
    (image,) = parse(task(choice, relation, result(BOX)))
    assert describe(image) == [("bolt", CORNERS)]


def test_a_region_with_two_labels_gives_two_boxes():
    (image,) = parse(task(result(BOX, labels=["bolt", "metal"])))
    assert describe(image) == [("bolt", CORNERS), ("metal", CORNERS)]


@pytest.mark.parametrize(
    "bad",
    [
        result(BOX, labels=[], id="bad"),
        result({**BOX, "x": None}, id="bad"),
        result({"text": "x"}, "labels", id="bad"),
        result({"points": [[1, 2]]}, "polygonlabels", id="bad"),
        {**result(BOX, id="bad"), "value": 3},
        3,
    ],
)
def test_a_broken_region_is_a_box_with_a_problem(bad):
    (image,) = parse(task(bad, result(BOX)))
    assert reasons(image) == ["broken_box"]
    assert ("bolt", CORNERS) in describe(image)


def test_an_image_that_was_rotated_in_the_tool_is_not_guessed():
    assert reasons(parse(task(result(BOX, image_rotation=90)))[0]) == ["rotated_image"]


def annotation(label, updated, **fields):
    return {"result": [result(BOX, labels=[label])], "updated_at": updated, **fields}


@pytest.mark.parametrize("key", ["annotations", "completions"])
def test_the_annotation_that_was_updated_last_is_used(key):
    annotations = [
        annotation("old", "2024-01-01T00:00:00Z"),
        annotation("new", "2024-03-01T00:00:00Z", was_cancelled=False),
        annotation("cancelled", "2024-04-01T00:00:00Z", was_cancelled=True),
        annotation("skipped", "2024-05-01T00:00:00Z", skipped=True),
        annotation("older", "2023-01-01T00:00:00Z"),
    ]
    (image,) = parse({"id": 1, "data": {"image": "a.jpg"}, key: annotations})
    assert [box.category for box in image.boxes] == ["new"]


def test_a_task_without_an_annotation_is_rejected_and_an_empty_annotation_is_not():
    canceled = {"id": 2, "data": {"image": "b.jpg"}, "annotations": [{"result": [], "was_cancelled": True}]}
    predicted = {"id": 3, "data": {"image": "c.jpg"}, "predictions": [{"result": [result(BOX)]}]}
    images = parse(task(), canceled, predicted)
    assert [image.problem and image.problem.reason for image in images] == [None, "not_annotated", "not_annotated"]
    assert [image.boxes for image in images] == [(), (), ()]


def row(updated, *labels, **fields):
    values = [{**BOX, "rectanglelabels": [label], "original_width": 200, "original_height": 100} for label in labels]
    return {
        "image": "/data/upload/1/0a1b2c3d-a.jpg",
        "id": 1,
        "annotator": 1,
        "updated_at": updated,
        "label": values,
        **fields,
    }


def test_json_min_is_read_and_only_the_last_row_of_a_task_is_used():
    rows = [row("2024-01-01", "old"), row("2024-02-01", "bolt", choice="indoor"), row("2024-01-15", "nut", id=2)]
    first, second = parse(*rows)
    assert (first.filename, first.size, first.where) == ("0a1b2c3d-a.jpg", (100, 200), "[1]")
    assert describe(first) == [("bolt", CORNERS)]
    assert describe(second) == [("nut", CORNERS)]


def test_json_min_joins_rectangle_and_labels():
    (image,) = parse(row("2024-01-01", "bolt", rect=[dict(BOX)]))
    assert describe(image) == [("bolt", CORNERS)]


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("/data/upload/1/0a1b2c3d-my%20a.jpg", "0a1b2c3d-my a.jpg"),
        ("https://label.example.org/data/upload/0a1b2c3d-a.jpg", "0a1b2c3d-a.jpg"),
        ("/data/local-files/?d=folder/a%20b.jpg", "folder/a b.jpg"),
        ("s3://bucket/folder/a%20b.jpg", "folder/a%20b.jpg"),
        ("gs://bucket/a.jpg", "a.jpg"),
        ("https://x.org/folder/a%20b.jpg?signature=1", "folder/a b.jpg"),
        ("/tasks/1/resolve/?fileuri=" + base64.b64encode(b"s3://bucket/folder/a.jpg").decode(), "folder/a.jpg"),
        ("images/a.jpg", "images/a.jpg"),
    ],
)
def test_the_path_of_an_image_is_found_in_its_reference(reference, path):
    assert original_path(reference) == path
    (image,) = parse(task(result(BOX), image=reference))
    assert image.filename == path


def test_the_image_may_have_another_key():
    data = {"text": "a bolt", "photo": "/data/local-files/?d=folder/a.jpg"}
    (image,) = parse({"id": 1, "data": data, "annotations": [{"result": [result(BOX)]}]})
    assert image.filename == "folder/a.jpg"


def test_the_prefix_of_uploads_is_removed():
    assert remove_upload_prefix("0a1b2c3d-a.jpg") == "a.jpg"
    assert remove_upload_prefix("2024-a.jpg") == "2024-a.jpg"


def test_label_studio_changes_spaces_and_signs_in_names():
    assert to_upload_name("Site photo (1).jpg") == to_upload_name("Site_photo_1.jpg") == "Site_photo_1.jpg"
    assert to_upload_name("a-b.c_d é.jpg") == "a-b.c_d_é.jpg"


def test_a_broken_task_keeps_its_boxes():
    images = parse(task(result(BOX)), task(result(BOX), image=""), 3, task(result(BOX), image="/tasks/1/?fileuri=%C3"))
    assert [image.problem and image.problem.reason for image in images] == [None, *["broken_annotation"] * 3]
    assert [len(image.boxes) for image in images] == [1, 1, 0, 1]


@pytest.mark.parametrize("data", [b"{}", b"[3]", b'[{"image": "a.jpg", "annotations": []}]', b"x", b"3"])
def test_another_file_is_refused(data):
    with pytest.raises(ValueError, match=r"not an export of Label Studio|not valid JSON"):
        list(parse_label_studio(data))
