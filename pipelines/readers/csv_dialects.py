"""Recognises how a CSV file describes boxes: by its header, or by the fields of its first lines if it has no header.

Names of columns are compared in lower case without spaces and punctuation: `X_Min`, `x min` and `xmin` are the same.
A role is filled by the first of its names that occurs:

    image       filename, image_name, image_path, path, file, image, img, frame, image_id, id, ...   (`IMAGE_NAMES`)
    class       class, class_name, label, category, tag, object, class_id, ...                       (`CLASS_NAMES`)
    corners     xmin ymin xmax ymax | x1 y1 x2 y2 | x0 y0 x1 y1 | left top right bottom | ...        (`CORNERS`)
    or size     x y w h | x y width height | left top width height | xmin ymin width height | ...    (`SIZES`)
    or centre   x_center y_center width height | cx cy w h | ...                                     (`CENTERS`)
    or list     bbox, one field with "[x, y, width, height]" (Kaggle)                                (`LISTS`)
    image size  width and height if they are not those of the box, image_width, img_width, ...
    split       split, set, subset, usage, partition, ml_use: if its values are names of splits
    flags       is_group_of, is_crowd; difficult

`name` is the image if there is a class column, and the class otherwise. The columns of a box may begin with bbox, box
or roi: `bbox_x`, `Roi.X1`. Without a class column, all boxes get the class `object`.

Files without a header:

    path,x1,y1,x2,y2,class                      RetinaNet; empty corners and class: an image without objects
    label,x,y,w,h,image,width,height            makesense.ai
    TRAIN,path,label,x1,y1,,,x2,y2,,            AutoML, Vertex AI, TFLite Model Maker; fractions of the image

VIA's CSV has JSON in its fields and a parser of its own (via_csv.py). Coordinates are in pixels, except for Open
Images, AutoML, and files in which every box of the first lines lies between 0 and 1.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipelines.annotations import Box, Problem
from pipelines.readers.csv_text import Row
from pipelines.readers.folder import is_image
from pipelines.readers.split_names import is_split
from pipelines.readers.via_csv import COLUMNS as VIA_COLUMNS

# Separators in the order in which they are tried.
DELIMITERS = (",", ";", "\t", "|")
# Lines below the header that are read to recognise the dialect.
SAMPLE_ROWS = 256
# Share of these lines that must have the form of a dialect without a header.
MIN_SHARE = 0.8

IMAGE_NAMES = (
    *("filename", "imagefilename", "imagename", "imagefile", "imagepath", "imgname", "imgpath", "imgfile", "filepath"),
    *("path", "file", "image", "img", "frame", "imageid", "imgid", "imageuri", "gcsuri", "uri", "patientid", "id"),
)
CLASS_NAMES = (
    *("class", "classname", "label", "labelname", "category", "categoryname", "classlabel", "objectclass", "object"),
    *("objectname", "species", "tag", "annotationtag", "classtext", "classid", "labelid", "categoryid"),
)
EITHER = "name"
CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
    ("minx", "miny", "maxx", "maxy"),
    ("xtl", "ytl", "xbr", "ybr"),
    ("xstart", "ystart", "xend", "yend"),
    ("startx", "starty", "endx", "endy"),
    ("topleftx", "toplefty", "bottomrightx", "bottomrighty"),
    ("upperleftcornerx", "upperleftcornery", "lowerrightcornerx", "lowerrightcornery"),
)
SIDES = (("w", "h"), ("width", "height"))
SIZES = tuple(
    (*corner, *sides)
    for corner in (("x", "y"), ("left", "top"), ("xmin", "ymin"), ("x1", "y1"), ("topleftx", "toplefty"))
    for sides in SIDES
)
CENTERS = tuple(
    (*center, *sides)
    for center in (("xcenter", "ycenter"), ("centerx", "centery"), ("cx", "cy"), ("xc", "yc"))
    for sides in SIDES
)
LISTS = ("bbox", "box", "boundingbox")
PREFIXES = ("", "bbox", "box", "boundingbox", "roi")
IMAGE_SIZES = tuple((f"{prefix}width", f"{prefix}height") for prefix in ("image", "img", "im", "original", ""))
SPLIT_NAMES = ("split", "set", "subset", "usage", "partition", "mluse", "datasetsplit")
# Rows of this split are in no other; AutoML divides them itself.
UNASSIGNED = "UNASSIGNED"
OPEN_IMAGES = {"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"}
# Columns that accompany those of Open Images in its files of boxes.
OPEN_IMAGES_MORE = {"source", "confidence", "isgroupof"}
# What programs write into a field without a value.
EMPTY = ("", "nan", "null", "none", "na", "n/a")
# Classes that datasets give to an image without objects.
NO_OBJECT = (*EMPTY, "background", "no finding", "no object", "no_object", "empty", "negative")
ONLY_CLASS = "object"
SIDES_OF_BOX = 4

# Returns ymin, xmin, ymax, xmax of the numbers in the columns of a box.
Corners = tuple[float, float, float, float]
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


def recognize(rows: Sequence[Row], delimiter: str) -> Dialect | None:
    """Returns the dialect of a file from its first lines, or None if it does not describe boxes."""
    if not rows or not rows[0].fields:
        return None
    header = rows[0].fields
    if delimiter == "," and ",".join(name.lower() for name in header).removeprefix("#") == VIA_COLUMNS:
        return Dialect("VIA CSV export", is_via=True)
    sample = [row.fields for row in rows if row.fields]
    found = _match_header(header) or _match_automl_header(header)
    if found is None:
        found = _match_lines(sample)
    if found is None:
        return None
    found = replace(found, delimiter=delimiter)
    return _examine(found, sample[found.header_lines :])


def simplify(name: str) -> str:
    """Returns the name of a column in lower case, without spaces and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _match_header(header: Sequence[str]) -> Dialect | None:
    names = [simplify(name) for name in header]
    found = _find_box(names)
    image, category = _find_image_and_class(names)
    if found is None or image is None or "maskpath" in names:
        return None
    form, places = found
    columns = {"image": image}
    if category is not None:
        columns["class"] = category
    width, height = next(
        ([names.index(name) for name in size] for size in IMAGE_SIZES if all(name in names for name in size)),
        (-1, -1),
    )
    if width >= 0 and width not in places:
        columns |= {"width": width, "height": height}
    for role, candidates in (
        ("split", SPLIT_NAMES),
        ("crowd", ("isgroupof", "iscrowd")),
        ("difficult", ("difficult", "isdifficult")),
    ):
        place = _first(names, candidates)
        if place is not None:
            columns[role] = place
    is_open_images = {*names} >= OPEN_IMAGES and bool({*names} & OPEN_IMAGES_MORE)
    return Dialect(
        tool="Open Images annotations" if is_open_images else _name_tool(names),
        columns=columns,
        places=places,
        names=tuple(header[place] for place in places),
        form="size" if form == "list" else form,
        # Spreadsheets add empty columns at the end.
        count=max(place for place, name in enumerate(header) if name) + 1,
        is_list=form == "list",
        normalized=is_open_images,
    )


