"""Finds the CSV files of a dataset, their splits and the folders of their images.

Splits come from a column of the file, see csv_columns.py, or else from the name of the file or its folder: a name
belongs to the split that it contains as a word, such as train_labels.csv or oidv6-train-annotations-bbox.csv.
"""

import contextlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice

from pipelines import beam_storage
from pipelines.readers.csv_class_names import read_numbers_of_classes
from pipelines.readers.csv_dialects import UNASSIGNED
from pipelines.readers.csv_files import CsvFile, explain_file, read_dialect
from pipelines.readers.csv_images import SUFFIXES, find_images, is_below
from pipelines.readers.csv_text import read_rows
from pipelines.readers.folder import Folder, list_folder
from pipelines.readers.parts import choose_parts
from pipelines.readers.sources import parent_folder
from pipelines.readers.split_names import find_split, is_split, split_words
from pipelines.readers.splits import WHOLE, Found, output_split
from pipelines.readers.unlisted import find_others, overlaps
from ssd_dist.core.errors import DataError

# Files with these words in their names contain no annotations.
NO_ANNOTATIONS = re.compile(r"submission|prediction|results?\b", re.IGNORECASE)
# Names that do not give the split.
PLAIN_NAMES = re.compile(
    r"(annotations?|labels?|bbox(es)?|box(es)?|data|dataset|images?|csv|export|all|full|default|instances|gt)"
)
# A folder with more CSV files has one per image, which is not a format that is read.
MAX_FILES = 64


def find_layout(path: str, image_dir: str) -> Found[CsvFile] | None:
    """Returns the splits in a folder, a file or a pattern; None if there is no CSV file of boxes with images.

    Raises:
      DataError: if the input is a CSV file whose columns are not recognized, or the images are in no folder.
    """
    if beam_storage.is_pattern(path):
        files = [
            find_images(CsvFile(name, dialect, file_split=split_in_name(posixpath.basename(name))), None, image_dir)
            for name in beam_storage.match_files(path)
            if (dialect := read_dialect(name)) is not None
        ]
        return _describe({WHOLE: files}, None) if files else None
    if beam_storage.is_file(path):
        dialect = read_dialect(path)
        if dialect is None:
            if path.lower().endswith(SUFFIXES):
                raise DataError(explain_file(path))
            return None
        file = CsvFile(path, dialect, file_split=split_in_name(posixpath.basename(path)))
        return _describe({WHOLE: [find_images(file, None, image_dir)]}, None)
    folder = list_folder(path)
    files_by_split, notes, unions = _group_by_split(folder)
    # TFRecord files contain the images of the CSV files that they were made from.
    if not files_by_split or not (image_dir or folder.count_images("")):
        return None

    @cache
    def list_numbers() -> frozenset[int]:
        return frozenset(
            number
            for files in files_by_split.values()
            for file in files
            for number in read_numbers_of_classes(file).values()
        )

    located = {
        split: [find_images(file, folder, image_dir, list_numbers) for file in files]
        for split, files in files_by_split.items()
    }
    return _describe(located, folder, notes, unions)


def list_csv_files(folder: Folder) -> list[str]:
    """Returns the names of the CSV files in a folder, the nearest first."""
    return folder.find(*(f"{depth}*{suffix}" for depth in ("", "*/", "*/*/") for suffix in SUFFIXES))


def list_candidates(folder: Folder) -> list[str]:
    """Returns the names of the CSV files in a folder that may contain annotations, the nearest first."""
    names = [name for name in list_csv_files(folder) if not NO_ANNOTATIONS.search(posixpath.basename(name))]
    by_folder: dict[str, int] = {}
    for name in names:
        by_folder[posixpath.dirname(name)] = by_folder.get(posixpath.dirname(name), 0) + 1
    return [name for name in names if by_folder[posixpath.dirname(name)] <= MAX_FILES]


def _group_by_split(folder: Folder) -> tuple[dict[str, list[CsvFile]], list[str], list[str]]:
    """Returns the CSV files of a folder by split, facts to announce, and the names that are no splits.

    `WHOLE` are files that name no split. Of files that describe the same images, such as copies, one is used.
    """
    names: list[str] = []
    named: dict[str, list[CsvFile]] = {}
    for name in list_candidates(folder):
        dialect = read_dialect(folder.join(name))
        if dialect is not None:
            split = split_in_name(name)
            named.setdefault(split, []).append(CsvFile(folder.join(name), dialect, file_split=split))
    if len(named) > 1 and not any(map(is_split, named)):
        everything = [file for own in named.values() for file in own]
        if len({re.sub(r"\d+", "0", split) for split in named}) == 1:
            # Files that differ in a number only are parts of one dataset, even if they describe the same images, such
            # as one file per class. Files of one name may be copies.
            numbered = [choose_parts(own, _list_image_names) for own in named.values()]
            notes = [note for own in numbered for note in own.describe()]
            return {WHOLE: [file for own in numbered for file in own.files]}, notes, []
        # Files with other names, such as one per day, are the whole dataset; --source_split selects one of them.
        names = [split for split in named if split != WHOLE]
        named = {WHOLE: everything, **{split: named[split] for split in names}}
    parts = {split: choose_parts(own, _list_image_names) for split, own in named.items()}
    notes = [note for split, own in parts.items() if split not in names for note in own.describe()]
    files = {split: [*own.files] for split, own in parts.items()}
    others = [split for split in files if not is_split(split)]
    if names:
        return files, notes, names
    if len(files) == len(others) == 1:
        # A single file with another name, such as my_project.csv, contains the whole dataset.
        files = {WHOLE: files[others[0]]}
    elif others == [WHOLE] and _is_training_split(files):
        files = {"train": files.pop(WHOLE), **files}
    else:
        skipped = [beam_storage.path_below(folder.path, file.path) for split in others for file in files.pop(split)]
        notes += [f"not read: {', '.join(skipped):.200}; pass a file as --input to read it"] if skipped else []
    return files, notes, []


