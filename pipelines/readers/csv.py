"""Reads CSV annotations: one line per box.

    DIR/SPLIT.csv or DIR/SPLIT_labels.csv  DIR/[images/][SPLIT/]*       TensorFlow Object Detection API
    DIR/SPLIT/_annotations.csv  DIR/SPLIT/*                             Roboflow (TensorFlow and RetinaNet export)
    DIR/annotations.csv  DIR/[images/]*                                 VoTT, VIA, makesense.ai, DeepForest
    DIR/train.csv  DIR/[train/ or images/]*                             Kaggle
    DIR/train-annotations-bbox.csv  DIR/train/*                         Open Images, with class-descriptions-boxable.csv
    DIR/any.csv with the split in a column                              AutoML, Vertex AI, TFLite Model Maker

csv_columns.py and csv_dialects.py describe the columns, csv_text.py the encodings and separators, csv_layout.py and
csv_images.py how files and images are found. Images are also found if the names in the file have no suffix, or the
folders of another machine.

`--input` is DIR, a CSV file or a pattern, and may be repeated. A line with only a file name is an image without
objects. A line that cannot be read is a rejected box, because its image is unknown.
"""

import contextlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, SeparateBox, image_key, make_elements
from pipelines.readers.csv_boxes import parse_box, parse_size
from pipelines.readers.csv_dialects import UNASSIGNED
from pipelines.readers.csv_files import CsvFile, contains_image_names, explain_file, read_dialect
from pipelines.readers.csv_layout import find_layout, list_candidates, list_csv_files
from pipelines.readers.csv_text import read_rows
from pipelines.readers.folder import is_image, list_folder
from pipelines.readers.image_index import ImageIndex, locate_found
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Location, Source, locate_image, require_input
from pipelines.readers.splits import Found, choose_in_inputs
from pipelines.readers.unlisted import ImageFolder, share_folder
from pipelines.readers.via_csv import parse_via_csv
from ssd_dist.core.errors import DataError


@dataclass(frozen=True)
class CsvGroup:
    """CSV files whose images are in the same folder, so that an image may have lines in several of them."""

    number: int
    files: tuple[CsvFile, ...]


class _Line(NamedTuple):
    """The content of one line.

    Attributes:
      filename: name of the image; empty if the line cannot be read, and the box then has a problem.
      box: the box; None for an image without objects.
      size: (height, width) of the image in pixels according to the line, or None.
      where: position of the line, for messages.
    """

    filename: str
    box: Box | None
    size: tuple[int, int] | None
    where: str


def find_splits(path: str, image_dir: str) -> Found[CsvFile] | None:
    """Returns the splits in a folder, a file or a pattern; None if there is no CSV file of boxes.

    Raises:
      DataError: if the input is a CSV file whose columns are not recognized, or the images are in no folder.
    """
    if not beam_storage.is_pattern(path):
        require_input(path)
    return find_layout(path, image_dir)


def count_annotated(found: Found[CsvFile]) -> int:
    """Returns the number of images that the files list."""
    files = {file.path: file for own in found.splits.values() for file in own}
    names: set[str] = set()
    for file in files.values():
        with contextlib.suppress(*beam_storage.UNREADABLE):
            names.update(line.filename for _, line in _read_file(file) if line.filename)
    return len(names)