def _name_tool(names: list[str]) -> str:
    if names == ["image", "xmin", "ymin", "xmax", "ymax", "label"]:
        return "VoTT CSV export"
    if names[:6] == ["labelname", "bboxx", "bboxy", "bboxwidth", "bboxheight", "imagename"]:
        return "makesense.ai CSV export"
    return "CSV annotations"


def _find_box(names: list[str]) -> tuple[str, tuple[int, ...]] | None:
    """Returns the form of the box and the indices of its columns, or None."""
    for form, sets in (("corners", CORNERS), ("size", SIZES), ("center", CENTERS)):
        for prefix in PREFIXES:
            for wanted in sets:
                # A column that occurs twice does not identify a corner, as in AutoML's header.
                if all(names.count(prefix + name) == 1 for name in wanted):
                    return form, tuple(names.index(prefix + name) for name in wanted)
    place = _first(names, LISTS)
    return None if place is None else ("list", (place,))


def _find_image_and_class(names: list[str]) -> tuple[int | None, int | None]:
    image, category = _first(names, IMAGE_NAMES), _first(names, CLASS_NAMES)
    either = names.index(EITHER) if EITHER in names else None
    # `id` numbers the boxes if another column contains the name of the image.
    if either is not None and category is not None and (image is None or names[image] == "id"):
        image = either
    elif category is None:
        category = either
    return image, category


def _first(names: list[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _match_automl_header(header: Sequence[str]) -> Dialect | None:
    """Recognises AutoML's lines below a header such as set,path,label,x_min,y_min,x_max,y_min,x_max,y_max,..."""
    names = [simplify(name) for name in header]
    first = next((place for place, name in enumerate(names) if name in ("xmin", "x1")), 0)
    if first not in (2, 3) or len(names) != first + 8 or _first(names, IMAGE_NAMES) != first - 2:
        return None
    return replace(_make_automl(first == 3), header_lines=1)


def _make_automl(has_split: bool) -> Dialect:
    first = 3 if has_split else 2
    columns = {"image": first - 2, "class": first - 1} | ({"split": 0} if has_split else {})
    return Dialect(
        tool="AutoML CSV (Vertex AI, TFLite Model Maker)",
        columns=columns,
        places=tuple(range(first, first + 8)),
        names=("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"),
        form="vertices",
        count=first + 8,
        header_lines=0,
        normalized=True,
    )


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


def _match_lines(sample: Sequence[list[str]]) -> Dialect | None:
    """Recognises a file without a header by the fields of its lines."""
    dialects: tuple[tuple[Callable[[list[str]], bool], Dialect], ...] = (
        (_is_automl, _make_automl(has_split=True)),
        (lambda fields: _is_automl(["", *fields]), _make_automl(has_split=False)),
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
    if has_fractions and not dialect.normalized and min(numbers) >= 0 and max(numbers) <= 1:
        dialect = replace(dialect, normalized=True)
        notes.append("all boxes lie between 0 and 1, so the coordinates are read as fractions of the image")
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
