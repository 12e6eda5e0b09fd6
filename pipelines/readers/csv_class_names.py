"""Finds the names of classes that a CSV file gives as numbers or identifiers, in a file beside it.

class-descriptions-boxable.csv    Open Images: /m/01g317,Person
label_map.pbtxt                   item { id: 1 name: 'bolt' }
classes.txt, obj.names, ...       one name per line; the numbers of the CSV file show whether they begin with 0 or 1
"""

import fnmatch
import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

from pipelines import beam_storage
from pipelines.readers.csv_files import CsvFile
from pipelines.readers.csv_text import read_rows
from pipelines.readers.folder import Folder
from pipelines.readers.label_map import parse_label_map

# Files with the display names of the classes of Open Images.
CLASS_DESCRIPTIONS = ("class-descriptions", "classes.csv")
NAME_FILES = ("*.pbtxt", "classes.txt", "class_names.txt", "labelmap.txt", "label_map.txt", "labels.txt", "*.names")


def read_class_names(
    file: CsvFile,
    folder: Folder | None,
    homes: Iterable[str],
    suffixes: tuple[str, ...],
    list_numbers: Callable[[], Iterable[int]] = tuple,
) -> CsvFile:
    """Returns the file with the names of its classes, if a file in one of the folders `homes` lists them.

    `list_numbers` returns the class numbers of the other files of the dataset: a split may not contain all classes.
    """
    places = list(dict.fromkeys(homes))
    beside = [path for home in places for path in beam_storage.list_files(home)]
    if file.dialect.is_open_images:
        listed = [folder.join(name) for name in folder.names] if folder else []
        return replace(file, class_names=_read_descriptions([*listed, *beside], suffixes))
    paths = [
        path for pattern in NAME_FILES for path in beside if fnmatch.fnmatch(posixpath.basename(path).lower(), pattern)
    ]
    numbers = read_numbers_of_classes(file) if paths else {}
    if not numbers:
        return file
    path = paths[0]
    names = _read_numbered(path, {*numbers.values(), *list_numbers()})
    if names:
        note = f"classes are numbers; their names are read from {path}"
        named = {text: names[number] for text, number in numbers.items()}
    else:
        note = f"classes keep their numbers, because the names in {path} do not show which number each of them has"
        named = {}
    return replace(file, class_names=named, dialect=replace(file.dialect, notes=(*file.dialect.notes, note)))


def _read_descriptions(paths: Iterable[str], suffixes: tuple[str, ...]) -> dict[str, str]:
    """Returns the display names of the classes of Open Images; empty if there is no file of them."""
    for path in paths:
        if any(word in posixpath.basename(path) for word in CLASS_DESCRIPTIONS) and path.endswith(suffixes):
            with beam_storage.open_input(path) as stream:
                rows = [row.fields for row in read_rows(stream, ",")]
            names = {fields[0]: fields[1] for fields in rows if len(fields) == 2 and fields[0].startswith("/")}
            if names:
                return names
    return {}


def read_numbers_of_classes(file: CsvFile) -> dict[str, int]:
    """Returns the classes of a file as numbers, by their text; empty if one of them is no number."""
    dialect = file.dialect
    place = dialect.columns.get("class")
    if place is None:
        return {}
    numbers: dict[str, int] = {}
    try:
        with beam_storage.open_input(file.path) as stream:
            for row in islice(read_rows(stream, dialect.delimiter, dialect.count), dialect.header_lines, None):
                text = row.fields[place] if len(row.fields) > place else ""
                if text and not re.fullmatch(r"\d{1,9}(\.0)?", text):
                    return {}
                if text:
                    numbers[text] = int(float(text))
    except beam_storage.UNREADABLE:
        # Reported when the file is read.
        pass
    return numbers


def _read_numbered(path: str, occurring: set[int]) -> dict[int, str]:
    """Returns the names of all numbers that occur in the dataset; empty if it is unknown which name each one has."""
    text = beam_storage.read_text(path)
    if path.lower().endswith(".pbtxt"):
        names = parse_label_map(text)
    else:
        lines = list(map(str.strip, text.strip().splitlines()))
        first = 0 if 0 in occurring else 1 if max(occurring) == len(lines) else None
        names = {} if first is None else dict(enumerate(lines, start=first))
    # The same answer for all files: a class must not have a name in one split and a number in another.
    return names if all(names.get(number) for number in occurring) else {}
