"""Parsers of annotation tools under random damage: only `ValueError` escapes, and well-formed files lose no object."""

import json
import random

import pytest
from raw_sets import list_places
from test_parse_cvat_xml import BOX as CVAT_BOX
from test_parse_cvat_xml import make_xml
from test_parse_label_studio import result, row, task
from test_parse_labelme import shape as labelme_shape
from test_parse_supervisely import bitmap
from test_parse_supervisely import shape as supervisely_shape
from test_parse_text_datasets import WIDER
from test_parse_via import region, to_csv, xy
from test_parse_vott import RECTANGLE, asset

from pipelines.annotations import pack_boxes
from pipelines.readers.create_ml import parse_create_ml
from pipelines.readers.cvat_xml import parse_cvat_xml
from pipelines.readers.dota import parse_dota
from pipelines.readers.keras_yolo import parse_keras_yolo
from pipelines.readers.kitti import parse_kitti
from pipelines.readers.label_studio import parse_label_studio
from pipelines.readers.labelme import parse_labelme
from pipelines.readers.supervisely import parse_supervisely
from pipelines.readers.via import parse_via
from pipelines.readers.via3 import parse_via3
from pipelines.readers.via_csv import parse_via_csv
from pipelines.readers.visdrone import parse_visdrone
from pipelines.readers.vott import parse_vott
from pipelines.readers.wider import parse_wider

MUTATIONS = 200
VALUES = [None, True, -1, 1e308, float("nan"), 10**400, "", "x", "é\ud800", [], {}, [[]], {"x": 1}, [1, "2"]]
BOX = {"x": 10, "y": 20, "width": 40, "height": 30, "rotation": 30}
ELLIPSE = {"name": "ellipse", "cx": 1, "cy": 2, "rx": 3, "ry": 4, "theta": 1.0}
VIA3 = {
    "attribute": {"1": {"aname": "class", "options": {"0": "bolt"}}},
    "file": {"1": {"fid": "1", "fname": "a.jpg", "src": "a.jpg"}},
    "view": {"1": {"fid_list": ["1"]}},
    "metadata": {"a": xy([2, 1, 2, 3, 4]), "b": xy([9, 1, 2, 3, 4, 5, 7]), "c": xy([1, 2, 3])},
}
CREATE_ML = {"label": "bolt", "coordinates": {"x": 30, "y": 36, "width": 40, "height": 48}}

# Parser, a well-formed file as JSON, and the number of objects in it.
JSON_CASES = {
    "labelme": (
        parse_labelme,
        {
            "shapes": [labelme_shape("rectangle", [[1, 2], [3, 4]]), labelme_shape("circle", [[1, 2], [3, 4]]),
                       labelme_shape("point", [[1, 2]])],
            "imagePath": "a.jpg", "imageHeight": 72, "imageWidth": 96,
        },
        3,
    ),
    "create_ml": (parse_create_ml, [{"image": "a.jpg", "annotations": [CREATE_ML] * 3}], 3),
    "via": (parse_via, {"a": {"filename": "a", "regions": [region(), region(ELLIPSE), region(type={"a": True})]}}, 3),
    "via3": (parse_via3, VIA3, 3),
    "vott": (parse_vott, {"assets": {"a": asset([RECTANGLE, {**RECTANGLE, "type": "POLYGON"}])}}, 2),
    "label_studio": (
        parse_label_studio,
        [task(result(BOX, id="a"), result({"points": [[1, 2], [3, 4]]}, "polygonlabels", id="b"), result(BOX, id="c"))],
        3,
    ),
    "label_studio_min": (parse_label_studio, [row("2024", "a", "b")], 2),
    "supervisely": (
        parse_supervisely,
        {"size": {"height": 1}, "objects": [supervisely_shape("rectangle", [[1, 2], [3, 4]]), bitmap(3, 3)]},
        2,
    ),
}  # fmt: skip
CSV_ROW = ["a.jpg", 3000, "{}", 1, 0, json.dumps(ELLIPSE), '{"type": "bolt"}']
TEXT_CASES = {
    **{name: (parse, json.dumps(value).encode(), count) for name, (parse, value, count) in JSON_CASES.items()},
    "via_csv": (parse_via_csv, to_csv([CSV_ROW, CSV_ROW]), 2),
    "cvat_xml": (parse_cvat_xml, make_xml(CVAT_BOX + '<polygon label="nut" points="1,2;3,4;5,6"/><tag label="x"/>'), 2),
    "kitti": (parse_kitti, b"Car 0 0 -1 1 2 3 4 1 1 1 1 1 1 1\nDontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1 -1 -1 -1\n", 2),
    "dota": (parse_dota, b"imagesource:x\ngsd:1\n1 2 3 4 5 6 7 8 plane 0\n1 2 3 4 5 6 7 8 ship 1\n", 2),
    "visdrone": (parse_visdrone, b"1,2,3,4,1,4,0,0\n1,2,3,4,0,0,0,0\n", 2),
    "wider": (parse_wider, WIDER, 4),
    "keras_yolo": (parse_keras_yolo, b"a.jpg 1,2,3,4,0 1,2,3,4,1\nb.jpg\n", 2),
}


