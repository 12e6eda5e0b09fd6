"""Finds the TFRecord files of a dataset, their splits and their label map.

    DIR/SPLIT.record or DIR/SPLIT.tfrecord  DIR/label_map.pbtxt         TensorFlow Object Detection API
    DIR/SPLIT.record-00000-of-00010, DIR/name-SPLIT.tfrecord-...        the same in several files
    DIR/SPLIT/name.tfrecord  DIR/SPLIT/name_label_map.pbtxt             Roboflow
    DIR/SPLIT-00000-of-00010, DIR/*.tfrec, DIR/*.tfrecords              others

`--input` is DIR, a file or a pattern, and may be repeated. The split is a word in the name of a file or its folder.
Without such a word, and with `--split_by` and without `--source_split`, all TFRecord files are read.
"""

import contextlib
import io
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipelines import beam_storage
from pipelines.readers.folder import Folder, list_folder
from pipelines.readers.label_map import parse_label_map
from pipelines.readers.sources import parent_folder, require_input
from pipelines.readers.split_names import find_split
from pipelines.readers.splits import WHOLE, Found
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import decode_example
from ssd_dist.core.storage import join
from ssd_dist.core.tfrecord_io import scan_records

# The end of the names of TFRecord files; `-00000-of-00010` may follow.
NAME = re.compile(r"\.(tfrecords?|records?|tfrec)(\.gz)?$", re.IGNORECASE)
SHARD = re.compile(r"[-_.]\d+-of-\d+(?=\.|$)")
# How much of a file is read to recognize it.
HEADER_BYTES = 12
# Bytes of a record besides its content: length and two checksums.
FRAME_BYTES = 16
# Folders in which label maps are, relative to the folder of the records and the one above.
LABEL_MAP_FOLDERS = ("", "annotations", "data")


@dataclass(frozen=True)
class RecordFile:
    """One file.

    Attributes:
      number: its number among the inputs.
      path: path of the file.
      names: names of the classes by number, from the label map.
    """

    number: int
    path: str
    names: Mapping[int, str] = field(default_factory=dict)


def find_splits(path: str, image_dir: str) -> Found[RecordFile] | None:
    """Returns the splits in a folder, a file or a pattern; None if there is no TFRecord file."""
    if beam_storage.is_pattern(path):
        matched = [name for name in beam_storage.match_files(path) if is_tfrecord(name)]
        return _describe({WHOLE: matched}) if matched else None
    require_input(path)
    if beam_storage.is_file(path):
        return _describe({WHOLE: [path]}) if is_tfrecord(path) else None
    folder = list_folder(path)
    candidates = [name for name in folder.names if name.count("/") <= 2 and (NAME.search(name) or SHARD.search(name))]
    names = [name for name in candidates if is_tfrecord(folder.join(name))]
    if not names:
        return None
    return _group_by_split(folder, names)


def count_annotated(found: Found[RecordFile]) -> int:
    """Returns about how many records the files contain, by the length of the first record of each."""
    count = 0
    for path in {file.path for files in found.splits.values() for file in files}:
        with contextlib.suppress(*beam_storage.UNREADABLE), beam_storage.open_plain(path) as stream:
            data, _ = next(scan_records(stream), (b"", ""))
            count += max(1, beam_storage.size(path) // (len(data) + FRAME_BYTES)) if data else 0
    return count


def _group_by_split(folder: Folder, names: Sequence[str]) -> Found[RecordFile]:
    """Returns the files of each split and those of all splits."""
    paths: dict[str, list[str]] = {}
    for name in names:
        paths.setdefault(find_split(name), []).append(folder.join(name))
    others = paths.pop(WHOLE, [])
    if not paths:
        return _describe({WHOLE: others})
    notes = []
    if others:
        listed = ", ".join(beam_storage.path_below(folder.path, path) for path in others)
        notes.append(f"not read: {listed:.200}, whose names contain no split; pass a file as --input to read it")
    for split, (path, *more) in list(paths.items()):
        if len(paths) > 1 and not more and beam_storage.size(path) == 0:
            del paths[split]
            notes.append(f"not read: {beam_storage.path_below(folder.path, path)}, which is an empty file")
    whole = [path for own in paths.values() for path in own]
    found = _describe({**paths, WHOLE: whole})
    return replace(found, notes=(*found.notes, *notes))


def _describe(paths_by_split: Mapping[str, Sequence[str]]) -> Found[RecordFile]:
    maps: dict[str, dict[int, str]] = {}
    splits: dict[str, tuple[RecordFile, ...]] = {}
    for split, paths in paths_by_split.items():
        files = []
        for path in sorted(paths):
            folder = parent_folder(path)
            if folder not in maps:
                maps[folder] = _read_label_map(folder, posixpath.basename(path))
            files.append(RecordFile(0, path, maps[folder]))
        splits[split] = tuple(files)
    unnamed = [file for files in splits.values() for file in files[:1] if _lacks_names(file)][:1]
    notes = [
        f"{file.path}: the records contain numbers of classes and no names, and there is no label map, so the classes "
        "are called class 1, class 2, ...; copy label_map.pbtxt to the folder of the records to name them"
        for file in unnamed
    ]
    is_roboflow = len(splits) > 1 and all(
        find_split(posixpath.basename(file.path)) == "" for files in splits.values() for file in files
    )
    return Found("Roboflow TFRecord export" if is_roboflow else "TFRecord files", splits, notes=tuple(notes))


def _lacks_names(file: RecordFile) -> bool:
    """Returns whether the first record of a file contains a class number without any name."""
    try:
        with beam_storage.open_plain(file.path) as stream:
            data, problem = next(scan_records(stream), (b"", "empty"))
        features = {} if problem else decode_example(data)
        has_labels = len(features.get("image/object/class/label", ())) > 0
        return has_labels and not any(features.get("image/object/class/text", ())) and not file.names
    except (DataError, ValueError, *beam_storage.UNREADABLE):
        # A damaged file is reported when it is read.
        return False


def _read_label_map(folder: str, name: str) -> dict[int, str]:
    """Returns the label map for the files of a folder; empty if there is none.

    A map whose name begins like the file is preferred, then one called label_map, then any other.
    """
    parent = parent_folder(folder)
    stem = SHARD.sub("", name).partition(".")[0]
    for place in (join(base, below) if below else base for below in LABEL_MAP_FOLDERS for base in (folder, parent)):
        paths = [path for path in beam_storage.list_files(place) if path.endswith(".pbtxt")]
        paths.sort(key=lambda path: (not posixpath.basename(path).startswith(stem), "label" not in path, path))
        for path in paths:
            names = parse_label_map(beam_storage.read_text(path))
            if names:
                return names
    return {}


def is_tfrecord(path: str) -> bool:
    """Returns whether a file has the suffix of a TFRecord file, or begins like one."""
    name = posixpath.basename(path)
    if NAME.search(SHARD.sub("", name)):
        return True
    try:
        with beam_storage.open_plain(path) as stream:
            header = stream.read(HEADER_BYTES)
    except (OSError, ValueError):
        return False
    if not header:
        return bool(SHARD.search(name))
    # The header is valid if only the body is missing.
    return [problem for _, problem in scan_records(io.BytesIO(header))] == ["truncated"]
