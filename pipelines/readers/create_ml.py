"""Parses the annotations of Apple's Create ML: one JSON file for all images of a folder.

    [{"image": "a.jpg",
      "annotations": [{"label": "bolt", "coordinates": {"x": 30, "y": 36, "width": 40, "height": 48}}, ...]}, ...]

Format: https://developer.apple.com/documentation/createml/building-an-object-detector-data-source. Roboflow, IBM Cloud
Annotations and RectLabel export it too. Apple's reference of `MLObjectDetector` writes `imagefilename` for `image` and
`annotation` for `annotations`; both spellings are read.

x and y are the center of the box, in pixels from the top left corner of the image. These are Create ML's defaults; its
options for other units and origins are arguments of its API and not part of the file.
"""

from collections.abc import Iterator
from typing import Any

from pipelines.annotations import Problem
from pipelines.readers.json_values import load_json, read_list, read_name, read_numbers, read_object
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import ParsedObject, parse_objects

IMAGE_KEYS = ("image", "imagefilename", "imageFilename")
LIST_KEYS = ("annotations", "annotation")


def parse_create_ml(data: bytes) -> Iterator[ParsedImage]:
    """Yields the images of an annotation file.

    Raises:
      ValueError: if the file is not an annotation of Create ML.
    """
    root = load_json(data)
    if not isinstance(root, list) or (root and not any(map(_is_image, root))):
        raise ValueError("not an annotation of Create ML: expected a list of objects with 'image' and 'annotations'")
    for index, entry in enumerate(root):
        yield _parse_image(entry, f"[{index}]")


def _is_image(entry: Any) -> bool:
    keys = entry.keys() if isinstance(entry, dict) else ()
    return any(key in keys for key in IMAGE_KEYS) and any(key in keys for key in LIST_KEYS)


def _parse_image(value: Any, where: str) -> ParsedImage:
    try:
        entry = read_object(value, "image")
        objects = read_list(next((entry[key] for key in LIST_KEYS if key in entry), None), "annotations")
    except ValueError as error:
        return ParsedImage("", where=where, problem=Problem("broken_annotation", str(error)))
    boxes = parse_objects(((f"{where}.annotations[{i}]", item) for i, item in enumerate(objects)), _parse_annotation)
    try:
        filename = read_name(next((entry[key] for key in IMAGE_KEYS if key in entry), None), "image")
    except ValueError as error:
        return ParsedImage("", boxes, where, problem=Problem("broken_annotation", str(error)))
    return ParsedImage(filename, boxes, where)


def _parse_annotation(value: Any) -> ParsedObject:
    entry = read_object(value, "annotation")
    name = read_name(entry.get("label"), "label")
    x, y, width, height = read_numbers(
        read_object(entry.get("coordinates"), "coordinates"), "x", "y", "width", "height"
    )
    return ParsedObject((name,), (y - height / 2, x - width / 2, y + height / 2, x + width / 2))
