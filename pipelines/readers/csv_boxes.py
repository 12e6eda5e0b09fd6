"""Reads the fields of one line of a CSV file: the image, its size, and the box."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pipelines.annotations import ONLY_CLASS, Box, Problem
from ssd_dist.core.spreadsheet_text import restore_name

# What programs write into a field without a value.
EMPTY = ("", "nan", "null", "none", "na", "n/a")
# Classes that datasets give to an image without objects.
NO_OBJECT = (*EMPTY, "background", "no finding", "no object", "no_object", "empty", "negative")
SIDES_OF_BOX = 4
# ymin, xmin, ymax, xmax.
Corners: TypeAlias = tuple[float, float, float, float]
# How the corners follow from the numbers in the columns of a box: xmin, ymin, xmax, ymax; x, y, width, height; the
# center x, y, width, height; or the vertices of a polygon x, y, x, y, ...
FORMS: Mapping[str, Callable[[Sequence[float]], Corners]] = {
    "corners": lambda numbers: (numbers[1], numbers[0], numbers[3], numbers[2]),
    "size": lambda numbers: (numbers[1], numbers[0], numbers[1] + numbers[3], numbers[0] + numbers[2]),
    "center": lambda numbers: (
        numbers[1] - numbers[3] / 2,
        numbers[0] - numbers[2] / 2,
        numbers[1] + numbers[3] / 2,
        numbers[0] + numbers[2] / 2,
    ),
    "vertices": lambda numbers: (min(numbers[1::2]), min(numbers[::2]), max(numbers[1::2]), max(numbers[::2])),
}


@dataclass(frozen=True)
class Dialect:
    """How the lines of a file describe boxes.

    Attributes:
      tool: the tool or convention, for messages.
      delimiter: the character between the fields.
      columns: index of the column of each role: image, class, split, height, width, crowd, difficult.
      places: indices of the columns of the box, in the order of `form`.
      names: names of these columns, for messages.
      form: key of `FORMS`.
      count: number of fields per line.
      header_lines: number of lines before the first box.
      is_list: whether the only column of the box contains all its numbers.
      normalized: whether coordinates are fractions of the image.
      is_via: whether the file is read by the parser of VIA.
      is_protected: whether names of classes that look like formulas have an apostrophe before them.
      notes: facts to announce.
    """

    tool: str
    delimiter: str = ","
    columns: Mapping[str, int] = field(default_factory=dict)
    places: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    form: str = "corners"
    count: int = 0
    header_lines: int = 1
    is_list: bool = False
    normalized: bool = False
    is_via: bool = False
    is_protected: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_open_images(self) -> bool:
        """Whether the classes are identifiers of Open Images."""
        return self.tool == "Open Images annotations"

    def read(self, fields: Sequence[str], role: str) -> str:
        """Returns the field of a role; empty if the file has no such column."""
        place = self.columns.get(role)
        return fields[place] if place is not None else ""

    def fit(self, fields: list[str]) -> list[str]:
        """Returns the fields of a line, with those that AutoML may omit at its end.

        Raises:
          ValueError: if the line has another number of fields than the header.
        """
        if len(fields) < self.count and self.form == "vertices":
            return [*fields, *[""] * (self.count - len(fields))]
        if len(fields) < self.count or any(fields[self.count :]):
            hint = "; put fields that contain the separator in quotes" if len(fields) > self.count else ""
            raise ValueError(f"the line has {len(fields)} fields, expected {self.count}{hint}")
        return fields


def read_numbers(fields: Sequence[str], dialect: Dialect) -> list[float]:
    """Returns the numbers of the box of a line; empty if the line contains no box.

    Raises:
      ValueError: if a number is missing or is not a number.
    """
    texts = [fields[place] for place in dialect.places]
    if dialect.is_list:
        texts = re.findall(r"[^\s,;\[\](){}]+", texts[0])
    if all(text.lower() in EMPTY for text in texts):
        return []
    if dialect.form == "vertices":
        texts = [text for text in texts if text]
        if len(texts) % 2 or len(texts) < 4:
            raise ValueError(f"expected two or four corners, got {' '.join(texts)!r:.100}")
    elif len(texts) != SIDES_OF_BOX:
        raise ValueError(f"{dialect.names[0]}: expected four numbers, got {fields[dialect.places[0]]!r:.100}")
    names = dialect.names * SIDES_OF_BOX if dialect.is_list else dialect.names
    return [_read_number(text, name, dialect.delimiter) for text, name in zip(texts, names, strict=False)]


def _read_number(text: str, name: str, delimiter: str) -> float:
    # Excel writes decimal commas in the countries in which it separates fields by semicolons.
    plain = text if delimiter == "," else text.replace(",", ".")
    try:
        return float(plain)
    except ValueError:
        raise ValueError(f"{name}: expected a number, got {text!r:.100}") from None


def parse_box(fields: Sequence[str], dialect: Dialect, where: str) -> Box | None:
    """Returns the box of a line, with a problem if it cannot be read; None if the line has no object."""
    has_class = "class" in dialect.columns
    name = dialect.read(fields, "class") if has_class else ONLY_CLASS
    name = restore_name(name) if dialect.is_protected else name
    try:
        numbers = read_numbers(fields, dialect)
        if not numbers:
            if not has_class or name.lower() in NO_OBJECT:
                return None
            raise ValueError(f"the line has the class {name!r:.100} but no box")
        if not name:
            raise ValueError("the line has no class")
    except ValueError as error:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", str(error)))
    return Box(
        name,
        FORMS[dialect.form](numbers),
        where,
        normalized=dialect.normalized,
        difficult=_is_true(dialect.read(fields, "difficult")),
        is_crowd=_is_true(dialect.read(fields, "crowd")),
        is_reduced=dialect.form == "vertices" and not _is_upright(numbers),
    )


def _is_true(text: str) -> bool:
    return text.lower() in ("1", "1.0", "true", "yes")


def _is_upright(numbers: Sequence[float]) -> bool:
    """Returns whether x, y, x, y, ... are two opposite corners, or the four corners of an upright box."""
    return len(numbers) == 4 or all(len({*numbers[axis::2]}) == 2 for axis in (0, 1))


def parse_size(dialect: Dialect, fields: Sequence[str]) -> tuple[int, int] | None:
    """Returns (height, width) of the image in pixels; None if one is missing or not positive."""
    try:
        size = int(float(dialect.read(fields, "height"))), int(float(dialect.read(fields, "width")))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None
