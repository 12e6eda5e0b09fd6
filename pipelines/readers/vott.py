"""Parses the JSON of VoTT 2: an export with all images, or the file of one asset.

    {"name": "project", "tags": [...], "assets": {"2e4c": {
        "asset": {"name": "a.jpg", "path": "file:C:/a.jpg", "size": {"width": 96, "height": 72}, "state": 2, ...},
        "regions": [{"type": "RECTANGLE", "tags": ["bolt"],
                     "boundingBox": {"left": 10, "top": 12, "width": 40, "height": 48}, "points": [...]}, ...]}, ...}}

Format: https://github.com/microsoft/VoTT/blob/master/src/models/applicationState.ts. A file `...-asset.json` contains
one value of `assets`. Coordinates are in pixels. Regions without a `boundingBox`, and all that are no rectangles,
become the bounds of their points. A region with several tags gives one box per tag. An image that was never opened
(state 0) and has no regions is rejected, because it may contain objects.
"""

import posixpath
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from pipelines.annotations import Problem
from pipelines.readers.json_values import (
    load_json,
    read_list,
    read_name,
    read_numbers,
    read_object,
    read_points,
    read_size,
)
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import ParsedObject, parse_objects
from pipelines.readers.shapes import bound_points

NOT_VISITED = 0


def parse_vott(data: bytes) -> Iterator[ParsedImage]:
    """Yields the images of an export, or the image of the file of an asset.

    Raises:
      ValueError: if the file is not a JSON file of VoTT.
    """
    root = load_json(data)
    if isinstance(root, dict) and isinstance(root.get("assets"), dict):
        assets = root["assets"].items()
        if assets and not any(isinstance(entry, dict) and "asset" in entry for _, entry in assets):
            raise ValueError("a project of VoTT, which contains no regions; pass the JSON that VoTT exports")
        for key, entry in assets:
            yield _parse_asset(entry, f"assets[{key!r:.100}].")
    elif isinstance(root, dict) and isinstance(root.get("asset"), dict):
        yield _parse_asset(root, "")
    else:
        raise ValueError("not a JSON file of VoTT: expected an object 'assets' or 'asset'")


def _parse_asset(value: Any, prefix: str) -> ParsedImage:
    where = prefix.rstrip(".")
    try:
        entry = read_object(value, "asset")
        regions = read_list(entry.get("regions"), "regions")
    except ValueError as error:
        return ParsedImage("", where=where, problem=Problem("broken_annotation", str(error)))
    boxes = parse_objects(((f"{prefix}regions[{i}]", region) for i, region in enumerate(regions)), _parse_region)
    try:
        asset = read_object(entry.get("asset"), "asset")
        filename = _read_filename(asset)
    except ValueError as error:
        return ParsedImage("", boxes, where, problem=Problem("broken_annotation", str(error)))
    given = asset.get("size")
    size = read_size(given.get("height"), given.get("width")) if isinstance(given, dict) else None
    problem = None
    if not regions and asset.get("state") == NOT_VISITED:
        problem = Problem(
            "not_annotated", "the image was never opened in VoTT; annotate it, or export tagged assets only"
        )
    return ParsedImage(filename, boxes, where, size, problem)


def _read_filename(asset: dict[str, Any]) -> str:
    """Returns the name of the image; the path is absolute on the machine of the annotator."""
    if asset.get("name"):
        return unquote(read_name(asset["name"], "name"))
    path = read_name(asset.get("path"), "path").replace("\\", "/")
    return unquote(posixpath.basename(path.partition("?")[0]))


def _parse_region(value: Any) -> ParsedObject:
    region = read_object(value, "region")
    names = tuple(read_name(tag, "tags") for tag in read_list(region.get("tags"), "tags"))
    if region.get("boundingBox") is not None and region.get("type", "RECTANGLE") in ("RECTANGLE", "SQUARE"):
        left, top, width, height = read_numbers(
            read_object(region["boundingBox"], "boundingBox"), "left", "top", "width", "height"
        )
        return ParsedObject(names, (top, left, top + height, left + width))
    return ParsedObject(names, bound_points(read_points(region.get("points"), "points")), is_reduced=True)
