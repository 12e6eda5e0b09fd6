"""CSV: one box a line under a header `filename,width,height,class,xmin,ymin,xmax,ymax`, in pixels.

Columns are found by name, in any order; others are ignored, width and height may be missing. A line with a file name
alone is an image without objects. `--input` is a file, a pattern, or a folder with SPLIT.csv or SPLIT_labels.csv; with
`--split_by`, and no `--source_split`, the folder's only file.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, LooseBox, Problem, gather_boxes, image_key
from pipelines.readers.sources import Source, SpreadInputs, find_images, find_listings, folder_of, locate_image
from ssd_dist.core.errors import DataError

SUFFIXES = (".csv", ".csv.gz")
CORNERS = ("ymin", "xmin", "ymax", "xmax")
REQUIRED = ("filename", "class", *CORNERS)
# Longer lines are taken for a file that is no CSV.
MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class CsvFile:
    """One file, its columns by name and the folder of its images.

    `home` is where names may lead from as well; empty if the folder of the images was given.
    """

    path: str
    columns: dict[str, int]
    images: str
    home: str = ""


def read_csv(source: Source) -> beam.PTransform:
    """The transform that reads the source; finds the files and reads their headers first.

    Raises:
      DataError: if a file or a column is missing.
    """
    split, any_name = source.split_name, ("annotations.csv", "*.csv", "*.csv.gz")
    names = (f"{split}.csv", f"{split}_labels.csv", "annotations.csv")
    csv_files = []
    for path in (path for given in source.inputs for path in find_listings(given, source, SUFFIXES, names, any_name)):
        home = folder_of(path)
        images = find_images(path, home, source)
        csv_files.append(CsvFile(path, read_columns(path), images, "" if source.image_dir else home))
    return ReadCsv(tuple(csv_files), source)


class ReadCsv(beam.PTransform):
    """CSV files -> elements."""

    def __init__(self, csv_files: tuple[CsvFile, ...], source: Source) -> None:
        super().__init__()
        self._files = csv_files
        self._source = source

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Streams all files in one place: an image may have lines in several."""
        return begin | "Files" >> SpreadInputs([self._files]) | "Read lines" >> beam.FlatMap(read_files, self._source)


def read_columns(path: str) -> dict[str, int]:
    """The columns of a file by name, from its header.

    Raises:
      DataError: if one that is needed is missing.
    """
    try:
        with beam_storage.open_input(path) as stream:
            names = [
                name.strip().lower() for name in _fields(next(beam_storage.read_lines(stream, MAX_LINE_BYTES), b""))
            ]
    except (*beam_storage.UNREADABLE, csv.Error) as error:
        raise DataError(f"{path}: the header cannot be read ({error}); expected {','.join(REQUIRED)}") from None
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(f"{path}: the header lacks {', '.join(missing)}; it has {', '.join(names)}")
    return {name: names.index(name) for name in (*REQUIRED, "width", "height") if name in names}


def read_files(csv_files: tuple[CsvFile, ...], source: Source) -> Iterator[Element]:
    """Streams all files into elements."""
    return gather_boxes(read_entries(csv_files, source))


def read_entries(csv_files: tuple[CsvFile, ...], source: Source) -> Iterator[Image | LooseBox | Category | Listing]:
    """Images at the first line that names them, boxes line by line, classes, and the end of the listing.

    Raises:
      DataError: if storage fails midway.
    """
    # The size that each image was given by the first line that gives one.
    seen: dict[int, tuple[int, int] | None] = {}
    names: set[str] = set()
    line_number = 0
    for file in csv_files:
        for number, line in _lines(file):
            line_number += 1
            image, box = parse_line(line, number, file, len(seen), line_number)
            if not source.keeps(image.image_id):
                continue
            key = image_key(image.image_id)
            if key not in seen:
                yield image
            size = seen[key] = seen.get(key) or image.size
            if box is not None and image.size not in (None, size):
                detail = f"the line says {image.size} pixels (height, width), one before it {size}"
                lost = box.box._replace(problem=Problem("size_mismatch", detail))
                yield box._replace(box=lost)
            elif box is not None:
                yield box
                if box.box.problem is None and box.box.category not in names:
                    names.add(box.box.category)
                    yield Category(box.box.category, 0, box.box.category)
    yield Listing(0, len(seen), csv_files[0].path)


def _lines(file: CsvFile) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the lines below the header that are not empty, and one more where the file breaks off."""
    number = 1
    try:
        with beam_storage.open_input(file.path) as stream:
            for number, line in enumerate(beam_storage.read_lines(stream, MAX_LINE_BYTES), start=1):
                if number > 1 and line.strip():
                    yield number, line
    except beam_storage.UNREADABLE as error:
        beam_storage.require_damage(error, file.path)
        # Not UTF-8, so that it is refused.
        yield number + 1, b"\xff the rest of the file is lost"


def parse_line(line: bytes, number: int, file: CsvFile, row: int, order: int) -> tuple[Image, LooseBox | None]:
    """The image that a line names and its box, if it has one; what is wrong becomes the problem of one of them."""
    where = f"line {number}"
    try:
        fields = [field.strip() for field in _fields(line)]
        values = {name: fields[column] for name, column in file.columns.items()}
    except (ValueError, IndexError, csv.Error) as error:
        return _broken(file, row, where, f"the line cannot be read: {error}"), None
    filename = values["filename"]
    if not filename:
        return _broken(file, row, where, "the line has no file name"), None
    found = locate_image(file.images, filename, home=file.home)
    image = Image(
        image_id=filename,
        file=0,
        row=row,
        source=file.path,
        filename=filename,
        path=found.path,
        stems=found.stems,
        size=_size(values.get("height", ""), values.get("width", "")),
        problem=found.problem,
    )
    if not any(values[name] for name in ("class", *CORNERS)):
        return image, None
    return image, LooseBox(filename, 0, order, file.path, _box(values, where))


def _box(values: dict[str, str], where: str) -> Box:
    try:
        ymin, xmin, ymax, xmax = (float(values[name]) for name in CORNERS)
    except ValueError as error:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", str(error)))
    if not values["class"]:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", "the line has no class"))
    return Box(values["class"], (ymin, xmin, ymax, xmax), where)


def _size(height: str, width: str) -> tuple[int, int] | None:
    try:
        size = int(float(height)), int(float(width))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _broken(file: CsvFile, row: int, where: str, detail: str) -> Image:
    problem = Problem("broken_annotation", detail)
    return Image(f"{where} of {file.path}", 0, row, f"{file.path}, {where}", "", "", problem=problem)


def _fields(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8-sig").rstrip("\r")], strict=True), [])
