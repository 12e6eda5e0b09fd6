"""Reads the regions of VIA (VGG Image Annotator): their class and their box.

VIA has region attributes but no classes. One attribute of the file gives the class: the only attribute; otherwise the
first of `CLASS_ATTRIBUTES` that occurs; otherwise the first attribute with a value in every region. Without any
attribute, all objects have the class `object`. A checkbox with several selected values gives one box per value.

Coordinates are in pixels; the angle `theta` of an ellipse is in radians. Circles, ellipses, polygons and polylines
become their bounds. Points have no area and are rejected.
"""

from collections.abc import Iterable
from typing import Any

from pipelines.annotations import ONLY_CLASS
from pipelines.readers.json_values import format_value, read_list, read_name, read_number, read_numbers, read_object
from pipelines.readers.parsed_objects import Corners, ParsedObject
from pipelines.readers.shapes import bound_circle, bound_ellipse, bound_points, reject_points

# VIA's own example has the `name` of an individual and its `type`, so `type` comes first.
CLASS_ATTRIBUTES = ("class", "label", "category", "type", "object", "name")


def find_class_attribute(regions: Iterable[Any]) -> str:
    """Returns the region attribute that gives the class; empty if no region has an attribute."""
    counts: dict[str, int] = {}
    total = 0
    for region in regions:
        total += 1
        given = region.get("region_attributes") if isinstance(region, dict) else None
        for name, value in given.items() if isinstance(given, dict) else ():
            counts[name] = counts.get(name, 0) + bool(read_classes(value))
    if len(counts) < 2:
        return next(iter(counts), "")
    by_lowercase = {name.strip().lower(): name for name in reversed(counts)}
    named = [by_lowercase[name] for name in CLASS_ATTRIBUTES if name in by_lowercase]
    complete = [name for name, count in counts.items() if count == total]
    return next(iter((*named, *complete, *counts)))


def read_classes(value: Any) -> tuple[str, ...]:
    """Returns the class that a text contains, or the selected values of a checkbox: `{"bolt": true, "nut": false}`."""
    if isinstance(value, dict):
        return tuple(name for name, selected in value.items() if selected and name.strip())
    try:
        return (read_name(value, "class"),)
    except ValueError:
        return ()


def read_region_classes(attribute: str, attributes: dict[str, Any]) -> tuple[str, ...]:
    """Returns the classes of a region; `object` if no region of the file has an attribute.

    Raises:
      ValueError: if the attribute that gives the class has no value.
    """
    names = read_classes(attributes.get(attribute)) if attribute else (ONLY_CLASS,)
    if not names:
        raise ValueError(f"the attribute {attribute!r:.100}, which gives the class, has no value; set it in VIA")
    return names


def parse_region(attribute: str, value: Any) -> ParsedObject:
    """Parses a region of VIA 1 or 2, whose class is given by the attribute."""
    region = read_object(value, "region")
    names = read_region_classes(attribute, read_object(region.get("region_attributes"), "region_attributes"))
    corners, reduced = bound_shape(read_object(region.get("shape_attributes"), "shape_attributes"))
    return ParsedObject(names, corners, reduced)


def bound_shape(shape: dict[str, Any]) -> tuple[Corners, bool]:
    """Returns the box of a value of `shape_attributes` and whether it is the bounds of another shape.

    Raises:
      ValueError: if the shape cannot be read or has no area.
    """
    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = read_numbers(shape, "x", "y", "width", "height")
        return (y, x, y + height, x + width), False
    if kind == "circle":
        x, y, radius = read_numbers(shape, "cx", "cy", "r")
        return bound_circle((x, y), radius), True
    if kind == "ellipse":
        x, y, radius_x, radius_y = read_numbers(shape, "cx", "cy", "rx", "ry")
        return bound_ellipse((x, y), radius_x, radius_y, read_number(shape.get("theta", 0), "theta")), True
    if kind in ("polygon", "polyline"):
        xs, ys = (read_list(shape.get(key), key) for key in ("all_points_x", "all_points_y"))
        if len(xs) != len(ys):
            raise ValueError(f"all_points_x has {len(xs)} values and all_points_y {len(ys)}")
        return bound_points([(read_number(x, "x"), read_number(y, "y")) for x, y in zip(xs, ys, strict=True)]), True
    if kind == "point":
        raise reject_points("the shape 'point'")
    raise ValueError(
        f"shape name: expected rect, circle, ellipse, polygon, polyline or point, got {format_value(kind)}"
    )
