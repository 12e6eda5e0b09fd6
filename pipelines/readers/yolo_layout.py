"""Finds the images, labels and class names of a YOLO dataset; `readers/yolo.py` describes the layouts."""

import posixpath
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines import beam_storage
from pipelines.classes import find_duplicate
from pipelines.readers.sources import Source, first_folder, parent_folder, require_input
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import join


@dataclass(frozen=True)
class YoloLayout:
    """The files and folders of one input.

    Attributes:
      images: folder of the images, or the folder to which the paths in `list_file` are relative.
      labels: folder of the labels; empty with a `list_file`.
      names: class names, in the order of their numbers.
      list_file: file that lists the images of the split, or empty.
      excluded: folders below `images` and `labels` that belong to other splits.
    """

    images: str
    labels: str
    names: tuple[str, ...]
    list_file: str = ""
    excluded: tuple[str, ...] = ()


def find_layout(path: str, source: Source) -> YoloLayout:
    """Finds the YAML file of an input, and the images and labels of the split.

    Raises:
      DataError: if one of them is missing.
    """
    require_input(path)
    config, content = _find_yaml(path)
    home = parent_folder(config)
    root = home if path == config else path
    bases = list(dict.fromkeys((*_declared_root(home, content), home, root)))
    split = source.split_name
    value = content.get(split)
    names = _parse_class_names(content["names"], config)
    if isinstance(value, list):
        raise DataError(
            f"{config}: {split}: expected one folder or list file, got {len(value)}; prepare each as a split of its own"
        )
    if isinstance(value, str) and value.endswith(".txt"):
        return _find_list(value, bases, config, names, source)
    subfolder = value if isinstance(value, str) and beam_storage.relative_path(value) else f"images/{split}".rstrip("/")
    image_folders = [join(base, subfolder) for base in bases]
    if split:
        image_folders += [join(base, "images", split) for base in bases]
        image_folders += [join(base, split, "images") for base in bases]
    elif any(isinstance(value, str) and value.endswith(".txt") for value in content.values()) and not source.image_dir:
        raise DataError(f"{config}: --split_by cannot divide several list files; choose one with --source_split")
    if source.image_dir:
        image_folders = [source.image_dir]
    of_split = f" of split {split!r}" if split else ""
    images = first_folder(image_folders, f"images{of_split}", "set --source_split or --image_dir")
    inner = subfolder.replace("images", "labels", 1)
    label_folders = [labels_folder(images)]
    label_folders += [join(base, name) for base in bases for name in (inner, f"labels/{split}")]
    labels = first_folder(
        [folder for folder in label_folders if folder != images], f"labels{of_split}", "check --input_format=yolo"
    )
    return YoloLayout(images, labels, names, excluded=_find_other_splits(content, split, bases) if split else ())


def _find_other_splits(content: dict[str, Any], split: str, bases: list[str]) -> tuple[str, ...]:
    """Returns the folders of images that the YAML file defines for other splits, and the folders of their labels."""
    paths = [
        beam_storage.relative_path(value) for key, value in content.items() if key != split and isinstance(value, str)
    ]
    folders = [join(base, path) for base in bases for path in paths if path]
    return tuple(dict.fromkeys([*folders, *map(labels_folder, folders)]))


def _declared_root(home: str, content: dict[str, Any]) -> tuple[str, ...]:
    """Returns the folder in the YAML file's `path:`, if it is the folder of the file or below it."""
    declared = content.get("path")
    clean = beam_storage.relative_path(declared) if isinstance(declared, str) else None
    return (join(home, clean),) if clean else ()


def _find_list(name: str, bases: list[str], config: str, names: tuple[str, ...], source: Source) -> YoloLayout:
    clean = beam_storage.relative_path(name)
    for base in bases:
        if clean is not None and beam_storage.is_file(join(base, clean)):
            images = first_folder([source.image_dir], "images", "check --image_dir") if source.image_dir else base
            return YoloLayout(images, "", names, join(base, clean))
    raise DataError(f"{config}: the list file {name} is not in {' or '.join(bases)}; add it")


def labels_folder(images: str) -> str:
    """Returns the folder of the labels of a folder of images.

    The last part of the path that begins with `images` is replaced: `images/train` gives `labels/train` and
    `images_train` gives `labels_train`. A path without such a part is returned unchanged.
    """
    parts = images.split("/")
    for index in reversed(range(len(parts))):
        if parts[index].startswith("images"):
            return "/".join([*parts[:index], "labels" + parts[index].removeprefix("images"), *parts[index + 1 :]])
    return images


def _find_yaml(path: str) -> tuple[str, dict[str, Any]]:
    if path.endswith((".yaml", ".yml")):
        candidates = [path]
    else:
        found = beam_storage.match_below(path, "*.y*ml")
        found += beam_storage.match_below(path, "*", "*.y*ml")
        candidates = sorted(found, key=lambda name: (name.count("/"), posixpath.basename(name) != "data.yaml", name))
    for candidate in candidates:
        try:
            content = yaml.safe_load(beam_storage.read_text(candidate))
        except yaml.YAMLError as error:
            raise DataError(f"{candidate}: not valid YAML: {error}") from None
        if isinstance(content, dict) and "names" in content:
            return candidate, content
    raise DataError(f"--input={path}: no data.yaml with `names:` in the folder or in a folder below it; add one")


def _parse_class_names(names: Any, config: str) -> tuple[str, ...]:
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{config}: names: the indices must be 0 to {len(names) - 1}, each once")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{config}: names: expected a list of class names or `index: name`")
    texts = tuple(str(name) for name in names)
    duplicate = find_duplicate(texts)
    if duplicate is not None:
        raise DataError(f"{config}: names: class {duplicate!r} is listed twice; remove one entry")
    return texts
