"""Parses the annotations of Supervisely: one JSON file per image, DATASET/ann/a.jpg.json for DATASET/img/a.jpg.

    {"description": "", "size": {"height": 72, "width": 96}, "tags": [], "objects": [
        {"classTitle": "bolt", "geometryType": "rectangle", "points": {"exterior": [[10, 12], [50, 60]], ...}},
        {"classTitle": "nut", "geometryType": "bitmap", "bitmap": {"data": "eJzr...", "origin": [4, 6]}}, ...]}

Format: https://developer.supervisely.com/getting-started/supervisely-annotation-format/objects. Coordinates are in
pixels. Polygons, lines and cuboids become the bounds of their points. A bitmap is a PNG image, compressed with zlib, in
base64; its box is its size at its origin, because Supervisely trims bitmaps to the object. Points and graphs of key
points have no area and are rejected. Tags describe the whole image and are not objects. Newer files contain the `name`
of the image.
"""

import base64
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from pipelines.readers.json_values import (
    format_value,
    load_json,
    read_name,
    read_object,
    read_point,
    read_points,
    read_size,
)
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import Corners, ParsedObject, parse_objects
from pipelines.readers.shapes import bound_points, reject_points

BITMAPS = ("bitmap", "alpha_mask")
POINT_SHAPES = ("point", "graph")
OUTLINES = ("rectangle", "polygon", "line", "polyline", "cuboid")
# The signature of a PNG file, the length and name of its first chunk, and the width and height at its start.
PNG_HEADER = struct.Struct(">8s4x4sII")
# Only the beginning of a bitmap is decoded, so its size in memory is bounded whatever it contains.
HEAD_CHARACTERS = 1024


def parse_supervisely(data: bytes) -> Iterator[ParsedImage]:
    """Yields the image of an annotation file.

    Raises:
      ValueError: if the file is not an annotation of an image by Supervisely.
    """
    root = load_json(data)
    if not isinstance(root, dict) or not isinstance(root.get("objects"), list) or "frames" in root:
        raise ValueError("not an annotation of an image by Supervisely: expected an object with a list 'objects'")
    size = root.get("size")
    name = root.get("name")
    boxes = parse_objects(((f"objects[{i}]", item) for i, item in enumerate(root["objects"])), _parse_object)
    yield ParsedImage(
        filename=name if isinstance(name, str) else "",
        boxes=boxes,
        size=read_size(size.get("height"), size.get("width")) if isinstance(size, dict) else None,
    )


def _parse_object(value: Any) -> ParsedObject:
    entry = read_object(value, "object")
    name = read_name(entry.get("classTitle"), "classTitle")
    # Old files have no type; their objects have either a bitmap or points.
    kind = entry.get("geometryType") or ("bitmap" if entry.get("bitmap") else "polygon")
    if kind in POINT_SHAPES:
        raise reject_points(f"the shape {kind!r}")
    if kind in BITMAPS:
        return ParsedObject((name,), _bound_bitmap(entry.get(kind)), is_reduced=True)
    if kind not in OUTLINES:
        expected = ", ".join((*OUTLINES, *BITMAPS))
        raise ValueError(f"geometryType: {format_value(kind)} is not supported; expected {expected}")
    points = entry.get("points")
    exterior = points.get("exterior") if isinstance(points, dict) else points
    return ParsedObject((name,), bound_points(read_points(exterior, "points")), is_reduced=kind != "rectangle")


def _bound_bitmap(value: Any) -> Corners:
    bitmap = read_object(value, "bitmap")
    x, y = read_point(bitmap.get("origin"), "origin")
    encoded = bitmap.get("data")
    if not isinstance(encoded, str):
        raise ValueError(f"bitmap data: expected text in base64, got {format_value(encoded)}")
    start = "".join(encoded[:HEAD_CHARACTERS].split())
    try:
        compressed = base64.b64decode(start[: len(start) // 4 * 4])
        head = zlib.decompressobj().decompress(compressed, PNG_HEADER.size)
        signature, chunk, width, height = PNG_HEADER.unpack(head)
    except (ValueError, zlib.error, struct.error) as error:
        raise ValueError(f"bitmap data cannot be decoded: {error}") from None
    if signature != b"\x89PNG\r\n\x1a\n" or chunk != b"IHDR":
        raise ValueError("bitmap data is not a PNG image")
    return y, x, y + height, x + width