def read_csv(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the files and recognizing their columns.

    Raises:
      DataError: if there is no CSV file of boxes, or the split or the images are missing.
    """
    return ReadAnnotations(partial(list, group_files(find_files(source))), partial(read_group, source=source))


def find_files(source: Source) -> list[CsvFile]:
    """Returns the CSV files of the split in all inputs.

    Raises:
      DataError: if there is no CSV file of boxes, or the split or the images are missing.
    """

    def find(path: str) -> Found[CsvFile]:
        found = find_splits(path, source.image_dir)
        if found is None:
            expected = "SPLIT.csv, SPLIT_labels.csv, SPLIT/_annotations.csv or annotations.csv"
            reason = explain_unknown(path) or f"no CSV file of boxes ({expected}); pass the file as --input"
            raise DataError(f"--input={path}: {reason}")
        return found

    return choose_in_inputs(source, find, partial(share_folder, includes_inner=True))


def group_files(files: Sequence[CsvFile]) -> list[CsvGroup]:
    """Returns the files grouped by the folder of their images."""
    groups: dict[str, tuple[CsvFile, ...]] = {}
    for file in files:
        groups[file.images] = (*groups.get(file.images, ()), file)
    return [CsvGroup(number, group) for number, group in enumerate(groups.values())]


def explain_unknown(path: str) -> str:
    """Returns why a CSV file that contains names of images is not read; empty if the input has no such file."""
    if beam_storage.is_pattern(path) or beam_storage.is_file(path):
        return ""
    folder = list_folder(path)
    candidates = list_candidates(folder)
    named_results = [name for name in list_csv_files(folder) if name not in candidates]
    for name in map(folder.join, (*candidates, *named_results)):
        if name in map(folder.join, named_results) and read_dialect(name) is not None:
            return f"{name} has the name of a file of results; pass it as --input to read it"
        if contains_image_names(name):
            return explain_file(name)
    return ""


def read_group(group: CsvGroup, source: Source) -> Iterator[Element]:
    """Yields the elements of the files of a group."""
    return make_elements(read_entries(group, source))


def read_entries(group: CsvGroup, source: Source) -> Iterator[Image | SeparateBox | Category | Listing]:
    """Yields each image at its first line, each box at its line, each class once, then the end of the listing.

    Raises:
      DataError: if storage fails before the end of a file.
    """
    # The size of each image, from its first line that contains a size.
    sizes: dict[int, tuple[int, int] | None] = {}
    names: set[str] = set()
    rows = count = 0
    folder, others = _open_folder(group)
    for file in group.files:
        locate = _Locator(file)
        try:
            for line in _read_lines(file, folder, locate):
                count += 1
                # An unreadable line is rejected as a box without an image.
                image_id = line.filename or file.path
                if not source.includes(line.filename or f"{line.where} of {file.path}"):
                    continue
                key = image_key(image_id)
                if line.filename and key not in sizes:
                    yield _make_image(line, locate(line.filename), group, rows, file)
                    rows += 1
                if line.filename:
                    sizes[key] = sizes.get(key) or line.size
                if line.box is None:
                    continue
                box = _check_size(line.box, line.size, sizes.get(key))
                yield SeparateBox(image_id, group.number, count, file.path, box)
                if box.problem is None and box.category not in names:
                    names.add(box.category)
                    yield Category(box.category, 0, box.category)
        except beam_storage.UNREADABLE as error:
            beam_storage.require_damage(error, file.path)
            # This entry represents the images that were not read, so it is unknown which image files they are.
            problem = Problem("broken_annotation", "the file is damaged or incomplete; the rest of it is lost")
            yield Image(f"the rest of {file.path}", group.number, rows, file.path, "", "", problem=problem)
            rows += 1
            folder = None
    if folder is not None and all(_mark_listed(other, folder) for other in others):
        annotations = list(dict.fromkeys(file.path for file in (*group.files, *others)))
        for image in folder.make_images(source, group.number, rows, annotations):
            yield image
            rows += 1
    yield Listing(group.number, rows, group.files[0].path)


def _open_folder(group: CsvGroup) -> tuple[ImageFolder | None, list[CsvFile]]:
    """Returns the folder of the images if the group reports its unlisted images, and the files of other groups.

    All images of the folder must be listed in a file of the group or in one of the other files.
    """
    paths = {file.path for file in group.files}
    first = next((file for file in group.files if file.is_first and (file.is_only_owner or file.others)), None)
    if first is None:
        return None, []
    return ImageFolder(first.images), [other for other in first.others if other.path not in paths]


def _mark_listed(file: CsvFile, folder: ImageFolder) -> bool:
    """Marks the images that a file of another group lists; returns false if it is damaged, and may list more of them.

    Raises:
      DataError: if storage fails before the end of the file.
    """
    try:
        for _ in _read_lines(file, folder, _Locator(file)):
            pass
    except beam_storage.UNREADABLE as error:
        beam_storage.require_damage(error, file.path)
        return False
    return True


class _Locator:
    """Locates the images of a file.

    Args:
      file: the file.
    """

    def __init__(self, file: CsvFile) -> None:
        self._file = file
        self._index = ImageIndex(list_folder(file.images), file.file_split) if file.is_indexed else None

    def __call__(self, filename: str) -> Location:
        """Returns the location of the image with this name, which may lack a suffix or have other folders."""
        file = self._file
        name = filename.replace("\\", "/")
        found = self._index.find(name) if self._index else []
        direct = locate_found(found, filename, file.images)
        return direct or locate_image(file.images, name, "" if is_image(name) else name, dataset=file.dataset)


def _make_image(line: _Line, location: Location, group: CsvGroup, row: int, file: CsvFile) -> Image:
    is_complete = is_image(line.filename) or not is_image(location.path)
    return Image(
        image_id=line.filename,
        file=group.number,
        row=row,
        source=file.path,
        filename=line.filename if is_complete else posixpath.basename(location.path),
        path=location.path,
        stems=location.stems,
        size=line.size,
        problem=location.problem,
    )


def _check_size(box: Box, size: tuple[int, int] | None, first: tuple[int, int] | None) -> Box:
    """Returns the box of a line, rejected if the line gives another size of the image than an earlier line."""
    if size in (None, first):
        return box
    detail = f"the size (height, width) is {size} pixels in this line and {first} in an earlier one"
    return box._replace(problem=Problem("size_mismatch", detail))


def _read_lines(file: CsvFile, folder: ImageFolder | None, locate: _Locator) -> Iterator[_Line]:
    """Yields the lines of the split that is read from the file; marks the images of all its lines as listed."""
    marked: set[int] = set()
    for value, line in _read_file(file):
        if folder is not None and line.filename and image_key(line.filename) not in marked:
            marked.add(image_key(line.filename))
            location = locate(line.filename)
            folder.mark_listed(Image("", 0, 0, "", "", location.path, location.stems))
        if value == file.value or not file.value or (not line.filename and file.is_first):
            yield line


def _read_file(file: CsvFile) -> Iterator[tuple[str, _Line]]:
    """Yields the value of the split column and the content of each line, whatever split it belongs to."""
    return _read_via(file) if file.dialect.is_via else _read_table(file)


def _read_table(file: CsvFile) -> Iterator[tuple[str, _Line]]:
    """Yields the value of the split column and the content of each line below the header."""
    dialect = file.dialect
    with beam_storage.open_input(file.path) as stream:
        for row in islice(read_rows(stream, dialect.delimiter, dialect.count), dialect.header_lines, None):
            where = f"line {row.number}"
            try:
                if row.problem:
                    raise ValueError(row.problem)
                fields = dialect.fit(row.fields)
                filename = dialect.read(fields, "image")
                if not filename:
                    raise ValueError("the line has no file name")
            except ValueError as error:
                yield "", _reject_line(where, str(error))
                continue
            box = parse_box(fields, dialect, where)
            if box is not None and file.class_names:
                box = box._replace(category=file.class_names.get(box.category, box.category))
            value = (dialect.read(fields, "split") or UNASSIGNED) if file.value else ""
            yield value, _Line(filename, box, parse_size(dialect, fields), where)


def _read_via(file: CsvFile) -> Iterator[tuple[str, _Line]]:
    """Yields the regions of a CSV file of VIA, whose rows of an image need not be adjacent."""
    for image in parse_via_csv(beam_storage.read_item(file.path)):
        if image.problem is not None:
            yield "", _reject_line(image.where, image.problem.detail)
        elif not image.boxes:
            yield "", _Line(image.filename, None, image.size, image.where)
        for box in image.boxes if image.problem is None else ():
            yield "", _Line(image.filename, box, image.size, box.where)


def _reject_line(where: str, detail: str) -> _Line:
    return _Line("", Box("", (0, 0, 0, 0), where, problem=Problem("broken_annotation", detail)), None, where)
