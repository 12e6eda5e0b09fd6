"""Parsers of VIA 1, 2 and 3: shapes, the attribute that gives the class, and files that are wrong."""

import csv
import io
import json
import math

import pytest
from parsed import describe, reasons

from pipelines.readers.via import parse_via
from pipelines.readers.via3 import parse_via3
from pipelines.readers.via_csv import COLUMNS, parse_via_csv

RECT = {"name": "rect", "x": 10, "y": 12, "width": 40, "height": 48}


def region(shape=RECT, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes or {"type": "bolt"}}


def image_entry(name, regions):
    return {"filename": name, "size": 3000, "regions": regions, "file_attributes": {}}


def parse(*regions):
    data = json.dumps({"a.jpg3000": image_entry("a.jpg", list(regions))}).encode()
    (image,) = parse_via(data)
    return image


def to_csv(rows, header=COLUMNS):
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\r\n").writerows(rows)
    return f"{header}\r\n{stream.getvalue()}".encode()


def test_regions_are_a_list_or_an_object_and_may_be_in_a_project():
    entries = {"a.jpg1": image_entry("a.jpg", [region()]), "b.jpg2": image_entry("b.jpg", {"0": region()})}
    project = {"_via_settings": {}, "_via_img_metadata": entries, "_via_attributes": {}}
    for root in (entries, project):
        images = list(parse_via(json.dumps(root).encode()))
        assert [image.filename for image in images] == ["a.jpg", "b.jpg"]
        assert [describe(image) for image in images] == [[("bolt", (12, 10, 60, 50))]] * 2
        assert [image.reduced for image in images] == [0, 0]


@pytest.mark.parametrize(
    ("shape", "corners"),
    [
        ({"name": "circle", "cx": 30, "cy": 40, "r": 5}, (35, 25, 45, 35)),
        ({"name": "ellipse", "cx": 30, "cy": 40, "rx": 20, "ry": 5}, (35, 10, 45, 50)),
        ({"name": "ellipse", "cx": 30, "cy": 40, "rx": 20, "ry": 5, "theta": math.pi / 2}, (20, 25, 60, 35)),
        ({"name": "polygon", "all_points_x": [1, 5, 4], "all_points_y": [2, 3, 9]}, (2, 1, 9, 5)),
        ({"name": "polyline", "all_points_x": [9, 2], "all_points_y": [1, 8]}, (1, 2, 8, 9)),
    ],
)
def test_other_shapes_are_reduced_to_their_bounds(shape, corners):
    image = parse(region(shape))
    assert image.reduced == 1
    assert image.boxes[0].corners == pytest.approx(corners)


def test_a_point_has_no_box():
    assert reasons(parse(region({"name": "point", "cx": 3, "cy": 4}))) == ["no_box"]


@pytest.mark.parametrize(
    "bad",
    [
        region({**RECT, "x": "left"}),
        region({**RECT, "width": None}),
        region({"name": "polygon", "all_points_x": [1, 5], "all_points_y": [2]}),
        region({"name": "spiral"}),
        region(type=""),
        region(other="x"),
        {"region_attributes": {"type": "bolt"}},
        3,
    ],
)
def test_a_broken_region_is_a_box_with_a_problem(bad):
    image = parse(bad, region())
    assert reasons(image) == ["broken_box"]
    assert describe(image)[1] == ("bolt", (12, 10, 60, 50))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ([{"fruit": "apple"}, {"fruit": "pear"}], ["apple", "pear"]),  # the only attribute
        ([{"quality": "good", "Class": "apple"}, {"quality": "bad", "Class": "pear"}], ["apple", "pear"]),
        ([{"name": "Socrates", "type": "human"}, {"name": "Hemlock", "type": "cup"}], ["human", "cup"]),
        ([{"quality": "", "fruit": "apple"}, {"quality": "bad", "fruit": "pear"}], ["apple", "pear"]),  # complete
        ([{"fruit": {"apple": True, "pear": False}}, {"fruit": {"pear": True}}], ["apple", "pear"]),  # checkbox
        ([{"fruit": {"apple": True, "pear": True}}], ["apple", "pear"]),  # one box per selected value
    ],
)
def test_one_attribute_gives_the_class(attributes, expected):
    image = parse(*(region(**given) for given in attributes))
    assert [box.category for box in image.boxes] == expected


def test_without_attributes_all_objects_have_one_class():
    entry = image_entry("a.jpg", [region() | {"region_attributes": {}}, region() | {"region_attributes": {}}])
    (image,) = parse_via(json.dumps({"a": entry}).encode())
    assert [box.category for box in image.boxes] == ["object", "object"]
    (image,) = parse_via_csv(to_csv([["a.jpg", 3000, "{}", 1, 0, json.dumps(RECT), "{}"]], COLUMNS))
    assert describe(image) == [("object", (12, 10, 60, 50))]
    # If another region has an attribute, one without it was forgotten.
    forgotten = image_entry("a.jpg", [region(), region() | {"region_attributes": {}}])
    (image,) = parse_via(json.dumps({"a": forgotten}).encode())
    assert [box.problem and box.problem.detail.partition(",")[0] for box in image.boxes] == [
        None, "the attribute 'type'",
    ]  # fmt: skip


def test_a_broken_image_keeps_its_boxes():
    entries = {"a": image_entry("a.jpg", []), "b": {"regions": [region()]}, "c": 3, "d": {"filename": "d.jpg"}}
    images = list(parse_via(json.dumps(entries).encode()))
    assert [image.problem and image.problem.reason for image in images] == [None, *["broken_annotation"] * 3]
    assert describe(images[1]) == [("bolt", (12, 10, 60, 50))]


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"a": 3}', b'{"images": [], "annotations": []}', b"x"])
def test_another_json_file_is_refused(data):
    with pytest.raises(ValueError, match=r"not an annotation of VIA|not valid JSON"):
        list(parse_via(data))


