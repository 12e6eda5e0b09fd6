"""Reads the files that describe a YOLO dataset: its class names and where its splits are.

data.yaml, dataset.yaml, *.yaml    Ultralytics, Roboflow, CVAT: names:, nc:, path:, train:, val:, test:
obj.data, *.data                   Darknet and CVAT YOLO 1.1: names =, train =, valid =
obj.names, *.names, _darknet.labels, classes.txt, predefined_classes.txt    one class name per line
notes.json                         Label Studio: categories
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines import beam_storage
from pipelines.classes import find_duplicate
from pipelines.readers.folder import Folder
from pipelines.readers.json_values import load_json
from pipelines.readers.sources import parent_folder
from pipelines.readers.splits import SYNONYMS, output_split
from pipelines.text_encoding import decode_text
from pipelines.yaml_files import read_yaml
from ssd_dist.core.errors import DataError

YAML_SUFFIXES = (".yaml", ".yml")
# The usual names of the YAML file; other YAML files in a folder are often settings of a tool.
USUAL_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
MAX_YAML_FILES = 64
MAX_CLASSES = 100_000
# Keys of YAML and .data files that define no split, although their value is text.
OTHER_KEYS = {
    *("path", "names", "nc", "classes", "backup", "download", "yaml_file", "description", "license", "url", "author"),
    *("date", "version", "task", "stride", "imgsz", "batch", "channels", "roboflow", "kpt_shape", "flip_idx", "model"),
    *("weights", "project", "name", "results", "eval", "top", "labels", "colors"),
}
# In the order in which they are preferred in a folder.
CLASS_FILES = (
    *("obj.names", "*.names", "_darknet.labels", "classes.txt", "obj_names.txt", "predefined_classes.txt"),
    *("class_names.txt", "classes.names", "notes.json"),
)
# Text files that are not labels, although they are in a folder with labels.
NOT_LABELS = re.compile(
    r"(classes|class_names|obj_names|predefined_classes|labels|train|val|valid|test|trainval|notes|license|readme.*|"
    r"requirements.*)\.txt",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class YoloConfig:
    """The content of a YAML or .data file.

    Attributes:
      path: path of the file; empty if there is none.
      home: folder of the file, to which its paths are relative.
      names: class names by class number; empty if the file has none.
      splits: folders and list files of each split, as written in the file.
      declared: value of `path:`, the folder of the dataset.
      keypoint_numbers: numbers per object that describe keypoints.
      is_roboflow: whether Roboflow wrote the file.
      notes: facts to announce.
    """

    path: str
    home: str
    names: tuple[str, ...] = ()
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    declared: str = ""
    keypoint_numbers: int = 0
    is_roboflow: bool = False
    notes: tuple[str, ...] = ()


def find_configs(folder: Folder) -> list[YoloConfig]:
    """Returns the YAML and .data files of YOLO datasets in a folder, the most likely one first.

    Raises:
      DataError: if a file with one of the usual names is not valid.
    """
    patterns = [f"{depth}*{suffix}" for depth in ("", "*/", "*/*/") for suffix in YAML_SUFFIXES]
    names = sorted(
        folder.find(*patterns),
        key=lambda name: (name.count("/"), posixpath.basename(name).lower() not in USUAL_NAMES, name),
    )
    yaml_files = [config for name in names[:MAX_YAML_FILES] if (config := _try_yaml(folder.join(name)))]
    data_files = [folder.join(name) for name in folder.find("obj.data", "*.data", "*/obj.data", "*/*.data")]
    return [*yaml_files, *(config for name in data_files if (config := read_data_file(name)))]


def _try_yaml(path: str) -> YoloConfig | None:
    is_usual = posixpath.basename(path).lower() in USUAL_NAMES
    try:
        return read_yaml_file(path)
    except DataError:
        if is_usual:
            raise
        return None


def read_yaml_file(path: str) -> YoloConfig | None:
    """Returns the content of a YAML file; None if it does not describe a dataset.

    Raises:
      DataError: if it is not valid YAML, or its class names are not usable.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        return None
    splits = dict(_find_split_values(content))
    # The YAML file of a model has the number of classes too, but no splits.
    if "names" not in content and not ("nc" in content and splits):
        return None
    names, notes = _read_yaml_names(content, path)
    declared = content.get("path")
    return YoloConfig(
        path=path,
        home=parent_folder(path),
        names=names,
        splits=splits,
        declared=declared if isinstance(declared, str) else "",
        keypoint_numbers=_count_keypoint_numbers(content.get("kpt_shape")),
        is_roboflow="roboflow" in content,
        notes=tuple(notes),
    )


