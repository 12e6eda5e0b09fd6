"""Finds the folders and lists of images of each split of a YOLO dataset.

A YAML or .data file names them. Folders whose path contains the name of a split are splits too.
"""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines import beam_storage
from pipelines.readers.sources import parent_folder
from pipelines.readers.splits import output_split
from pipelines.readers.yolo_config import YoloConfig, is_split_name, split_in
from pipelines.readers.yolo_files import YoloFiles, is_image_part, swap_images
from ssd_dist.core.storage import is_remote


@dataclass
class Places:
    """Where the images of one split are.

    Attributes:
      folders: folders of images.
      lists: files that list images.
      missing: values of the YAML file that are neither.
    """

    folders: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.folders or self.lists)


def locate_splits(config: YoloConfig, files: YoloFiles) -> dict[str, Places]:
    """Returns where the images of each split of a YAML or .data file are below the dataset."""
    places: dict[str, Places] = {}
    for split, values in config.splits.items():
        own = places[split] = Places()
        for value in values:
            found = _locate(value, split, config, files)
            kind = own.missing if not found else own.lists if found in files.texts else own.folders
            kind.append(found or value)
    return places


def locate_outside(config: YoloConfig, places: Mapping[str, Places], files: YoloFiles) -> list[str]:
    """Searches for missing folders where the YAML file points to, outside of the dataset; returns facts to announce."""
    notes = []
    for split, own in places.items():
        for value in list(own.missing):
            path = _find_outside(value, config, files)
            if path:
                own.missing.remove(value)
                own.folders.append(path)
                notes.append(f"{config.path}: {split}: the images are read from {path}")
    return notes


def list_tails(path: str) -> list[str]:
    """Returns a path as a relative one, then with fewer and fewer of its leading folders.

    A folder or file that has the name of a split stays, because another split must not be found instead.

    >>> list_tails("../data/train/images")
    ['data/train/images', 'train/images']
    """
    parts = [
        part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..") and not part.endswith(":")
    ]
    named = [row for row, part in enumerate(parts) if is_split_name(split_in(part.removesuffix(".txt")))]
    last = named[-1] if named else len(parts) - 1
    return ["/".join(parts[first:]) for first in range(last + 1)] or [""]


def _locate(value: str, split: str, config: YoloConfig, files: YoloFiles) -> str:
    """Returns the folder or list file below the dataset that a value of the YAML file names; empty without one.

    Roboflow writes `../valid/images` for a folder beside the file, and many files have absolute paths of the machine on
    which they were written. Therefore leading folders are omitted until the path exists.
    """
    homes = [config.home, files.root]
    declared = [posixpath.join(base, tail) for tail in list_tails(config.declared) if tail for base in homes]
    bases = [*[path for path in declared if files.image_counts.get(path)][:1], *homes]
    candidates = [posixpath.join(base, tail) if tail else base for tail in list_tails(value) for base in bases]
    if value.lower().endswith(".txt"):
        return next((path for path in candidates if path in files.texts), "")
    if files.has_image_dir:
        names = [*list_tails(value), split, ""]
        candidates = [posixpath.join(files.image_root, name) if name else files.image_root for name in names]
    return next((path for path in candidates if files.image_counts.get(path)), "")


def _find_outside(value: str, config: YoloConfig, files: YoloFiles) -> str:
    """Returns the folder outside of the dataset that a value of the YAML file names; empty without one.

    Folders that contain the dataset, and folders with unusual names, are not listed, because they may be large.
    """
    parts = value.replace("\\", "/").split("/")
    is_usual = any(is_image_part(part) or is_split_name(part) for part in parts)
    if files.has_image_dir or is_remote(files.root) or not is_usual or value.lower().endswith(".txt"):
        return ""
    bases = [posixpath.join(config.home, config.declared), config.home]
    if files.is_file:
        # Tasks that share images have their YAML files in folders beside that of the images.
        bases.append(parent_folder(posixpath.abspath(config.home)))
    root = f"{posixpath.abspath(files.root)}/"
    for base in bases:
        path = posixpath.normpath(posixpath.join(base, value))
        own = f"{posixpath.abspath(path)}/"
        if root.startswith(own) or own.startswith(root) or not beam_storage.exists(path):
            continue
        files.add(path)
        for labels in swap_images(path):
            files.add_labels(labels)
        if files.image_counts.get(path):
            return path
    return ""


def group_by_split(files: YoloFiles, known: Mapping[str, Places]) -> dict[str, Places]:
    """Returns the folders of images by the split in their path, except those of splits that are already known.

    With `--image_dir`, the paths of the labels name the splits. They also do if no folder of images names one:
    `labels/train` and `labels/val` with their images in one folder `images`, which all these splits then share.
    """
    found = _group_by_folder(files, known, by_labels=files.has_image_dir)
    if found or known or files.has_image_dir:
        return found
    found = _group_by_folder(files, known, by_labels=True)
    return found if len(found) > 1 else {}


def _group_by_folder(files: YoloFiles, known: Mapping[str, Places], by_labels: bool) -> dict[str, Places]:
    """Returns the folders of images by the split in their path, or in that of their labels."""
    folders = {posixpath.dirname(path) for path in (files.texts if by_labels else files.images)}
    inner_by_prefix: dict[tuple[str, str], set[str]] = {}
    for folder in folders:
        parts = [part for part in beam_storage.path_below(files.root, folder).split("/") if part]
        named = [row for row, part in enumerate(parts) if is_split_name(split_in(part))]
        if named and f"{folder}/".startswith(f"{files.root.rstrip('/')}/"):
            prefix, rest = "/".join(parts[: named[-1] + 1]), parts[named[-1] + 1 :]
            inner = rest[0] if rest and is_image_part(rest[0]) else ""
            inner_by_prefix.setdefault((split_in(parts[named[-1]]), prefix), set()).add(inner)
    covered = [f"{folder}/" for own in known.values() for folder in own.folders]
    names = {output_split(split) for split in known}
    found: dict[str, Places] = {}
    for split, prefix in sorted(inner_by_prefix, key=_split_order):
        inner_folders = inner_by_prefix[split, prefix]
        below = posixpath.join(prefix, *inner_folders) if len(inner_folders) == 1 else prefix
        if by_labels and not files.has_image_dir:
            folder = _find_shared_folder(files, posixpath.join(files.root, prefix))
        else:
            folder = _find_image_folder(files, below.rstrip("/"), split)
        is_covered = any(f"{folder}/".startswith(other) or other.startswith(f"{folder}/") for other in covered)
        if folder and not is_covered and output_split(split) not in names:
            found.setdefault(split, Places()).folders.append(folder)
    return found


def _split_order(key: tuple[str, str]) -> tuple[int, str, str]:
    """Orders training splits first, then validation, then test, then by name."""
    split, prefix = key
    return ("train", "val", "test").index(output_split(split)), split, prefix


def _find_shared_folder(files: YoloFiles, labels: str) -> str:
    """Returns the first folder of images that has labels in a folder; empty if there is none."""
    return next((folder for folder in files.image_folders() if files.has_pairs(folder, labels)), "")


def _find_image_folder(files: YoloFiles, below: str, split: str) -> str:
    """Returns the folder of images of a folder that has the name of a split; empty if there are no images."""
    if not files.has_image_dir:
        return posixpath.join(files.root, below)
    names = (f"images/{split}", f"{split}/images", split, "")
    candidates = [posixpath.join(files.image_root, name) if name else files.image_root for name in names]
    return next((path for path in candidates if files.image_counts.get(path)), "")
