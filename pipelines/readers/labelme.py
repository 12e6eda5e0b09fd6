"""Parses the annotations of labelme 3 to 5: one JSON file per image, next to the image.

    {"version": "5.4.1", "imagePath": "a.jpg", "imageHeight": 72, "imageWidth": 96, "imageData": null,
     "shapes": [{"label": "bolt", "shape_type": "rectangle", "points": [[10, 12], [50, 60]]}, ...]}

Format: https://github.com/wkentaro/labelme/blob/main/labelme/_label_file.py. Coordinates are in pixels.

Rectangles may start at any corner. Polygons, rotated rectangles (also those of X-AnyLabeling), circles, lines and
masks become their bounds; the two points of a mask are the corners of its box. Points have no area and are rejected.
The flags of the image are not objects. `imageData`, a copy of the image, is ignored.
"""

import math
from collections.abc import Iterator
from typing import Any

from pipelines.readers.json_values import (
    format_value,
    load_json,
    read_list,
    read_name,
    read_object,
    read_points,
    read_size,
)
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import ParsedObject, parse_objects
from pipelines.readers.shapes import bound_circle, bound_points, reject_points

POINT_SHAPES = ("point", "points")
# Shapes that are reduced to the bounds of their points.
OUTLINES = ("polygon", "rotation", "oriented_rectangle", "quadrilateral", "line", "linestrip", "mask")


def parse_labelme(data: bytes) -> Iterator[ParsedImage]:
    """Yields the image of an annotation file.

    Raises:
      ValueError: if the file is not an annotation of labelme.
    """
    root = load_json(data)
    if not isinstance(root, dict) or not isinstance(root.get("shapes"), list):
        raise ValueError("not an annotation of labelme: expected an object with a list 'shapes'")
    path = root.get("imagePath")
    boxes = parse_objects(((f"shapes[{i}]", shape) for i, shape in enumerate(root["shapes"])), _parse_shape)
    yield ParsedImage(
        filename=path.replace("\\", "/") if isinstance(path, str) else "",
        boxes=boxes,
        size=read_size(root.get("imageHeight"), root.get("imageWidth")),
    )


def _parse_shape(value: Any) -> ParsedObject:
    shape = read_object(value, "shape")
    # Files of labelme 3.0 and older contain only polygons.
    kind = shape.get("shape_type") or "polygon"
    name = read_name(shape.get("label"), "label")
    points = read_points(read_list(shape.get("points"), "points"), "points")
    # Written by X-AnyLabeling.
    is_difficult = shape.get("difficult") is True
    if kind in POINT_SHAPES:
        raise reject_points(f"the shape {kind!r}")
    if kind == "rectangle":
        return ParsedObject((name,), bound_points(points), difficult=is_difficult)
    if kind == "circle":
        if len(points) != 2:
            raise ValueError(f"expected the center of the circle and a point on it, got {len(points)} points")
        corners = bound_circle(points[0], math.dist(*points))
        return ParsedObject((name,), corners, is_reduced=True, difficult=is_difficult)
    if kind not in OUTLINES:
        raise ValueError(
            f"shape_type: {format_value(kind)} is not supported; expected rectangle, circle, {', '.join(OUTLINES)}"
        )
    return ParsedObject((name,), bound_points(points), is_reduced=True, difficult=is_difficult)
