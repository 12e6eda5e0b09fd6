"""Which boxes of an image can be learnt from, and what is wrong with the others.

Every box comes out as an object or as a `Rejection` with a reason; none is dropped on the way.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.annotations import Box, Image, Problem
from pipelines.classes import ClassTable
from ssd_dist.core.boxes import FloatArray
from ssd_dist.core.records import Objects

# Normalised coordinates written with six digits overshoot the border by this much; that is no clipping.
ROUNDING = 1e-5
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
    """The usable objects of an image, how many of them were clipped, and the boxes refused."""

    objects: Objects
    clipped: int
    rejected: tuple[Rejection, ...]


class _Kept(NamedTuple):
    """A box without fault, with its class, its corners clipped to the image and normalised, and its area."""

    box: Box
    label: int
    name: str
    inside: tuple[float, float, float, float]
    area: float
    clipped: bool


def check_size(image: Image, height: int, width: int) -> Problem | None:
    """Refuses an image of another size than its annotation claims: the boxes may belong to another picture."""
    if image.size in (None, (height, width)):
        return None
    claimed, found = ("{} x {}".format(*size) for size in (image.size, (height, width)))
    return Problem("size_mismatch", f"the annotation says {claimed} pixels (height x width), the image has {found}")


def check_boxes(image: Image, height: int, width: int, classes: ClassTable) -> CheckedBoxes:
    """Checks, clips and normalises the boxes of an image of `height` x `width` pixels as displayed."""
    kept: list[_Kept] = []
    rejected = []
    for box in image.boxes:
        found = box.problem or classes.find(box.category)
        problem = found if isinstance(found, Problem) else _find_fault(box, height, width)
        if problem is None and not isinstance(found, Problem):
            kept.append(_clip(box, *found, height, width, image.original or (height, width)))
        elif problem is not None:
            rejected.append(_reject_box(image, box, problem))
    boxes = np.array([found.inside for found in kept], np.float32).reshape(-1, 4)
    # float32 is what the records hold; a box must keep its area there.
    solid = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    if not solid.all():
        for index in np.flatnonzero(~solid):
            box = kept[index].box
            rejected.append(_reject_box(image, box, Problem("zero_area", f"{_show(box)} has no area within the image")))
        boxes = boxes[solid]
        kept = [found for found, keeps in zip(kept, solid, strict=True) if keeps]
    return CheckedBoxes(_objects(kept, boxes), sum(found.clipped for found in kept), tuple(rejected))


def reject_image(image: Image, problem: Problem, is_image: bool = True) -> tuple[Rejection, ...]:
    """The rejections of a whole image: its own, and one for each of its boxes, which go with it."""
    own = (Rejection(image.source, image.filename or image.image_id, problem.reason, problem.detail),)
    reason = "image_rejected" if is_image else problem.reason
    boxes = (
        Rejection(image.source, image.filename or image.image_id, reason, problem.detail, box.where)
        for box in image.boxes
    )
    return (*(own if is_image else ()), *boxes)


def _find_fault(box: Box, height: int, width: int) -> Problem | None:
    """What is wrong with the corners of a box, if anything."""
    if not all(map(math.isfinite, box.corners)):
        return Problem("not_finite", f"{_show(box)} holds a number that is not finite")
    ymin, xmin, ymax, xmax = box.corners
    if ymin > ymax or xmin > xmax:
        return Problem("reversed", f"{_show(box)}: a maximum lies below its minimum")
    if ymin == ymax or xmin == xmax:
        return Problem("zero_area", f"{_show(box)} has no area")
    bottom, right = (1, 1) if box.normalized else (height, width)
    if ymin >= bottom or xmin >= right or ymax <= 0 or xmax <= 0:
        return Problem("outside", f"{_show(box)} lies outside the image of {height} x {width} pixels")
    return None


def _clip(box: Box, label: int, name: str, height: int, width: int, whole: tuple[int, int]) -> _Kept:
    # In plain numbers: for the few boxes of an image quicker than arrays, and rounded alike.
    ymin, xmin, ymax, xmax = box.corners
    corners = box.corners if box.normalized else (ymin / height, xmin / width, ymax / height, xmax / width)
    top, left, bottom, right = [min(max(corner, 0.0), 1.0) for corner in corners]
    clipped = -min(corners) > ROUNDING or max(corners) - 1 > ROUNDING
    # A claimed area that is no number, or none that a record can hold, is as good as none.
    area = box.area if box.area is not None and 0 < box.area < LARGEST_AREA else 0.0
    area = area or (bottom - top) * whole[0] * (right - left) * whole[1]
    return _Kept(box, label, name, (top, left, bottom, right), area, clipped)


def _reject_box(image: Image, box: Box, problem: Problem) -> Rejection:
    return Rejection(image.source, image.filename, problem.reason, problem.detail, box.where)


def _objects(kept: list[_Kept], boxes: FloatArray) -> Objects:
    """The objects of boxes [N, 4]."""
    return Objects(
        boxes=boxes,
        labels=np.array([found.label for found in kept], np.int64),
        names=tuple(found.name for found in kept),
        difficult=np.array([found.box.difficult for found in kept], bool),
        is_crowd=np.array([found.box.is_crowd for found in kept], bool),
        area=np.array([found.area for found in kept], np.float32),
    )


def _show(box: Box) -> str:
    ymin, xmin, ymax, xmax = box.corners
    unit = "of the image" if box.normalized else "pixels"
    return f"box ymin {ymin:g}, xmin {xmin:g}, ymax {ymax:g}, xmax {xmax:g} ({unit})"
