"""Reads the regions of Label Studio's results: their labels and their boxes.

Coordinates are percentages of the width and height of the image; boxes are fractions. `rotation` is in degrees,
clockwise around the top left corner of a box and the center of an ellipse. Rotated boxes, polygons and ellipses become
their bounds. Key points and brush masks are rejected. A region with several labels gives one box per label. Results
without a region (choices, texts, ratings) describe the image and are not objects.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from pipelines.annotations import Box
from pipelines.readers.json_values import (
    format_value,
    read_list,
    read_name,
    read_number,
    read_numbers,
    read_object,
    read_points,
    read_size,
    to_text,
)
from pipelines.readers.parsed_objects import Corners, ObjectError, ParsedObject, parse_objects
from pipelines.readers.shapes import bound_ellipse, bound_points, bound_rotated_box, reject_points

MASK_KEYS = ("rle", "imageDataURL")
GEOMETRY_KEYS = ("x", "y", "width", "height", "radiusX", "radiusY", "rotation", "points", "vertices", *MASK_KEYS)


def parse_regions(results: list[tuple[str, Any]]) -> tuple[tuple[Box, ...], tuple[int, int] | None]:
    """Returns the boxes of an annotation and the size (height, width) of the image, if the results contain it.

    Args:
      results: position of each result in the export, for messages, and its value.
    """
    size = next((size for _, item in results if isinstance(item, dict) and (size := _read_size(item))), None)
    regions = ((where, region) for where, region in _group_results(results) if _is_region(region))
    return parse_objects(regions, partial(_parse_region, size)), size


def _read_size(result: dict[str, Any]) -> tuple[int, int] | None:
    return read_size(result.get("original_height"), result.get("original_width"))


def _group_results(results: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields one entry per region, because the tags `Rectangle` and `Labels` give a result each for the same region."""
    groups: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, item in results:
        value = item.get("value") if isinstance(item, dict) else None
        if not isinstance(value, dict):
            # Relations between regions have no value.
            if not isinstance(item, dict) or "value" in item:
                yield where, item
            continue
        geometry = {name: value[name] for name in GEOMETRY_KEYS if name in value}
        labels = [given for field, given in value.items() if field.endswith("labels")]
        # JSON-MIN has no ids.
        key = to_text(item.get("id")) or (format_value(geometry, length=None) if geometry else where)
        region = groups.setdefault(key, (where, {"labels": [], "is_labeled": False}))[1]
        region["labels"] += (name for given in labels for name in (given if isinstance(given, list) else [given]))
        region["is_labeled"] |= bool(labels)
        region.update(geometry, image_rotation=item.get("image_rotation") or 0)
    yield from groups.values()


def _is_region(region: Any) -> bool:
    """Returns whether a result describes an object and not the whole image; true for a broken result."""
    is_complete = isinstance(region, dict) and "is_labeled" in region
    return not is_complete or region["is_labeled"] or any(key in region for key in GEOMETRY_KEYS)


def _parse_region(size: tuple[int, int] | None, value: Any) -> ParsedObject:
    region = read_object(value, "result")
    names = tuple(read_name(name, "labels") for name in read_list(region.get("labels"), "value"))
    if read_number(region["image_rotation"], "image_rotation") % 360:
        raise ObjectError("rotated_image", "the image was rotated in Label Studio; rotate the file instead")
    corners, is_reduced = _bound_region(region, size)
    return ParsedObject(names, corners, is_reduced, normalized=True)


def _bound_region(region: dict[str, Any], size: tuple[int, int] | None) -> tuple[Corners, bool]:
    """Returns the box of a region, as fractions of the image, and whether it is the bounds of another shape."""
    outline = region.get("points", region.get("vertices"))
    if outline is not None:
        return _to_fractions(bound_points(read_points(outline, "points")), (100, 100)), True
    if any(key in region for key in MASK_KEYS):
        raise ObjectError("no_box", "a brush mask is not supported; export it as COCO, or annotate with boxes")
    is_ellipse = "radiusX" in region
    if not is_ellipse and "x" in region and "height" not in region:
        raise reject_points("a key point")
    angle = math.radians(read_number(region.get("rotation") or 0, "rotation") % 360)
    if angle and size is None:
        raise ValueError("the region is rotated, so original_width and original_height are needed")
    # Only a rotation depends on the shape of the image; an upright box is computed in percent.
    image_height, image_width = size if size and angle else (100, 100)
    x, y, width, height = read_numbers(
        region, "x", "y", *(("radiusX", "radiusY") if is_ellipse else ("width", "height"))
    )
    x, width = x * image_width / 100, width * image_width / 100
    y, height = y * image_height / 100, height * image_height / 100
    if is_ellipse:
        corners = bound_ellipse((x, y), width, height, angle)
    else:
        corners = y, x, y + height, x + width
        corners = bound_rotated_box(corners, angle, (x, y)) if angle else corners
    return _to_fractions(corners, (image_height, image_width)), is_ellipse or angle != 0


def _to_fractions(corners: Corners, size: tuple[int, int]) -> Corners:
    ymin, xmin, ymax, xmax = corners
    height, width = size
    return ymin / height, xmin / width, ymax / height, xmax / width
