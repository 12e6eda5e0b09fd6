"""Which boxes of an image can be learnt from, and what is wrong with the others.

Every box comes out as an object or as a `Rejection` with a reason; none is dropped on the way.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipelines.annotations import Box, Image, Problem
from pipelines.classes import ClassTable
from ssd_dist.core.records import Objects

# Normalised coordinates written with six digits overshoot the border by this much; that is no clipping.
ROUNDING = 1e-5


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


def check_size(image: Image, height: int, width: int) -> Problem | None:
    """Refuses an image of another size than its annotation claims: the boxes may belong to another picture."""
    if image.size in (None, (height, width)):
        return None
    claimed, found = ("{} x {}".format(*size) for size in (image.size, (height, width)))
    return Problem("size_mismatch", f"the annotation says {claimed} pixels (height x width), the image has {found}")


def check_boxes(image: Image, height: int, width: int, classes: ClassTable) -> CheckedBoxes:
    """Checks, clips and normalises the boxes of an image of `height` x `width` pixels as displayed."""
    kept: list[tuple[Box, tuple[int, str], list[float]]] = []
    rejected = []
    clipped = 0
    for box in image.boxes:
        found = box.problem or classes.find(box.category)
        corners = found if isinstance(found, Problem) else _normalize(box, height, width)
        if isinstance(corners, Problem):
            rejected.append(Rejection(image.source, image.filename, corners.reason, corners.detail, box.where))
            continue
        assert not isinstance(found, Problem)
        inside = [min(max(side, 0.0), 1.0) for side in corners]
        clipped += any(abs(a - b) > ROUNDING for a, b in zip(corners, inside, strict=True))
        kept.append((box, found, inside))
    return CheckedBoxes(_objects(kept, height, width), clipped, tuple(rejected))


def reject_image(image: Image, problem: Problem, is_image: bool = True) -> tuple[Rejection, ...]:
    """The rejections of a whole image: its own, and one for each of its boxes, which go with it."""
    own = (Rejection(image.source, image.filename or image.image_id, problem.reason, problem.detail),)
    reason = "image_rejected" if is_image else problem.reason
    boxes = (
        Rejection(image.source, image.filename or image.image_id, reason, problem.detail, box.where)
        for box in image.boxes
    )
    return (*(own if is_image else ()), *boxes)


def _normalize(box: Box, height: int, width: int) -> list[float] | Problem:
    """Corners as fractions of the image, not yet clipped, or why the box cannot be used."""
    if not all(math.isfinite(side) for side in box.corners):
        return Problem("not_finite", f"{_show(box)} holds a number that is not finite")
    ymin, xmin, ymax, xmax = box.corners
    if ymin > ymax or xmin > xmax:
        return Problem("reversed", f"{_show(box)}: a maximum lies below its minimum")
    scales = (1, 1, 1, 1) if box.normalized else (height, width, height, width)
    corners = [side / scale for side, scale in zip(box.corners, scales, strict=True)]
    if ymin == ymax or xmin == xmax:
        return Problem("zero_area", f"{_show(box)} has no area")
    low_y, low_x, high_y, high_x = corners
    if low_y >= 1 or low_x >= 1 or high_y <= 0 or high_x <= 0:
        return Problem("outside", f"{_show(box)} lies outside the image of {height} x {width} pixels")
    # float32 is what the records hold; a box must keep its area there.
    sides = np.clip(np.array(corners, np.float64), 0, 1).astype(np.float32)
    if not (sides[2] > sides[0] and sides[3] > sides[1]):
        return Problem("zero_area", f"{_show(box)} has no area within the image")
    return corners


def _objects(kept: list[tuple[Box, tuple[int, str], list[float]]], height: int, width: int) -> Objects:
    boxes = np.array([corners for _, _, corners in kept], np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    area = sides[:, 0] * height * sides[:, 1] * width
    for index, (box, _, _) in enumerate(kept):
        if box.area is not None:
            area[index] = box.area
    return Objects(
        boxes=boxes.astype(np.float32),
        labels=np.array([found[0] for _, found, _ in kept], np.int64),
        names=tuple(found[1] for _, found, _ in kept),
        difficult=np.array([box.difficult for box, _, _ in kept], bool),
        is_crowd=np.array([box.is_crowd for box, _, _ in kept], bool),
        area=area.astype(np.float32),
    )


def _show(box: Box) -> str:
    ymin, xmin, ymax, xmax = box.corners
    unit = "of the image" if box.normalized else "pixels"
    return f"box ymin {ymin:g}, xmin {xmin:g}, ymax {ymax:g}, xmax {xmax:g} ({unit})"
