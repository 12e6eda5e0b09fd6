"""Parses the projects of VIA 3 (VGG Image Annotator): one JSON file for all images.

    {"project": {...}, "config": {...},
     "attribute": {"1": {"aname": "class", "options": {"0": "bolt", "1": "nut"}, ...}},
     "file": {"1": {"fid": "1", "fname": "a.jpg", "src": "images/a.jpg", ...}}, "view": {"1": {"fid_list": ["1"]}},
     "metadata": {"1_x8Fe": {"vid": "1", "flg": 0, "z": [], "xy": [2, 10, 12, 40, 48], "av": {"1": "0"}}, ...}}

Format: https://gitlab.com/vgg/via/-/blob/master/via-3.x.y/CodeDoc.md. `xy` is the number of the shape and its
coordinates in pixels. Metadata without `xy` describe a file and are not objects. The attribute that gives the class is
chosen as in via.py. Circles, ellipses, lines and polygons become their bounds; points have no area and are rejected.
Regions of videos, which have a time `z`, are rejected.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from pipelines.annotations import Problem
from pipelines.readers.json_values import load_json, read_list, read_name, read_number, read_object, to_text
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import Corners, ObjectError, ParsedObject, parse_objects
from pipelines.readers.shapes import bound_circle, bound_ellipse, bound_points, reject_points
from pipelines.readers.via_regions import find_class_attribute, read_region_classes

RECTANGLE = 2


def parse_via3(data: bytes) -> Iterator[ParsedImage]:
    """Yields the images of a project of VIA 3, in the order of its files.

    Raises:
      ValueError: if the file is not a project of VIA 3.
    """
    root = load_json(data)
    tables = [root.get(key) if isinstance(root, dict) else None for key in ("attribute", "file", "view", "metadata")]
    attributes, files, views, metadata = (table if isinstance(table, dict) else {} for table in tables)
    if any(not isinstance(table, dict) for table in tables):
        raise ValueError("not a project of VIA 3: expected objects 'attribute', 'file', 'view' and 'metadata'")
    regions: dict[str, list[tuple[str, Any]]] = {fid: [] for fid in files}
    unassigned: list[tuple[str, Any]] = []
    for key, entry in metadata.items():
        if isinstance(entry, dict) and entry.get("xy") == []:
            continue
        region = _name_attributes(entry, attributes)
        regions.get(_find_file(entry, views), unassigned).append((f"metadata[{key!r:.100}]", region))
    attribute = find_class_attribute(region for found in regions.values() for _, region in found)
    parse = partial(_parse_region, attribute)
    for fid, file in files.items():
        boxes = parse_objects(regions[fid], parse)
        where = f"file[{fid!r:.100}]"
        try:
            filename = _read_filename(read_object(file, "file"))
        except ValueError as error:
            yield ParsedImage("", boxes, where, problem=Problem("broken_annotation", str(error)))
            continue
        yield ParsedImage(filename, boxes, where)
    if unassigned:
        boxes = parse_objects(unassigned, parse)
        problem = Problem("broken_annotation", "the view of these regions belongs to no file of the project")
        yield ParsedImage("", boxes, "metadata", problem=problem)


def _find_file(entry: Any, views: dict[str, Any]) -> str:
    view = views.get(to_text(entry.get("vid"))) if isinstance(entry, dict) else None
    files = view.get("fid_list") if isinstance(view, dict) else None
    return to_text(files[0]) if isinstance(files, list) and len(files) == 1 else ""


def _read_filename(file: dict[str, Any]) -> str:
    """Returns `src` if it is a path and not an embedded or remote file, else `fname`."""
    source = file.get("src")
    if isinstance(source, str) and source and ":" not in source:
        return source
    return read_name(file.get("fname"), "fname")


def _name_attributes(entry: Any, attributes: dict[str, Any]) -> Any:
    """Returns the entry with its attributes by name and with the text of the selected options."""
    given = entry.get("av") if isinstance(entry, dict) else None
    if not isinstance(given, dict):
        return entry
    named = {}
    for key, value in given.items():
        definition = attributes.get(key)
        definition = definition if isinstance(definition, dict) else {}
        options = definition.get("options")
        if isinstance(options, dict) and options and isinstance(value, str):
            # The value of a checkbox is a list of option ids, separated by commas.
            value = {to_text(options.get(option)) or option: True for option in value.split(",") if option}
        named[to_text(definition.get("aname")) or key] = value
    return {**entry, "region_attributes": named}


def _parse_region(attribute: str, value: Any) -> ParsedObject:
    region = read_object(value, "metadata")
    if region.get("z"):
        raise ObjectError("video_region", "the region belongs to a video; export its frames as images")
    names = read_region_classes(attribute, read_object(region.get("region_attributes"), "av"))
    kind, *numbers = (read_number(number, "xy") for number in read_list(region.get("xy"), "xy"))
    corners = _bound_shape(int(kind), numbers)
    return ParsedObject(names, corners, is_reduced=kind != RECTANGLE)


def _bound_shape(kind: int, numbers: list[float]) -> Corners:
    match kind, numbers:
        case 1, _:
            raise reject_points("a point")
        case 2, [x, y, width, height]:
            return y, x, y + height, x + width
        case 3, [x, y, radius]:
            return bound_circle((x, y), radius)
        case 4, [x, y, radius_x, radius_y]:
            return bound_ellipse((x, y), radius_x, radius_y)
        # A line, a polyline, a polygon, or the four extreme points of an object.
        case 5 | 6 | 7 | 8, [_, _, *_] if len(numbers) % 2 == 0:
            return bound_points(list(zip(numbers[::2], numbers[1::2], strict=True)))
        case 9, [_, _, _, _, _, _]:
            return _bound_circle_through(*zip(numbers[::2], numbers[1::2], strict=True))
    raise ValueError(f"xy: shape {kind} with {len(numbers)} coordinates is not supported")


def _bound_circle_through(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> Corners:
    """Returns the bounds of the circle through three points."""
    bx, by, cx, cy = b[0] - a[0], b[1] - a[1], c[0] - a[0], c[1] - a[1]
    doubled = 2 * (bx * cy - by * cx)
    if doubled == 0:
        raise ValueError("xy: the three points of the circle lie on a line")
    x = (cy * (bx * bx + by * by) - by * (cx * cx + cy * cy)) / doubled
    y = (bx * (cx * cx + cy * cy) - cx * (bx * bx + by * by)) / doubled
    return bound_circle((a[0] + x, a[1] + y), math.hypot(x, y))
