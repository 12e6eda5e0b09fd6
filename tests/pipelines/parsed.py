"""Describes parsed images in short, for comparison in tests."""

from pipelines.readers.parsed_image import ParsedImage


def describe(image: ParsedImage) -> list[tuple]:
    """Returns (class, corners) of each box, or (reason, detail) of each rejected one."""
    return [(box.category, box.corners) if box.problem is None else tuple(box.problem) for box in image.boxes]


def reasons(image: ParsedImage) -> list[str]:
    """Returns the reason of each rejected box."""
    return [box.problem.reason for box in image.boxes if box.problem is not None]
