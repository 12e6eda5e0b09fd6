"""Reads CSV annotations: one box per line below the header `filename,width,height,class,xmin,ymin,xmax,ymax`.

Coordinates are in pixels. Columns are identified by name and may be in any order; other columns are ignored; width and
height are optional. A line with only a file name is an image without objects.

`--input` is a file, a pattern, or a folder that contains SPLIT.csv or SPLIT_labels.csv. With `--split_by` and without
`--source_split`, the folder must contain a single CSV file.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, SeparateBox, image_key, make_elements
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Source, find_annotation_files, find_images, locate_image, parent_folder
from pipelines.readers.splits import Found
from ssd_dist.core.errors import DataError

SUFFIXES = (".csv", ".csv.gz")
CORNERS = ("ymin", "xmin", "ymax", "xmax")
REQUIRED = ("filename", "class", *CORNERS)
# A file with a longer line is not a CSV file.
MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class CsvFile:
    """One CSV file.

    Attributes:
      path: path of the file.
      columns: index of each column by name.
      images: folder of the images.
      dataset: folder of the dataset, to which file names may be relative as well; empty if `--image_dir` is given.
    """

    path: str
    columns: dict[str, int]
    images: str
    dataset: str = ""


def find_splits(path: str, image_dir: str) -> Found[Any] | None:
    """Returns the splits in a folder, a file or a pattern; None if the input is not in this format."""
    return None


def read_csv(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the files and reading their headers.

    All files are parsed together, because an image may have lines in several files.

    Raises:
      DataError: if a file or a column is missing.
    """
    return ReadAnnotations(partial(list, [find_files(source)]), partial(read_files, source=source))


def find_files(source: Source) -> list[CsvFile]:
    """Returns the CSV files of all inputs.

    Raises:
      DataError: if a file, a column or a folder of images is missing.
    """
    split, any_names = source.split_name, ("annotations.csv", "*.csv", "*.csv.gz")
    names = (f"{split}.csv", f"{split}_labels.csv", "annotations.csv")
    paths = [
        path for given in source.inputs for path in find_annotation_files(given, source, SUFFIXES, names, any_names)
    ]
    csv_files = []
    for path in paths:
        dataset = parent_folder(path)
        images = find_images(path, dataset, source)
        csv_files.append(CsvFile(path, read_columns(path), images, "" if source.image_dir else dataset))
    return csv_files


def read_columns(path: str) -> dict[str, int]:
    """Returns the index of each column by name, from the header of a file.

    Raises:
      DataError: if a required column is missing.
    """
    try:
        with beam_storage.open_input(path) as stream:
            header = next(beam_storage.read_lines(stream, MAX_LINE_BYTES), b"")
            names = [name.strip().lower() for name in _split_line(header)]
    except (*beam_storage.UNREADABLE, csv.Error) as error:
        raise DataError(f"{path}: the header cannot be read ({error}); expected {','.join(REQUIRED)}") from None
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(f"{path}: the header has no column {', '.join(missing)}, only {', '.join(names)}; add it")
    return {name: names.index(name) for name in (*REQUIRED, "width", "height") if name in names}


def read_files(csv_files: list[CsvFile], source: Source) -> Iterator[Element]:
    """Yields the elements of all files."""
    return make_elements(read_entries(csv_files, source))


def read_entries(csv_files: list[CsvFile], source: Source) -> Iterator[Image | SeparateBox | Category | Listing]:
    """Yields each image at its first line, each box at its line, each class once, then the end of the listing.

    Raises:
      DataError: if storage fails before the end of a file.
    """
    # The size of each image, from its first line that contains a size.
    sizes: dict[int, tuple[int, int] | None] = {}
    names: set[str] = set()
    line_count = 0
    for file in csv_files:
        for number, line in _read_lines(file):
            line_count += 1
            image, box = parse_line(line, number, file, len(sizes), line_count)
            if not source.includes(image.image_id):
                continue
            key = image_key(image.image_id)
            if key not in sizes:
                yield image
            size = sizes[key] = sizes.get(key) or image.size
            if box is not None and image.size not in (None, size):
                detail = f"the size (height, width) is {image.size} pixels in this line and {size} in an earlier one"
                rejected = box.box._replace(problem=Problem("size_mismatch", detail))
                yield box._replace(box=rejected)
            elif box is not None:
                yield box
                if box.box.problem is None and box.box.category not in names:
                    names.add(box.box.category)
                    yield Category(box.box.category, 0, box.box.category)
    yield Listing(0, len(sizes), csv_files[0].path)


def _read_lines(file: CsvFile) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line) for each nonempty line below the header; a damaged file ends with an invalid line."""
    number = 1
    try:
        with beam_storage.open_input(file.path) as stream:
            for number, line in enumerate(beam_storage.read_lines(stream, MAX_LINE_BYTES), start=1):
                if number > 1 and line.strip():
                    yield number, line
    except beam_storage.UNREADABLE as error:
        beam_storage.require_damage(error, file.path)
        # This line is not UTF-8, so it is rejected.
        yield number + 1, b"\xff the rest of the file is lost"


def parse_line(line: bytes, number: int, file: CsvFile, row: int, order: int) -> tuple[Image, SeparateBox | None]:
    """Returns the image of a line and its box, if there is one; errors become the problem of one of them.

    Args:
      line: the line.
      number: its number in the file, for messages.
      file: the file.
      row: position of the image in the listing.
      order: number of the line among the lines of all files.
    """
    where = f"line {number}"
    try:
        fields = [field.strip() for field in _split_line(line)]
        values = {name: fields[column] for name, column in file.columns.items()}
    except (ValueError, IndexError, csv.Error) as error:
        return _make_broken_image(file, row, where, f"the line cannot be read: {error}"), None
    filename = values["filename"]
    if not filename:
        return _make_broken_image(file, row, where, "the line has no file name"), None
    location = locate_image(file.images, filename, dataset=file.dataset)
    image = Image(
        image_id=filename,
        file=0,
        row=row,
        source=file.path,
        filename=filename,
        path=location.path,
        stems=location.stems,
        size=_parse_size(values.get("height", ""), values.get("width", "")),
        problem=location.problem,
    )
    if not any(values[name] for name in ("class", *CORNERS)):
        return image, None
    return image, SeparateBox(filename, 0, order, file.path, _parse_box(values, where))


def _parse_box(values: dict[str, str], where: str) -> Box:
    try:
        ymin, xmin, ymax, xmax = (float(values[name]) for name in CORNERS)
    except ValueError as error:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", str(error)))
    if not values["class"]:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", "the line has no class"))
    return Box(values["class"], (ymin, xmin, ymax, xmax), where)


def _parse_size(height: str, width: str) -> tuple[int, int] | None:
    try:
        size = int(float(height)), int(float(width))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _make_broken_image(file: CsvFile, row: int, where: str, detail: str) -> Image:
    problem = Problem("broken_annotation", detail)
    return Image(f"{where} of {file.path}", 0, row, f"{file.path}, {where}", "", "", problem=problem)


def _split_line(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8-sig").rstrip("\r")], strict=True), [])
