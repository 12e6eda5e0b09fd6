"""Recognizes how a CSV file describes boxes: by its header (csv_columns.py), or by its first lines without one.

Files without a header:

    path,x1,y1,x2,y2,class                      RetinaNet; empty corners and class: an image without objects
    label,x,y,w,h,image,width,height            makesense.ai
    TRAIN,path,label,x1,y1,,,x2,y2,,            AutoML, Vertex AI, TFLite Model Maker; fractions of the image

VIA's CSV has JSON in its fields and a parser of its own (via_csv.py). Coordinates are in pixels, except for Open
Images, AutoML, and files in which every box of the first lines lies between 0 and 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipelines.annotations import ONLY_CLASS
from pipelines.readers.csv_boxes import FORMS, Corners, Dialect, parse_size, read_numbers
from pipelines.readers.csv_columns import make_automl, match_automl_header, match_header
from pipelines.readers.csv_text import Row
from pipelines.readers.folder import is_image
from pipelines.readers.split_names import is_split
from pipelines.readers.via_csv import COLUMNS as VIA_COLUMNS
from pipelines.readers.yolo_labels import LARGEST_FRACTION

# Separators in the order in which they are tried.
DELIMITERS = (",", ";", "\t", "|")
# Lines below the header that are read to recognize the dialect.
SAMPLE_ROWS = 256
# Share of these lines that must have the form of a dialect without a header.
MIN_SHARE = 0.8
# Rows of this split are in no other; AutoML divides them itself.
UNASSIGNED = "UNASSIGNED"
RETINANET = Dialect(
    tool="RetinaNet CSV",
    columns={"image": 0, "class": 5},
    places=(1, 2, 3, 4),
    names=("x1", "y1", "x2", "y2"),
    count=6,
    header_lines=0,
    notes=("it has no header; the columns are read as path,x1,y1,x2,y2,class",),
)
MAKESENSE = Dialect(
    tool="makesense.ai CSV export",
    columns={"class": 0, "image": 5, "width": 6, "height": 7},
    places=(1, 2, 3, 4),
    names=("x", "y", "width", "height"),
    form="size",
    count=8,
    header_lines=0,
    notes=("it has no header; the columns are read as label,x,y,width,height,image,image width,image height",),
)


def recognize(rows: Sequence[Row], delimiter: str) -> Dialect | None:
    """Returns the dialect of a file from its first lines, or None if it does not describe boxes."""
    if not rows or not rows[0].fields:
        return None
    header = rows[0].fields
    if header[0].lower().startswith("sep="):
        # The first line is the separator for Excel.
        below = recognize(rows[1:], delimiter)
        return below and replace(below, header_lines=below.header_lines + 1)
    if delimiter == "," and ",".join(name.lower() for name in header).removeprefix("#") == VIA_COLUMNS:
        return Dialect("VIA CSV export", is_via=True)
    sample = [row.fields for row in rows if row.fields]
    found = match_header(header) or match_automl_header(header)
    if found is None:
        found = _match_lines(sample)
    if found is None:
        return None
    found = replace(found, delimiter=delimiter)
    return _examine(found, sample[found.header_lines :])


def _match_lines(sample: Sequence[list[str]]) -> Dialect | None:
    """Recognizes a file without a header by the fields of its lines."""
    dialects: tuple[tuple[Callable[[list[str]], bool], Dialect], ...] = (
        (_is_automl, make_automl(has_split=True)),
        (lambda fields: _is_automl(["", *fields]), make_automl(has_split=False)),
        (_is_retinanet, RETINANET),
        (_is_makesense, MAKESENSE),
    )
    for matches, dialect in dialects:
        if sum(map(matches, sample)) >= MIN_SHARE * len(sample):
            return dialect
    return None


def _is_automl(fields: list[str]) -> bool:
    uses = ("", "train", "validate", "validation", "test", UNASSIGNED.lower())
    if len(fields) < 2 or fields[0].lower() not in uses or not is_image(fields[1]):
        return False
    corners = [text for text in fields[3:] if text]
    # An image may be listed without a label and without a box.
    return len(fields) == 2 if len(fields) < 9 else len(fields) <= 11 and all(map(_is_number, corners))


def _is_retinanet(fields: list[str]) -> bool:
    has_numbers = len(fields) == 6 and (all(map(_is_number, fields[1:5])) or not any(fields[1:]))
    return has_numbers and is_image(fields[0]) and not _is_number(fields[0])


def _is_makesense(fields: list[str]) -> bool:
    return len(fields) == 8 and all(map(_is_number, [*fields[1:5], *fields[6:]])) and is_image(fields[5])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _examine(dialect: Dialect, sample: Sequence[list[str]]) -> Dialect:
    """Returns the dialect with what only the values of the first lines show."""
    rows = [fields for fields in sample if len(fields) >= dialect.count]
    notes = [*dialect.notes]
    values = {dialect.read(fields, "split").lower() for fields in rows} - {""}
    if not any(map(is_split, values)) or not all(is_split(name) or name == UNASSIGNED.lower() for name in values):
        dialect = _without(dialect, "split")
    boxes = [numbers for fields in rows if (numbers := _try_numbers(fields, dialect)) is not None]
    corners = [FORMS[dialect.form](numbers) for numbers in boxes]
    sizes = [parse_size(dialect, fields) for fields in rows if _try_numbers(fields, dialect) is not None]
    if boxes and dialect.form == "corners" and all(map(_is_box_size, sizes, corners)):
        # The columns width and height are those of the box.
        dialect = _without(_without(dialect, "width"), "height")
    if dialect.is_list:
        if _are_corners(boxes, sizes):
            dialect = replace(dialect, form="corners")
        order = "xmin, ymin, xmax, ymax" if dialect.form == "corners" else "x, y, width, height"
        notes.append(f"the column {dialect.names[0]} is read as {order}")
    numbers = [number for box in boxes for number in box]
    # Boxes of which all numbers are 0 or 1 do not show their unit and are rejected later.
    has_fractions = any(0 < number < 1 for number in numbers)
    if has_fractions and not dialect.normalized and max(map(abs, numbers)) <= LARGEST_FRACTION:
        dialect = replace(dialect, normalized=True)
        notes.append("all coordinates are about 0 to 1, so they are read as fractions of the image")
    if "class" not in dialect.columns:
        notes.append(f"it has no class column; all boxes get the class {ONLY_CLASS}")
    return replace(dialect, notes=tuple(notes))


def _without(dialect: Dialect, role: str) -> Dialect:
    return replace(dialect, columns={name: place for name, place in dialect.columns.items() if name != role})


def _is_box_size(size: tuple[int, int] | None, corners: Corners) -> bool:
    if size is None:
        return False
    return abs(size[0] - corners[2] + corners[0]) <= 1 and abs(size[1] - corners[3] + corners[1]) <= 1


def _are_corners(boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int] | None]) -> bool:
    """Returns whether lists of four numbers are corners: a box would otherwise extend beyond its image."""
    can_be_corners = all(right > left and bottom > top for left, top, right, bottom in boxes)
    return can_be_corners and any(
        size is not None and (box[0] + box[2] > size[1] + 1 or box[1] + box[3] > size[0] + 1)
        for box, size in zip(boxes, sizes, strict=True)
    )


def _try_numbers(fields: Sequence[str], dialect: Dialect) -> list[float] | None:
    try:
        numbers = read_numbers(fields, dialect)
    except ValueError:
        return None
    return numbers or None