def parse_all(parse, data):
    """Returns the images, after packing their boxes as the readers do; the only error may be a `ValueError`."""
    message, images = "", []
    try:
        images = list(parse(data))
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
    for image in images:
        assert isinstance(image.filename, str)
        pack_boxes(image.boxes)
        assert all(isinstance(box.category, str) and len(box.corners) == 4 for box in image.boxes)
    return images


def mutate_bytes(data, rng):
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(mutated) + 1)
        length = rng.randint(0, 5)
        match rng.randrange(4):
            case 0:
                mutated[position : position + length] = rng.randbytes(length)
            case 1:
                del mutated[position : position + length]
            case 2:
                mutated[position:position] = rng.choice(
                    [b"0", b"-", b",", b"\n", b'"', b"[", b"}", b"\xff", b" ", b"1e999"]
                )
            case _:
                start = rng.randrange(len(data))
                mutated[position:position] = data[start : start + 20]
    return bytes(mutated)


def mutate_value(value, rng, values=VALUES):
    """Returns a copy of the JSON value in which one value at a random place is replaced."""
    copied = json.loads(json.dumps(value))
    node, key = rng.choice(list_places(copied))
    if isinstance(node, dict) and rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(values)
    return copied


@pytest.mark.parametrize("name", TEXT_CASES)
def test_every_object_of_a_well_formed_file_is_kept_or_reported(name):
    parse, data, count = TEXT_CASES[name]
    assert sum(len(image.boxes) for image in parse_all(parse, data)) == count


@pytest.mark.parametrize("name", TEXT_CASES)
def test_damaged_bytes_raise_only_value_errors(name):
    parse, data, _ = TEXT_CASES[name]
    rng = random.Random(name)
    for _ in range(MUTATIONS):
        parse_all(parse, mutate_bytes(data, rng))


@pytest.mark.parametrize("name", JSON_CASES)
@pytest.mark.parametrize("depth", [100, 400, 700, 900])
def test_deeply_nested_values_raise_only_value_errors(name, depth):
    # json accepts values that are nested more deeply than repr and str can handle.
    parse, value, _ = JSON_CASES[name]
    rng = random.Random(name)
    marker = json.dumps("nested")
    for _ in range(MUTATIONS // 4):
        text = json.dumps(mutate_value(value, rng, [json.loads(marker)])).replace(marker, "[" * depth + "]" * depth)
        parse_all(parse, text.encode())


@pytest.mark.parametrize("name", JSON_CASES)
def test_values_of_a_wrong_type_raise_only_value_errors(name):
    parse, value, _ = JSON_CASES[name]
    rng = random.Random(name)
    for _ in range(MUTATIONS):
        parse_all(parse, json.dumps(mutate_value(value, rng)).encode())
