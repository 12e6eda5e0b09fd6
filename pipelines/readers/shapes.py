"""Reduces annotated shapes to upright boxes: corners ymin, xmin, ymax, xmax in the unit of the arguments.

Angles are in radians and turn from the x axis to the y axis, which is clockwise in an image, because y points down.
"""

import math
from collections.abc import Sequence

from pipelines.readers.parsed_objects import Corners, ObjectError


def bound_points(points: Sequence[tuple[float, float]]) -> Corners:
    """Returns the bounds of (x, y) points.

    Raises:
      ValueError: if there are fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"expected at least two points, got {len(points)}")
    xs, ys = zip(*points, strict=True)
    return min(ys), min(xs), max(ys), max(xs)


def bound_circle(center: tuple[float, float], radius: float) -> Corners:
    """Returns the bounds of a circle around (x, y)."""
    return bound_ellipse(center, radius, radius)


def bound_ellipse(center: tuple[float, float], radius_x: float, radius_y: float, angle: float = 0) -> Corners:
    """Returns the bounds of an ellipse around (x, y) that is rotated by `angle` around its center."""
    cos, sin = math.cos(angle), math.sin(angle)
    half_width, half_height = math.hypot(radius_x * cos, radius_y * sin), math.hypot(radius_x * sin, radius_y * cos)
    x, y = center
    return y - half_height, x - half_width, y + half_height, x + half_width


def bound_rotated_box(corners: Corners, angle: float, pivot: tuple[float, float]) -> Corners:
    """Returns the bounds of a box that is rotated by `angle` around the point (x, y) `pivot`."""
    ymin, xmin, ymax, xmax = corners
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = pivot
    offsets = [(corner_x - x, corner_y - y) for corner_x in (xmin, xmax) for corner_y in (ymin, ymax)]
    return bound_points([(x + dx * cos - dy * sin, y + dx * sin + dy * cos) for dx, dy in offsets])


def reject_points(description: str) -> ObjectError:
    """Returns the error for a shape without an area."""
    return ObjectError("no_box", f"{description} has no area; annotate the object with a box or a polygon")
