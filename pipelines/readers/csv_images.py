"""Finds the folder of the images of a CSV file."""

import posixpath
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pipelines import beam_storage
from pipelines.annotations import IMAGE_SUFFIXES
from pipelines.readers.csv_class_names import read_class_names
from pipelines.readers.csv_files import CsvFile, read_examples
from pipelines.readers.folder import Folder, is_image, list_folder
from pipelines.readers.image_index import ImageIndex, narrow_folder
from pipelines.readers.sources import first_folder, parent_folder
from ssd_dist.core.storage import join

SUFFIXES = tuple(f"{suffix}{end}" for suffix in (".csv", ".tsv") for end in ("", ".gz"))
# Files of boxes in these folders belong to the folder above.
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "csv", "csv_folder", "data")
IMAGE_FOLDERS = ("images", "imgs", "img", "image", "data", "JPEGImages")


def find_images(
    file: CsvFile, folder: Folder | None, image_dir: str, list_numbers: Callable[[], Iterable[int]] = tuple
) -> CsvFile:
    """Returns the file with the folder of its images, the first one that contains an image of the file.

    Args:
      file: the file.
      folder: the listing of the input; None if the input is a file.
      image_dir: value of `--image_dir`.
      list_numbers: returns the class numbers in all files of the dataset.

    Raises:
      DataError: if no folder contains images.
    """
    home = parent_folder(file.path)
    is_nested = posixpath.basename(home).lower() in ANNOTATION_FOLDERS or (folder is not None and home != folder.path)
    dataset = parent_folder(home) if is_nested and posixpath.basename(home) else home
    examples = read_examples(file)
    file = read_class_names(file, folder, (home, dataset), SUFFIXES, list_numbers)
    file = replace(file, dataset="" if image_dir else home)
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
    if found := [path for name in examples for path in index.find(name)[:1]]:
        return replace(file, images=narrow_folder(root, file.file_split, found), is_indexed=True)
    return replace(file, images=first_folder(candidates, "images", "pass their folder as --image_dir"))


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
    if folder is not None and is_below(images, folder.path):
        return any(_contains(folder.names, beam_storage.path_below(folder.path, path)) for path in candidates)
    return any(map(beam_storage.is_file, candidates))


def is_below(path: str, folder: str) -> bool:
    """Returns whether a path is the folder or below it."""
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _contains(names: Sequence[str], name: str) -> bool:
    """Returns whether sorted names contain a name."""
    place = bisect_left(names, name)
    return place < len(names) and names[place] == name
