"""Finds the CSV files of a dataset, their splits and the folders of their images.

Splits come from a column of the file, see csv_dialects.py, or else from the name of the file or its folder: a name
belongs to the split that it contains as a word, such as train_labels.csv or oidv6-train-annotations-bbox.csv.
"""

import io
import posixpath
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from pipelines import beam_storage
from pipelines.annotations import IMAGE_SUFFIXES
from pipelines.readers.csv_dialects import DELIMITERS, SAMPLE_ROWS, UNASSIGNED, Dialect, recognize
from pipelines.readers.csv_text import Row, read_rows
from pipelines.readers.folder import Folder, is_image, list_folder
from pipelines.readers.image_index import ImageIndex
from pipelines.readers.sources import first_folder, parent_folder
from pipelines.readers.split_names import find_split, is_split, names_split, split_words
from pipelines.readers.splits import WHOLE, Found, output_split
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import join

SUFFIXES = tuple(f"{suffix}{end}" for suffix in (".csv", ".tsv") for end in ("", ".gz"))
# Files with these words in their names contain no annotations.
NO_ANNOTATIONS = re.compile(r"submission|prediction|results?\b", re.IGNORECASE)
# Names that do not give the split.
PLAIN_NAMES = re.compile(
    r"(annotations?|labels?|bbox(es)?|box(es)?|data|dataset|images?|csv|export|all|full|default|instances|ground|truth)"
)
# Files of boxes in these folders belong to the folder above.
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "csv", "csv_folder", "data")
IMAGE_FOLDERS = ("images", "imgs", "img", "image", "data", "JPEGImages")
# Files with the display names of the classes of Open Images.
CLASS_DESCRIPTIONS = ("class-descriptions", "classes.csv")
# How much of a file is read to recognise it.
HEAD_BYTES = 1 << 18
EXAMPLES = 4
# A folder with more CSV files has one per image, which is not a format that is read.
MAX_FILES = 64


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
      class_names: display names of the classes of Open Images.
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
    class_names: Mapping[str, str] = field(default_factory=dict)


