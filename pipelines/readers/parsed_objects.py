"""Turns the objects of one annotated image into boxes.

    entry -> parse(entry) -> ParsedObject -> Box, Box, ...

A parser of one format provides `parse`, which raises `ValueError` for an object that cannot be read and `ObjectError`
if another reason for the rejection is known. Every entry gives at least one box, so no object is lost silently.
"""

from collections.abc import Callable, Iterable, Iterator
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
      is_reduced: whether the box is the upright box around another shape.
      normalized: the unit of `corners`.
      difficult: Pascal VOC's flag.
    """

    names: tuple[str, ...]
    corners: Corners
    is_reduced: bool = False
    normalized: bool = False
    difficult: bool = False


def parse_objects(entries: Iterable[tuple[str, Any]], parse: Callable[[Any], ParsedObject]) -> tuple[Box, ...]:
    """Returns the boxes of the objects of one image, in order.

    Args:
      entries: position of each object in the annotation file, for messages, and its entry.
      parse: parses one entry.
    """
    return tuple(box for where, entry in entries for box in _make_boxes(where, entry, parse))


def _make_boxes(where: str, entry: Any, parse: Callable[[Any], ParsedObject]) -> Iterator[Box]:
    try:
        parsed = parse(entry)
        if not parsed.names:
            raise ValueError("the object has no class")
    except ValueError as error:
        reason = error.reason if isinstance(error, ObjectError) else "broken_box"
        yield Box("", (0, 0, 0, 0), where, problem=Problem(reason, str(error)))
        return
    for name in parsed.names:
        yield Box(
            name,
            parsed.corners,
            where,
            normalized=parsed.normalized,
            difficult=parsed.difficult,
            is_reduced=parsed.is_reduced,
        )