def _find_split_values(content: Mapping[Any, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields each key whose value may be folders or list files of a split."""
    for key, value in content.items():
        values = value if isinstance(value, list) else [value]
        texts = tuple(text.strip() for text in values if isinstance(text, str) and text.strip() and "\n" not in text)
        if isinstance(key, str) and key.lower() not in OTHER_KEYS and texts and len(texts) == len(values):
            yield key, texts


def is_split_name(name: str) -> bool:
    """Returns whether a name is one that splits have: `train`, `valid`, `val2017`, ..."""
    return output_split(name) in SYNONYMS


def split_in(name: str) -> str:
    """Returns the split that the name of a folder contains: `train` for CVAT's `obj_train_data`."""
    match = re.fullmatch(r"obj_(.+)_data", name, re.IGNORECASE)
    return match[1] if match else name


def _read_yaml_names(content: Mapping[Any, Any], path: str) -> tuple[tuple[str, ...], list[str]]:
    """Returns the class names of a YAML file, and facts to announce."""
    count = _to_count(content.get("nc"))
    names = content.get("names")
    if names is None:
        if count is None:
            raise DataError(f"{path}: names: the class names are missing; add names: [first, second]")
        return _number_classes(count), [f"{path} has no class names; the classes are named by their numbers"]
    if isinstance(names, str):
        return _read_names_file(names, path), []
    texts = _parse_names(names, path)
    if count is not None and count != len(texts):
        return texts, [f"{path}: nc is {count}, but names has {len(texts)} classes; names is used"]
    return texts, []


def _number_classes(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def _parse_names(names: Any, path: str) -> tuple[str, ...]:
    if isinstance(names, dict):
        names = {_to_count(key): name for key, name in names.items()}
        if None in names or set(names) != set(range(len(names))):
            raise DataError(f"{path}: names: the indices must be 0 to {len(names) - 1}, each once")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"{path}: names: expected a list of class names or `index: name`")
    return _require_distinct([str(name) for name in names], path)


def _require_distinct(names: list[str], path: str) -> tuple[str, ...]:
    if not all(name.strip() for name in names):
        raise DataError(f"{path}: names: a class has no name; give it one")
    duplicate = find_duplicate(names)
    if duplicate is not None:
        raise DataError(f"{path}: names: class {duplicate!r} is listed twice; remove one entry")
    return tuple(names)


def _to_count(value: Any) -> int | None:
    """Returns a number or the text of one as an integer from 0 to `MAX_CLASSES`; None for anything else."""
    text = str(value).strip()
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None
    return number if number is not None and number <= MAX_CLASSES else None


def _count_keypoint_numbers(shape: Any) -> int:
    counts = [_to_count(size) for size in shape] if isinstance(shape, list) else []
    return (counts[0] or 0) * (counts[1] or 0) if len(counts) == 2 else 0


def _read_names_file(name: str, config: str) -> tuple[str, ...]:
    """Returns the class names in the file that a YAML or .data file names."""
    home = parent_folder(config)
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for first in range(len(parts)):
        path = posixpath.join(home, *parts[first:])
        if beam_storage.is_file(path):
            return read_class_file(path)
    raise DataError(f"{config}: names: expected a list of class names, `index: name` or a file, got {name!r:.100}")


def read_data_file(path: str) -> YoloConfig | None:
    """Returns the content of a .data file of Darknet; None if it is another file.

    Raises:
      DataError: if the file of its class names is missing.
    """
    try:
        text = decode_text(beam_storage.read_span(path, 0, 1 << 16))
    except (OSError, ValueError):
        return None
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
    content = {key.strip(): value.strip() for key, _, value in pairs}
    splits = dict(_find_split_values(content))
    if not ("names" in content and splits):
        return None
    return YoloConfig(path, parent_folder(path), _read_names_file(content["names"], path), splits)


def find_class_file(files: Mapping[str, list[str]], folders: list[str]) -> str:
    """Returns the first file of class names in the first of the folders that has one; empty if there is none.

    Args:
      files: names of the possible files by folder, see `list_class_files`.
      folders: the folders, in the order in which they are searched.
    """
    return next((posixpath.join(folder, files[folder][0]) for folder in folders if files.get(folder)), "")


def list_class_files(folder: Folder) -> dict[str, list[str]]:
    """Returns the files of class names by folder, the most likely one first."""
    files: dict[str, list[str]] = {}
    for name in folder.find(*(f"**/{pattern}" for pattern in CLASS_FILES)):
        path = folder.join(name)
        files.setdefault(posixpath.dirname(path), []).append(posixpath.basename(path))
    return files


def read_class_file(path: str) -> tuple[str, ...]:
    """Returns the class names in a file with one per line, or in Label Studio's notes.json.

    The number of a class is its line number, so an empty line within the file is an error.

    Raises:
      DataError: if there are no class names, or one of them occurs twice.
    """
    try:
        text = decode_text(beam_storage.read_item(path))
        lines = _read_categories(text) if path.endswith(".json") else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the class names cannot be read: {error}") from None
    while lines and not lines[-1]:
        lines.pop()
    if not all(lines):
        raise DataError(f"{path}: line {lines.index('') + 1} is empty; the line number of a class is its number")
    if not lines:
        raise DataError(f"{path}: the file contains no class names; write one name per line")
    return _require_distinct(lines, path)


def _read_categories(text: str) -> list[str]:
    """Returns the class names in Label Studio's notes.json, in the order of their ids."""
    content = load_json(text)
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, list) or not all(isinstance(item, dict) for item in categories):
        raise ValueError("expected a list of categories with id and name")
    names = {_to_count(item.get("id")): str(item.get("name")) for item in categories}
    if None in names or set(names) != set(range(len(names))):
        raise ValueError(f"the ids of the categories must be 0 to {len(categories) - 1}, each once")
    return [names[number] for number in range(len(names))]