@pytest.mark.parametrize("header", [COLUMNS, f"#{COLUMNS}", f"\ufeff{COLUMNS}"])
def test_csv_rows_are_grouped_by_image(header):
    polygon = {"name": "polygon", "all_points_x": [1, 5, 4], "all_points_y": [2, 3, 9]}
    rows = [
        ["a.jpg", 3000, "{}", 2, 0, json.dumps(RECT), '{"type": "bolt"}'],
        ["b.jpg", 3000, "{}", 0, 0, "{}", "{}"],
        ["a.jpg", 3000, "{}", 2, 1, json.dumps(polygon), '{"type": "nut"}'],
    ]
    first, second = parse_via_csv(to_csv(rows, header))
    assert (first.filename, second.filename, second.boxes) == ("a.jpg", "b.jpg", ())
    assert describe(first) == [("bolt", (12, 10, 60, 50)), ("nut", (2, 1, 9, 5))]
    assert [box.where for box in first.boxes] == ["line 2", "line 4"]
    assert first.reduced == 1


@pytest.mark.parametrize(
    "row",
    [
        ["a.jpg", 3000, "{}", 1, 0, "{", '{"type": "bolt"}'],
        ["a.jpg", 3000, "{}", 1, 0, "{}", '{"type": "bolt"}'],
        ["a.jpg", 3000, "{}", 1, 0, "[1]", "[2]"],
        ["a.jpg", 3000],
    ],
)
def test_a_broken_csv_row_is_a_box_with_a_problem(row):
    good = ["a.jpg", 3000, "{}", 1, 0, json.dumps(RECT), '{"type": "bolt"}']
    (image,) = parse_via_csv(to_csv([row, good]))
    assert reasons(image) == ["broken_box"]
    assert describe(image)[1] == ("bolt", (12, 10, 60, 50))


def test_a_csv_row_without_a_file_name_is_a_broken_image():
    (image,) = parse_via_csv(to_csv([["", 3000, "{}", 1, 0, json.dumps(RECT), '{"type": "bolt"}']]))
    assert image.problem.reason == "broken_annotation"
    assert len(image.boxes) == 1


@pytest.mark.parametrize("data", [b"", b"filename,width,height,class\n", b"\xff\xfe"])
def test_another_csv_file_is_refused(data):
    with pytest.raises(ValueError, match="not a CSV file"):
        list(parse_via_csv(data))


def via3(metadata, **tables):
    root = {
        "project": {"pid": "x", "data_format_version": "3.1.1"},
        "config": {},
        "attribute": {"1": {"aname": "class", "type": 4, "options": {"0": "bolt", "1": "nut"}}},
        "file": {
            "1": {"fid": "1", "fname": "a.jpg", "type": 2, "loc": 1, "src": "images/a.jpg"},
            "2": {"fid": "2", "fname": "b.jpg", "type": 2, "loc": 2, "src": "https://x.org/b.jpg"},
        },
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
        "metadata": {f"{i}_x8Fe": entry for i, entry in enumerate(metadata)},
        **tables,
    }
    return list(parse_via3(json.dumps(root).encode()))


def xy(numbers, vid="1", value="0", z=()):
    return {"vid": vid, "flg": 0, "z": list(z), "xy": numbers, "av": {"1": value}}


def test_via3_joins_regions_files_and_options():
    metadata = [xy([2, 10, 12, 40, 48]), xy([2, 1, 2, 3, 4], vid="2", value="1"), xy([], value="1")]
    first, second = via3(metadata)
    assert (first.filename, describe(first), first.reduced) == ("images/a.jpg", [("bolt", (12, 10, 60, 50))], 0)
    assert (second.filename, describe(second)) == ("b.jpg", [("nut", (2, 1, 6, 4))])


@pytest.mark.parametrize(
    ("numbers", "corners"),
    [
        ([3, 30, 40, 5], (35, 25, 45, 35)),
        ([4, 30, 40, 20, 5], (35, 10, 45, 50)),
        ([5, 9, 1, 2, 8], (1, 2, 8, 9)),
        ([7, 1, 2, 5, 3, 4, 9], (2, 1, 9, 5)),
        ([8, 3, 0, 9, 4, 4, 9, 0, 5], (0, 0, 9, 9)),
        ([9, 35, 40, 30, 45, 25, 40], (35, 25, 45, 35)),  # three points of the circle around (30, 40) with radius 5
    ],
)
def test_via3_reduces_other_shapes(numbers, corners):
    image = via3([xy(numbers)])[0]
    assert image.boxes[0].corners == pytest.approx(corners)
    assert image.reduced == 1


def test_via3_rejects_points_videos_and_broken_regions():
    bad = [xy([1, 3, 4]), xy([2, 1, 2, 3, 4], z=[0.5]), xy([2, 1, 2, 3]), xy([99, 1]), xy([2, 1, 2, 3, 4], value="")]
    assert reasons(via3(bad)[0]) == ["no_box", "video_region", "broken_box", "broken_box", "broken_box"]


def test_via3_reports_regions_without_a_file():
    *_, lost = via3([xy([2, 10, 12, 40, 48], vid="7"), 3])
    assert lost.problem.reason == "broken_annotation"
    assert len(lost.boxes) == 2


def test_via3_reads_several_values_of_a_checkbox():
    assert [box.category for box in via3([xy([2, 1, 2, 3, 4], value="0,1")])[0].boxes] == ["bolt", "nut"]


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"attribute": {}, "file": {}, "view": {}, "metadata": []}'])
def test_another_project_is_refused(data):
    with pytest.raises(ValueError, match="not a project of VIA 3"):
        list(parse_via3(data))
