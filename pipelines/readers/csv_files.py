"""One CSV file, and what its beginning shows: its dialect, names of images, and why it is not recognized."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from pipelines import beam_storage
from pipelines.readers.csv_boxes import Dialect
from pipelines.readers.csv_dialects import DELIMITERS, SAMPLE_ROWS, recognize
from pipelines.readers.csv_text import Row, read_rows
from pipelines.readers.folder import is_image

# How much of a file is read to recognize it.
HEAD_BYTES = 1 << 18
EXAMPLES = 4


@dataclass(frozen=True)
class CsvFile:
    """One CSV file, or one split of it.

    Attributes:
      path: path of the file.
      dialect: how its lines describe boxes.
      images: folder of the images.
      dataset: folder of the dataset, to which file names may be relative as well; empty if `--image_dir` is given.
      file_split: split in the name of the file; may be empty.
      value: the lines of the split have one of these values in the split column; empty for all lines.
      is_first: whether no earlier split is read from the same file. The first one reports what belongs to no split.
      is_indexed: whether images are searched for below their folder, because their names are not relative to it.
      is_only_owner: whether no other CSV file uses the folder of the images, so that every image in it must be listed
        in this file.
      others: the other files with images in the folder or below it, in the first of these files; every image must be
        listed in this file or one of them. Empty in the other files.
      class_names: names of classes that the file gives as numbers or as identifiers of Open Images.
    """

    path: str
    dialect: Dialect
    images: str = ""
    dataset: str = ""
    file_split: str = ""
    value: str = ""
    is_first: bool = True
    is_indexed: bool = False
    is_only_owner: bool = False
    others: "tuple[CsvFile, ...]" = ()
    class_names: Mapping[str, str] = field(default_factory=dict)


def read_dialect(path: str) -> Dialect | None:
    """Returns the dialect of a file; None if it does not describe boxes or cannot be read."""
    head = _read_head(path)
    for delimiter in DELIMITERS:
        found = recognize(_split_head(head, delimiter), delimiter)
        if found is not None:
            return found
    return None


def _read_head(path: str) -> bytes:
    """Returns the first bytes of a file; empty if it cannot be read."""
    try:
        with beam_storage.open_input(path) as stream:
            return stream.read(HEAD_BYTES)
    except beam_storage.UNREADABLE:
        return b""


def _split_head(head: bytes, delimiter: str) -> list[Row]:
    """Returns the first lines, without the last one if the head may end within it."""
    rows = list(islice(read_rows(io.BytesIO(head), delimiter), SAMPLE_ROWS + 2))
    return rows[: SAMPLE_ROWS + 1] if len(head) < HEAD_BYTES else rows[:-1]


def read_examples(file: CsvFile) -> list[str]:
    """Returns names of images from the beginning of a file, distributed over the lines that are read."""
    dialect = file.dialect
    rows = _split_head(_read_head(file.path), dialect.delimiter)[dialect.header_lines :]
    place = 0 if dialect.is_via else dialect.columns["image"]
    names = list(dict.fromkeys(row.fields[place] for row in rows if len(row.fields) > place and row.fields[place]))
    return names[:: max(1, len(names) // EXAMPLES)][:EXAMPLES]


def contains_image_names(path: str) -> bool:
    """Returns whether the first lines of a file contain a name with the suffix of an image."""
    return bool(re.search(rb"\w\.(jpe?g|png|bmp|webp|tiff?|gif)\b", _read_head(path), re.IGNORECASE))


def explain_file(path: str) -> str:
    """Returns why a CSV file is not recognized, and how to fix it."""
    if read_dialect(path) is not None:
        return f"{path}: its folder contains no image files; pass the folder of the images as --image_dir"
    head = _read_head(path)
    rows = [row for delimiter in DELIMITERS for row in _split_head(head, delimiter)[:1]]
    row = max(rows, key=lambda row: len(row.fields), default=None)
    header = "filename,class,xmin,ymin,xmax,ymax"
    if row is None or not row.fields:
        return f"{path}: the file is empty or cannot be read ({row.problem if row else 'no lines'}); expected {header}"
    text = ", ".join(row.fields)
    if {"annotator", "annotation_id"} <= set(row.fields):
        return f"{path}: a CSV export of Label Studio, which is not supported; export JSON, YOLO or COCO"
    if any(is_image(name) for name in row.fields) or all(re.fullmatch(r"[-\d.]*", name) for name in row.fields):
        return (
            f"{path}: headerless CSV: the first line ({text:.200}) is no header; add one that names the columns, for "
            f"example {header}"
        )
    return (
        f"{path}: the header has no columns for an image and a box, only {text:.200}; rename columns or add them, for "
        f"example {header}"
    )
