"""Checks the boxes of an image: usable boxes become objects, the others are rejected with a reason.

Every box becomes an object or a `Rejection`; none is dropped silently.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.annotations import Box, Image, Problem
from pipelines.classes import ClassTable
from ssd_dist.core.boxes import FloatArray
from ssd_dist.core.records import Objects

# Normalized coordinates with six digits may exceed the border by this much; such a box does not count as clipped.
ROUNDING = 1e-5
# Normalized coordinates above this value, or as far below 0, are probably pixels.
LARGEST_FRACTION = 2.0
LARGEST_AREA = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Rejection:
    """One rejected image or box, a line of `rejected.jsonl`; `where` is empty for a whole image."""

    source: str
    image: str
    reason: str
    detail: str
    where: str = ""


@dataclass(frozen=True)
class CheckedBoxes:
    """The usable objects of an image, and the rejected boxes.

    Attributes:
      objects: the usable objects.
      clipped: number of objects whose box extended beyond the image.
      reduced: number of objects whose box was made from a polygon or a rotated box.
      rejected: the rejected boxes.
    """

    objects: Objects
    clipped: int
    reduced: int
    rejected: tuple[Rejection, ...]


class _ValidBox(NamedTuple):
    """A valid box with its class, its corners clipped to the image and normalized, and its area in pixels."""

    box: Box
    label: int
    name: str
    inside: tuple[float, float, float, float]
    area: float
    clipped: bool


def check_size(image: Image, height: int, width: int) -> Problem | None:
    """Returns a problem if the image size differs from the size in its annotation: its boxes may be wrong."""
    if image.size in (None, (height, width)):
        return None
    claimed, found = ("{} x {}".format(*size) for size in (image.size, (height, width)))
    return Problem("size_mismatch", f"the annotation gives {claimed} pixels (height x width), the image has {found}")


def check_rotation(image: Image, upright: tuple[int, int], stored: tuple[int, int]) -> Problem | None:
    """Returns a problem if boxes fit the image only before its EXIF rotation; they should refer to the upright image.

    A box that fits only the upright image shows that they do; then another one extends beyond the border.

    Args:
      image: an image whose annotation gives the size before the rotation.
      upright: (height, width) after the rotation.
      stored: (height, width) before the rotation.
    """
    boxes = [box for box in image.boxes if box.problem is None and not box.normalized]
    only_stored = [box for box in boxes if _fits(box, stored) and not _fits(box, upright)]
    if not only_stored or any(_fits(box, upright) and not _fits(box, stored) for box in boxes):
        return None
    sizes = ["{} x {}".format(*size) for size in (upright, stored)]
    return Problem(
        "rotated_image",
        f"{_format_box(only_stored[0])} does not fit the upright image of {sizes[0]} pixels (height x width), only the "
        f"{sizes[1]} before the EXIF rotation; annotate the upright image, or remove the EXIF orientation",
    )


def _fits(box: Box, size: tuple[int, int]) -> bool:
    """Returns whether a box ends within an image of (height, width); corners may be rounded up to the next pixel."""
    _, _, bottom, right = box.corners
    return bottom <= size[0] + 1 and right <= size[1] + 1


def check_boxes(image: Image, height: int, width: int, classes: ClassTable) -> CheckedBoxes:
    """Checks, clips and normalizes the boxes of an image of `height` x `width` pixels as displayed."""
    kept: list[_ValidBox] = []
    rejected = []
    for box in image.boxes:
        found = box.problem or classes.find(box.category)
        problem = found if isinstance(found, Problem) else _find_problem(box, height, width)
        if problem is None and not isinstance(found, Problem):
            kept.append(_clip(box, *found, height, width, image.original or (height, width)))
        elif problem is not None:
            rejected.append(reject_box(image, box, problem))
    boxes = np.array([found.inside for found in kept], np.float32).reshape(-1, 4)
    # Records store float32; a box must still have an area after rounding.
    has_area = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    if not has_area.all():
        for index in np.flatnonzero(~has_area):
            box = kept[index].box
            rejected.append(
                reject_box(image, box, Problem("zero_area", f"{_format_box(box)} has no area within the image"))
            )
        boxes = boxes[has_area]
        kept = [found for found, keeps in zip(kept, has_area, strict=True) if keeps]
    clipped, reduced = sum(found.clipped for found in kept), sum(found.box.is_reduced for found in kept)
    return CheckedBoxes(_make_objects(kept, boxes), clipped, reduced, tuple(rejected))


def reject_image(image: Image, problem: Problem, is_image: bool = True) -> tuple[Rejection, ...]:
    """Returns the rejections of a whole image: one for the image and one for each of its boxes."""
    own = (Rejection(image.source, image.filename or image.image_id, problem.reason, problem.detail),)
    rejected = problem._replace(reason="image_rejected") if is_image else problem
    boxes = (
        # Without an image, a box keeps its own problem: for example a line of a CSV file that cannot be read.
        reject_box(image, box, rejected if is_image else box.problem or rejected)
        for box in image.boxes
    )
    return (*(own if is_image else ()), *boxes)


def reject_box(image: Image, box: Box, problem: Problem) -> Rejection:
    """Returns the rejection of one box of an image."""
    return Rejection(image.source, image.filename or image.image_id, problem.reason, problem.detail, box.where)


def _find_problem(box: Box, height: int, width: int) -> Problem | None:
    """Returns the problem with the corners of a box, or None."""
    if not all(map(math.isfinite, box.corners)):
        return Problem("not_finite", f"{_format_box(box)} contains a number that is not finite")
    ymin, xmin, ymax, xmax = box.corners
    if ymin > ymax or xmin > xmax:
        return Problem("reversed", f"{_format_box(box)}: a maximum lies below its minimum")
    if ymin == ymax or xmin == xmax:
        return Problem("zero_area", f"{_format_box(box)} has no area")
    if not box.normalized and min(box.corners) >= 0 and max(box.corners) <= 1:
        return Problem(
            "fractions",
            f"{_format_box(box)} lies within one pixel; its coordinates are probably fractions of the image",
        )
    if box.normalized and (max(box.corners) > LARGEST_FRACTION or min(box.corners) < 1 - LARGEST_FRACTION):
        return Problem("outside", f"{_format_box(box)} ends far outside the image; its coordinates are probably pixels")
    bottom, right = (1, 1) if box.normalized else (height, width)
    if ymin >= bottom or xmin >= right or ymax <= 0 or xmax <= 0:
        return Problem("outside", f"{_format_box(box)} lies outside the image of {height} x {width} pixels")
    return None


def _clip(box: Box, label: int, name: str, height: int, width: int, whole: tuple[int, int]) -> _ValidBox:
    # Plain numbers are faster than arrays for the few boxes of an image, and are rounded in the same way.
    ymin, xmin, ymax, xmax = box.corners
    corners = box.corners if box.normalized else (ymin / height, xmin / width, ymax / height, xmax / width)
    top, left, bottom, right = [min(max(corner, 0.0), 1.0) for corner in corners]
    clipped = -min(corners) > ROUNDING or max(corners) - 1 > ROUNDING
    # A stated area that is not positive and finite in float32 is ignored.
    area = box.area if box.area is not None and 0 < box.area < LARGEST_AREA else 0.0
    area = area or (bottom - top) * whole[0] * (right - left) * whole[1]
    return _ValidBox(box, label, name, (top, left, bottom, right), area, clipped)


def _make_objects(kept: list[_ValidBox], boxes: FloatArray) -> Objects:
    """Returns the objects of the valid boxes, with their corners in boxes [N, 4]."""
    return Objects(
        boxes=boxes,
        labels=np.array([found.label for found in kept], np.int64),
        names=tuple(found.name for found in kept),
        difficult=np.array([found.box.difficult for found in kept], bool),
        is_crowd=np.array([found.box.is_crowd for found in kept], bool),
        area=np.array([found.area for found in kept], np.float32),
    )


def _format_box(box: Box) -> str:
    ymin, xmin, ymax, xmax = box.corners
    unit = "of the image" if box.normalized else "pixels"
    return f"box ymin {ymin:g}, xmin {xmin:g}, ymax {ymax:g}, xmax {xmax:g} ({unit})"
