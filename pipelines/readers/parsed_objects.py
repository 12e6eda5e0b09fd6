"""Turns the objects of one annotated image into boxes.

    entry -> parse(entry) -> ParsedObject -> Box, Box, ...

A parser of one format provides `parse`, which raises `ValueError` for an object that cannot be read and `ObjectError`
if another reason for the rejection is known. Every entry gives at least one box, so no object is lost silently.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from pipelines.annotations import Box, Problem

# ymin, xmin, ymax, xmax.
Corners: TypeAlias = tuple[float, float, float, float]


class ObjectError(ValueError):
    """Why an object is rejected.

    Args:
      reason: one word, by which rejections are counted.
      detail: what a user needs to know to fix it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ParsedObject(NamedTuple):
    """One object of an annotation.

    Attributes:
      names: its classes; an object with several classes becomes one box per class.
      corners: its box, in pixels, or in fractions of the image if `normalized`.
      reduced: whether the box is the upright bounds of another shape.
      normalized: the unit of `corners`.
      difficult: Pascal VOC's flag.
    """

    names: tuple[str, ...]
    corners: Corners
    reduced: bool = False
    normalized: bool = False
    difficult: bool = False


def parse_objects(
    entries: Iterable[tuple[str, Any]], parse: Callable[[Any], ParsedObject]
) -> tuple[tuple[Box, ...], int]:
    """Parses the objects of one image.

    Args:
      entries: position of each object in the annotation file, for messages, and its entry.
      parse: parses one entry.

    Returns:
      the boxes, in order, and the number of them that are the bounds of another shape.
    """
    boxes: list[Box] = []
    reduced = 0
    for where, entry in entries:
        try:
            parsed = parse(entry)
            if not parsed.names:
                raise ValueError("the object has no class")
        except ValueError as error:
            boxes.append(make_broken_box(where, error))
            continue
        boxes += (
            Box(name, parsed.corners, where, normalized=parsed.normalized, difficult=parsed.difficult)
            for name in parsed.names
        )
        reduced += len(parsed.names) * parsed.reduced
    return tuple(boxes), reduced


def make_broken_box(where: str, error: ValueError) -> Box:
    """Returns a box with the problem that the error describes."""
    reason = error.reason if isinstance(error, ObjectError) else "broken_box"
    return Box("", (0, 0, 0, 0), where, problem=Problem(reason, str(error)))
