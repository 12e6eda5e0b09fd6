"""Parser of Supervisely: shapes, bitmaps, and files that are wrong or malicious."""

import base64
import io
import json
import zlib

import pytest
from parsed import describe, reasons
from PIL import Image

from pipelines.readers.supervisely import parse_supervisely


def parse(*objects, **fields):
    root = {"description": "", "size": {"height": 72, "width": 96}, "tags": [{"name": "indoor"}], "objects": objects}
    (image,) = parse_supervisely(json.dumps({**root, **fields}).encode())
    return image


def shape(kind, points, name="bolt"):
    return {
        "id": 7,
        "classTitle": name,
        "geometryType": kind,
        "tags": [],
        "points": {"exterior": points, "interior": []},
    }


def encode(data):
    return base64.b64encode(zlib.compress(data)).decode()


def bitmap(width, height, origin=(4, 6), data=None):
    stream = io.BytesIO()
    Image.new("1", (width, height), 1).save(stream, "PNG")
    value = {"data": data or encode(stream.getvalue()), "origin": list(origin)}
    return {"classTitle": "bolt", "geometryType": "bitmap", "bitmap": value}


RECTANGLE = shape("rectangle", [[10, 12], [50, 60]])


def test_a_rectangle_is_read_and_tags_are_not_objects():
    image = parse(RECTANGLE)
    assert (image.filename, image.size, image.reduced) == ("", (72, 96), 0)
    assert describe(image) == [("bolt", (12, 10, 60, 50))]
    assert image.boxes[0].where == "objects[0]"


def test_the_name_of_the_image_is_read_if_there_is_one():
    assert parse(name="a.jpg").filename == "a.jpg"


@pytest.mark.parametrize(
    ("entry", "corners"),
    [
        (shape("polygon", [[1, 2], [5, 3], [4, 9]]), (2, 1, 9, 5)),
        (shape("line", [[9, 1], [2, 8]]), (1, 2, 8, 9)),
        ({"classTitle": "bolt", "geometryType": "cuboid", "points": [[1, 2], [5, 3], [4, 9]]}, (2, 1, 9, 5)),
        (bitmap(30, 20), (6, 4, 26, 34)),
        ({**bitmap(30, 20), "geometryType": None}, (6, 4, 26, 34)),
        ({**shape(None, [[1, 2], [5, 9]]), "bitmap": None}, (2, 1, 9, 5)),
    ],
)
def test_other_shapes_are_reduced_to_their_bounds(entry, corners):
    image = parse(entry)
    assert describe(image) == [("bolt", corners)]
    assert image.reduced == 1


def test_points_and_graphs_have_no_box():
    graph = {"classTitle": "hand", "geometryType": "graph", "nodes": {"a": {"loc": [1, 2]}}}
    assert reasons(parse(shape("point", [[1, 2]]), graph)) == ["no_box", "no_box"]


@pytest.mark.parametrize(
    "bad",
    [
        shape("rectangle", [[10, 12]]),
        shape("rectangle", None),
        shape("rectangle", [[10, "x"], [50, 60]]),
        shape("rectangle", [[10, 12], [50, 60]], ""),
        shape("sphere", [[10, 12], [50, 60]]),
        bitmap(3, 3, data="no base64!"),
        bitmap(3, 3, data=encode(b"short")),
        bitmap(3, 3, data=encode(b"GIF89a" * 20)),
        bitmap(3, 3, data=base64.b64encode(b"not zlib at all").decode()),
        bitmap(3, 3, origin=(1,)),
        {**bitmap(3, 3), "bitmap": None},
        {**bitmap(3, 3), "bitmap": {"data": 3, "origin": [1, 2]}},
        3,
    ],
)
def test_a_broken_object_is_a_box_with_a_problem(bad):
    image = parse(bad, RECTANGLE)
    assert reasons(image) == ["broken_box"]
    assert describe(image)[1] == ("bolt", (12, 10, 60, 50))


def test_only_the_beginning_of_a_bitmap_is_decompressed(monkeypatch):
    # 200 MB of zeros after the header of a PNG image, 200 KB compressed.
    stream = io.BytesIO()
    Image.new("1", (30, 20), 1).save(stream, "PNG")
    compressor = zlib.compressobj()
    data = compressor.compress(stream.getvalue()[:33])
    data += b"".join(compressor.compress(bytes(1 << 20)) for _ in range(200)) + compressor.flush()
    decompressed = []
    original = zlib.decompressobj

    class Recorder:
        def __init__(self):
            self._inner = original()

        def decompress(self, *args):
            decompressed.append(self._inner.decompress(*args))
            return decompressed[-1]

    monkeypatch.setattr(zlib, "decompressobj", Recorder)
    assert describe(parse(bitmap(1, 1, data=base64.b64encode(data).decode()))) == [("bolt", (6, 4, 26, 34))]
    assert sum(map(len, decompressed)) < 100


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"objects": {}}', b'{"objects": [], "frames": []}', b"x"])
def test_another_file_is_refused(data):
    with pytest.raises(ValueError, match=r"not an annotation of an image by Supervisely|not valid JSON"):
        list(parse_supervisely(data))