def find_layout(path: str, image_dir: str) -> Found[CsvFile] | None:
    """Returns the splits in a folder, a file or a pattern; None if there is no CSV file of boxes with images.

    Raises:
      DataError: if the input is a CSV file whose columns are not recognised, or the images are in no folder.
    """
    if beam_storage.is_pattern(path):
        files = [
            _find_images(CsvFile(name, dialect, file_split=split_in_name(posixpath.basename(name))), None, image_dir)
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
        return _describe({WHOLE: [_find_images(file, None, image_dir)]}, None)
    folder = list_folder(path)
    files_by_split, notes = _group_by_split(folder)
    # TFRecord files contain the images of the CSV files that they were made from.
    if not files_by_split or not (image_dir or folder.count_images("")):
        return None
    located = {
        split: [_find_images(file, folder, image_dir) for file in files] for split, files in files_by_split.items()
    }
    return _describe(located, folder, notes)


def list_candidates(folder: Folder) -> list[str]:
    """Returns the names of the CSV files in a folder that may contain annotations, the nearest first."""
    patterns = [f"{depth}*{suffix}" for depth in ("", "*/", "*/*/") for suffix in SUFFIXES]
    names = [name for name in folder.find(*patterns) if not NO_ANNOTATIONS.search(posixpath.basename(name))]
    by_folder: dict[str, int] = {}
    for name in names:
        by_folder[posixpath.dirname(name)] = by_folder.get(posixpath.dirname(name), 0) + 1
    return [name for name in names if by_folder[posixpath.dirname(name)] <= MAX_FILES]


def _group_by_split(folder: Folder) -> tuple[dict[str, list[CsvFile]], list[str]]:
    """Returns the CSV files of a folder by split, and which files are not read.

    The file of a split that is nearest to the folder is used.
    """
    files: dict[str, list[CsvFile]] = {}
    skipped = []
    for name in list_candidates(folder):
        dialect = read_dialect(folder.join(name))
        if dialect is None:
            continue
        split = split_in_name(name)
        if split in files:
            skipped.append(name)
        else:
            files[split] = [CsvFile(folder.join(name), dialect, file_split=split)]
    if len(files) > 1 and any(map(is_split, files)):
        others = [split for split in files if not is_split(split)]
        if others == [WHOLE] and _is_training_split(files):
            files = {"train": files.pop(WHOLE), **files}
            others = []
        skipped += [beam_storage.path_below(folder.path, files.pop(split)[0].path) for split in others]
    elif len(files) > 1 and len({re.sub(r"\d+", "0", split) for split in files}) == 1:
        # Files that differ in a number only are parts of one dataset, such as one file per class.
        files = {WHOLE: [file for own in files.values() for file in own]}
    elif len(files) > 1 and WHOLE in files:
        (plain,) = files.pop(WHOLE)
        skipped.append(beam_storage.path_below(folder.path, plain.path))
    elif len(files) == 1:
        (split,) = files
        # A single file with another name, such as my_project.csv, contains the whole dataset.
        if not is_split(split):
            files = {WHOLE: files[split]}
    notes = [f"not read: {', '.join(skipped):.200}; pass a file as --input to read it"] if skipped else []
    return files, notes


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


def _describe(
    files_by_split: Mapping[str, Sequence[CsvFile]], folder: Folder | None, notes: Sequence[str] = ()
) -> Found[CsvFile]:
    """Returns the splits of the files, those in a column included."""
    everything = _mark_owners([file for files in files_by_split.values() for file in files], folder)
    by_path = {file.path: file for file in everything}
    splits: dict[str, tuple[CsvFile, ...]] = {}
    counts: dict[str, int] = {}
    for split, files in files_by_split.items():
        for file in (by_path[file.path] for file in files):
            column = _count_by_value(file)
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
    return Found(" and ".join(tools), splits, counts, notes=(*announced, *notes))


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
    """Returns the files with `is_only_owner` set: no other CSV file of boxes has its images in or below the folder."""
    paths = {file.path for file in files}
    folders = [(file.path, file.images) for file in files]
    if folder is None:
        siblings = sorted({name for file in files for name in beam_storage.list_files(parent_folder(file.path))})
        siblings = [name for name in siblings if name.lower().endswith(SUFFIXES) and name not in paths]
        if len(siblings) > MAX_FILES:
            return files
        for name in siblings:
            dialect = None if NO_ANNOTATIONS.search(posixpath.basename(name)) else read_dialect(name)
            if dialect is not None:
                other = CsvFile(name, dialect, file_split=split_in_name(posixpath.basename(name)))
                folders.append((name, _find_images(other, None, "").images))
    marked = []
    for file in files:
        own = f"{file.images}/"
        others = [f"{images}/" for path, images in folders if path != file.path]
        is_only_owner = not any(own.startswith(other) or other.startswith(own) for other in others)
        marked.append(replace(file, is_only_owner=is_only_owner))
    return marked


def _count_images(file: CsvFile, folder: Folder | None) -> int:
    if folder is not None and _is_below(file.images, folder.path):
        return folder.count_images(beam_storage.path_below(folder.path, file.images))
    return list_folder(file.images).count_images("")


def _is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _find_images(file: CsvFile, folder: Folder | None, image_dir: str) -> CsvFile:
    """Returns the file with the folder of its images, the first one that contains an image of the file.

    Args:
      file: the file.
      folder: the listing of the input; None if the input is a file.
      image_dir: value of `--image_dir`.

    Raises:
      DataError: if no folder contains images.
    """
    home = parent_folder(file.path)
    is_nested = posixpath.basename(home).lower() in ANNOTATION_FOLDERS or (folder is not None and home != folder.path)
    dataset = parent_folder(home) if is_nested and posixpath.basename(home) else home
    examples = _read_examples(file)
    names = _read_class_names(file, folder, (home, dataset)) if file.dialect.is_open_images else {}
    file = replace(file, dataset="" if image_dir else home, class_names=names)
    if image_dir:
        images = first_folder([image_dir], "images", "check --image_dir")
        is_direct = not examples or any(_exists(images, name, folder) for name in examples)
        return replace(file, images=images, is_indexed=not is_direct)
    candidates = _list_image_folders(file.file_split, home, dataset)
    for images in candidates:
        if any(_exists(images, name, folder) for name in examples):
            return replace(file, images=images)
    root = folder or list_folder(dataset)
    index = ImageIndex(root, file.file_split)
    if any(index.find(name) for name in examples):
        return replace(file, images=_narrow(root, index, examples, file.file_split), is_indexed=True)
    return replace(file, images=first_folder(candidates, "images", "pass their folder as --image_dir"))


def _narrow(root: Folder, index: ImageIndex, examples: Sequence[str], split: str) -> str:
    """Returns the folder of the split that contains the examples, or else the whole folder.

    The folder of the examples alone would be too narrow: files with one folder per class are often sorted by class.
    """
    found = [name for example in examples for name in index.find(example)[:1]]
    for depth in range(1, max(name.count("/") for name in found) + 1):
        tops = {"/".join(name.split("/")[:depth]) for name in found}
        if len(tops) == 1 and names_split(next(iter(tops)), split):
            return root.join(tops.pop())
    return root.path


def _list_image_folders(split: str, home: str, dataset: str) -> list[str]:
    """Returns the folders that usually contain the images of a file, the most specific first."""
    if split:
        names = [
            *(split, f"images/{split}", f"{split}/images", f"{split}/data", f"{split}_images", f"{split}-images"),
            *(f"images_{split}", f"img/{split}", f"imgs/{split}", f"data/{split}", f"JPEGImages/{split}"),
        ]
    else:
        names = []
    folders = [join(base, name) for base in (home, dataset) for name in (*names, *IMAGE_FOLDERS)]
    return list(dict.fromkeys([*folders, home, dataset]))


def _exists(images: str, name: str, folder: Folder | None) -> bool:
    """Returns whether the folder contains an image with this name; the suffix may be missing."""
    clean = beam_storage.relative_path(name)
    if clean is None or "://" in name:
        return False
    path = join(images, clean)
    candidates = [path] if is_image(clean) else [path + suffix for suffix in IMAGE_SUFFIXES]
    if folder is not None and _is_below(images, folder.path):
        return any(_contains(folder.names, beam_storage.path_below(folder.path, path)) for path in candidates)
    return any(map(beam_storage.is_file, candidates))


def _contains(names: Sequence[str], name: str) -> bool:
    """Returns whether sorted names contain a name."""
    place = bisect_left(names, name)
    return place < len(names) and names[place] == name


def _read_examples(file: CsvFile) -> list[str]:
    """Returns names of images from the beginning of a file, distributed over the lines that are read."""
    dialect = file.dialect
    rows = _split_head(_read_head(file.path), dialect.delimiter)[dialect.header_lines :]
    place = 0 if dialect.is_via else dialect.columns["image"]
    names = list(dict.fromkeys(row.fields[place] for row in rows if len(row.fields) > place and row.fields[place]))
    return names[:: max(1, len(names) // EXAMPLES)][:EXAMPLES]


def _read_class_names(file: CsvFile, folder: Folder | None, homes: Iterable[str]) -> dict[str, str]:
    """Returns the display names of the classes of Open Images; empty if there is no file of them."""
    listed = [folder.join(name) for name in folder.names] if folder else []
    paths = [*listed, *(path for home in dict.fromkeys(homes) for path in beam_storage.list_files(home))]
    for path in paths:
        if any(word in posixpath.basename(path) for word in CLASS_DESCRIPTIONS) and path.endswith(SUFFIXES):
            with beam_storage.open_input(path) as stream:
                rows = [row.fields for row in read_rows(stream, ",")]
            names = {fields[0]: fields[1] for fields in rows if len(fields) == 2 and fields[0].startswith("/")}
            if names:
                return names
    return {}


def contains_image_names(path: str) -> bool:
    """Returns whether the first lines of a file contain a name with the suffix of an image."""
    return bool(re.search(rb"\w\.(jpe?g|png|bmp|webp|tiff?|gif)\b", _read_head(path), re.IGNORECASE))


def explain_file(path: str) -> str:
    """Returns why a CSV file is not recognised, and how to fix it."""
    if read_dialect(path) is not None:
        return f"{path}: its folder contains no image files; pass the folder of the images as --image_dir"
    head = _read_head(path)
    rows = [row for delimiter in DELIMITERS for row in _split_head(head, delimiter)[:1]]
    row = max(rows, key=lambda row: len(row.fields), default=None)
    header = "filename,class,xmin,ymin,xmax,ymax"
    if row is None or not row.fields:
        return f"{path}: the file is empty or cannot be read ({row.problem if row else 'no lines'}); expected {header}"
    text = ", ".join(row.fields)
    if any(is_image(name) for name in row.fields) or all(re.fullmatch(r"[-\d.]*", name) for name in row.fields):
        return (
            f"{path}: headerless CSV: the first line ({text:.200}) is no header; add one that names the columns, for "
            f"example {header}"
        )
    return (
        f"{path}: the header has no columns for an image and a box, only {text:.200}; rename columns or add them, for "
        f"example {header}"
    )
