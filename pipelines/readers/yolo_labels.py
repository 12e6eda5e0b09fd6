"""Parses the label files of YOLO: one line per object, with coordinates as fractions of the image.

    class x_center y_center width height              a box
    class x_center y_center width height confidence   a prediction or a track; the sixth number is ignored
    class x1 y1 x2 y2 x3 y3 ...                       a polygon, or the four corners of an oriented box (OBB)
    class x_center y_center width height x y [v] ...  a box with keypoints, if `kpt_shape` of data.yaml defines them

A polygon is reduced to the upright box around it. Numbers are separated by spaces, tabs, commas or semicolons.
"""

import math
import re
from collections.abc import Iterator

from pipelines.annotations import Box, Problem

BOX_COLUMNS = 5
MIN_POLYGON_COLUMNS = 7
# A larger class number is an error in the file.
MAX_CLASS = 10**6
# Coordinates of labels that are slightly outside of the image are still recognized as fractions.
LARGEST_FRACTION = 1.5


def parse_label(text: str, keypoint_numbers: int = 0) -> Iterator[Box]:
    """Yields the boxes of a label file, one per nonempty line; an invalid line gives a box with a problem.

    Args:
      text: the content of the file.
      keypoint_numbers: numbers per object that describe keypoints; 0 if the labels have none.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield _parse_line(_split_line(line), f"line {number}", keypoint_numbers)


def are_labels(text: str) -> bool | None:
    """Returns whether each line has a class number and at least four fractions; None for a file without lines."""
    lines = [_split_line(line) for line in text.splitlines() if line.strip()]
    return all(map(_is_label, lines)) if lines else None


def count_columns(text: str) -> set[int]:
    """Returns the numbers of columns that occur in a label file."""
    return {len(_split_line(line)) for line in text.splitlines() if line.strip()}


def _is_label(fields: list[str]) -> bool:
    try:
        category, *numbers = map(float, fields)
    except ValueError:
        return False
    is_class = category.is_integer() and 0 <= category <= MAX_CLASS
    return is_class and len(numbers) >= 4 and all(abs(number) <= LARGEST_FRACTION for number in numbers[:4])


def _split_line(line: str) -> list[str]:
    fields = [field.strip(",;") for field in line.split()]
    if len(fields) >= BOX_COLUMNS:
        # A comma within a field is the decimal comma of a spreadsheet.
        return [field.replace(",", ".") for field in fields]
    return [field for field in re.split(r"[\s,;]+", line.strip()) if field]


def _parse_line(fields: list[str], where: str, keypoint_numbers: int) -> Box:
    try:
        category, *numbers = [_parse_number(field) for field in fields]
        label = _parse_class(category, fields[0])
        corners, is_reduced = _find_corners(numbers, keypoint_numbers)
    except ValueError as error:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", str(error)))
    return Box(str(label), corners, where, normalized=True, is_reduced=is_reduced)


def _parse_number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        raise ValueError(f"{field!r:.60} is not a number; expected: class x_center y_center width height") from None


def _parse_class(category: float, field: str) -> int:
    if not category.is_integer() or abs(category) > MAX_CLASS:
        raise ValueError(
            f"the class {field!r:.60} is not a whole number; expected: class x_center y_center width height"
        )
    return int(category)


def _find_corners(numbers: list[float], keypoint_numbers: int) -> tuple[tuple[float, float, float, float], bool]:
    """Returns ymin, xmin, ymax, xmax of the numbers after the class, and whether they are a polygon."""
    columns = 1 + len(numbers)
    if columns in (BOX_COLUMNS, BOX_COLUMNS + 1, BOX_COLUMNS + keypoint_numbers):
        x, y, width, height = numbers[:4]
        return (y - height / 2, x - width / 2, y + height / 2, x + width / 2), False
    if columns >= MIN_POLYGON_COLUMNS and columns % 2:
        if any(LARGEST_FRACTION < abs(number) < math.inf for number in numbers):
            raise ValueError(
                f"{columns} numbers, one of them above {LARGEST_FRACTION}, are neither a polygon nor a box; labels "
                "with keypoints need kpt_shape in the YAML file, and a track has 6 numbers"
            )
        # Validation rejects numbers that are not finite, which minimum and maximum might ignore.
        xs, ys = (numbers[0::2], numbers[1::2]) if all(map(math.isfinite, numbers)) else ([math.nan], [math.nan])
        return (min(ys), min(xs), max(ys), max(xs)), True
    if columns < BOX_COLUMNS:
        raise ValueError(f"{columns} numbers; expected 5: class x_center y_center width height")
    raise ValueError(
        f"{columns} numbers are neither a box (class x_center y_center width height) nor a polygon (class and pairs of "
        "x and y); labels with keypoints need kpt_shape in the YAML file"
    )
