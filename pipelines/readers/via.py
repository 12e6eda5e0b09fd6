"""Parses JSON files and saved projects of VIA 1 and 2 (VGG Image Annotator): one file for all images.

    {"a.jpg3000": {"filename": "a.jpg", "size": 3000, "file_attributes": {}, "regions": [
        {"shape_attributes": {"name": "rect", "x": 10, "y": 12, "width": 40, "height": 48},
         "region_attributes": {"type": "bolt"}}, ...]}, ...}

Format: https://www.robots.ox.ac.uk/~vgg/software/via/docs/user_guide.html. A saved project contains the same object as
`_via_img_metadata`. VIA 1 writes `regions` as an object with the keys "0", "1", ... VIA 3 has another format, see
via3.py. Classes, shapes and units are described in via_regions.py.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from pipelines.annotations import Problem
from pipelines.readers.json_values import format_value, load_json, read_name, read_object
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import parse_objects
from pipelines.readers.via_regions import find_class_attribute, parse_region


def parse_via(data: bytes) -> Iterator[ParsedImage]:
    """Yields the images of a JSON file of VIA 1 or 2.

    Raises:
      ValueError: if the file is not an annotation of VIA.
    """
    root = load_json(data)
    entries = root.get("_via_img_metadata", root) if isinstance(root, dict) else None
    is_project = entries is not root
    if not isinstance(entries, dict) or not (is_project or any(map(_is_image, entries.values()))):
        raise ValueError("not an annotation of VIA: expected objects with 'filename' and 'regions'")
    regions = {key: _list_regions(entry) for key, entry in entries.items()}
    attribute = find_class_attribute(region for found in regions.values() for _, region in found)
    for key, entry in entries.items():
        where = f"[{key!r:.200}]"
        boxes = parse_objects(
            ((f"{where}.regions[{i}]", region) for i, region in regions[key]), partial(parse_region, attribute)
        )
        try:
            image = read_object(entry, "image")
            if not isinstance(image.get("regions"), dict | list):
                raise ValueError(f"regions: expected a list, got {format_value(image.get('regions'))}")
            filename = read_name(image.get("filename"), "filename")
        except ValueError as error:
            yield ParsedImage("", boxes, where, problem=Problem("broken_annotation", str(error)))
            continue
        yield ParsedImage(filename, boxes, where)


def _is_image(entry: Any) -> bool:
    return isinstance(entry, dict) and "filename" in entry and "regions" in entry


def _list_regions(entry: Any) -> list[tuple[Any, Any]]:
    regions = entry.get("regions") if isinstance(entry, dict) else None
    if isinstance(regions, dict):
        return list(regions.items())
    return list(enumerate(regions)) if isinstance(regions, list) else []