def _list_image_names(file: CsvFile) -> set[str]:
    """Returns the names of the images in a file; of a damaged file, those before the damage."""
    dialect = file.dialect
    place = 0 if dialect.is_via else dialect.columns["image"]
    names = set()
    # Damage is reported when the file is read.
    with contextlib.suppress(*beam_storage.UNREADABLE), beam_storage.open_input(file.path) as stream:
        for row in islice(read_rows(stream, dialect.delimiter, dialect.count), dialect.header_lines, None):
            if len(row.fields) > place:
                names.add(row.fields[place])
    return names


def _is_training_split(files: Mapping[str, Sequence[CsvFile]]) -> bool:
    """Returns whether the file without a split is that of training: annotations.csv beside val_annotations.csv.

    A file called all.csv contains the images of the other splits as well.
    """
    words = split_words(posixpath.basename(files[WHOLE][0].path).lower())
    return not {*words} & {"all", "full"} and not any(output_split(split) == "train" for split in files)


def split_in_name(name: str) -> str:
    """Returns the split in the name of a CSV file or else of its folders, nearest first; may be empty.

    A name that contains no split is returned without common words, so that several such files can be distinguished.
    """
    stem = posixpath.basename(name).partition(".")[0]
    is_plain = all(PLAIN_NAMES.fullmatch(word) for word in split_words(stem.lower()))
    return find_split(name) or (WHOLE if is_plain else stem)


def _describe(
    files_by_split: Mapping[str, Sequence[CsvFile]],
    folder: Folder | None,
    notes: Sequence[str] = (),
    unions: Sequence[str] = (),
) -> Found[CsvFile]:
    """Returns the splits of the files, those in a column included."""
    by_path = {file.path: file for files in files_by_split.values() for file in files}
    everything = _mark_owners([*by_path.values()], folder)
    by_path = {file.path: file for file in everything}
    splits: dict[str, tuple[CsvFile, ...]] = {}
    counts: dict[str, int] = {}
    for split, files in files_by_split.items():
        for file in (by_path[file.path] for file in files):
            column = _count_by_value(file)
            if column and split in unions:
                continue
            for number, (value, images) in enumerate(column.items()):
                part = replace(file, value=value, is_first=number == 0)
                splits[value] = (*splits.get(value, ()), part)
                counts[value] = counts.get(value, 0) + images
            if not column or len(everything) == 1:
                name = WHOLE if column else split
                splits[name] = (*splits.get(name, ()), file)
                if file.is_only_owner:
                    counts[name] = counts.get(name, 0) + _count_images(file, folder)
    tools = dict.fromkeys(_name_tool(file) for file in everything)
    announced = [f"{posixpath.basename(file.path)}: {note}" for file in everything for note in file.dialect.notes]
    announced += [
        f"{posixpath.basename(file.path)}: class-descriptions-boxable.csv is not in the folder, so classes keep their "
        "identifiers such as /m/01g317"
        for file in everything
        if file.dialect.is_open_images and not file.class_names
    ]
    return Found(" and ".join(tools), splits, counts, frozenset(unions), (*announced, *notes))


def _name_tool(file: CsvFile) -> str:
    if posixpath.basename(file.path) == "_annotations.csv" and "makesense" not in file.dialect.tool:
        return f"Roboflow export ({file.dialect.tool})"
    return file.dialect.tool


def _count_by_value(file: CsvFile) -> dict[str, int]:
    """Returns the number of images of each value in the split column, in file order; empty without such a column.

    The whole file is read, because a split may begin at its end.
    """
    if "split" not in file.dialect.columns:
        return {}
    dialect = file.dialect
    images: dict[str, set[int]] = {}
    with beam_storage.open_input(file.path) as stream:
        for row in islice(read_rows(stream, dialect.delimiter, dialect.count), dialect.header_lines, None):
            if len(row.fields) > max(dialect.columns["image"], dialect.columns["split"]):
                value = dialect.read(row.fields, "split") or UNASSIGNED
                images.setdefault(value, set()).add(hash(dialect.read(row.fields, "image")))
    if {*images} == {UNASSIGNED}:
        return {}
    return {value: len(found) for value, found in images.items()}


def _mark_owners(files: list[CsvFile], folder: Folder | None) -> list[CsvFile]:
    """Returns the files with `is_only_owner` and `others` set, also for files beside them that are not read."""
    paths = {file.path for file in files}
    unread: list[CsvFile] = []
    if folder is None:
        siblings = sorted({name for file in files for name in beam_storage.list_files(parent_folder(file.path))})
        siblings = [name for name in siblings if name.lower().endswith(SUFFIXES) and name not in paths]
        if len(siblings) > MAX_FILES:
            return files
        for name in siblings:
            dialect = None if NO_ANNOTATIONS.search(posixpath.basename(name)) else read_dialect(name)
            if dialect is not None:
                other = CsvFile(name, dialect, file_split=split_in_name(posixpath.basename(name)))
                unread.append(find_images(other, None, ""))
    marked = []
    for file in files:
        is_only_owner = sum(overlaps(file, other) for other in (*files, *unread)) == 1
        others = () if any(overlaps(file, other) for other in unread) else find_others(file, files, includes_inner=True)
        marked.append(replace(file, is_only_owner=is_only_owner, others=others))
    return marked


def _count_images(file: CsvFile, folder: Folder | None) -> int:
    if folder is not None and is_below(file.images, folder.path):
        return folder.count_images(beam_storage.path_below(folder.path, file.images))
    return list_folder(file.images).count_images("")
