"""Reads COCO annotations: one JSON file of any size with images, annotations and categories.

The file is read once, as a stream. Images and annotations are emitted in file order and joined later by image id, so
the file is never held in memory.

    DIR/annotations/instances_SPLIT.json  DIR/SPLIT/*                   COCO itself
    DIR/SPLIT/_annotations.coco.json  DIR/SPLIT/*                       Roboflow
    DIR/annotations/instances_default.json  DIR/images/[default/]*      CVAT
    DIR/result.json  DIR/images/*                                       Label Studio
    DIR/[SPLIT/]labels.json  DIR/[SPLIT/]data/*                         FiftyOne
    DIR/SPLIT/labels.json  DIR/SPLIT/images/*                           MediaPipe Model Maker
    DIR/SPLIT.json  DIR/SPLIT/* or DIR/images/[SPLIT/]*                 others

`--input` is DIR, a JSON file or a pattern, and may be repeated. The images are searched for in the folder that contains
the first images of the file. A box is `bbox`, x, y, width and height in pixels; without it, the box around the
polygons of `segmentation`.
"""

import io
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, SeparateBox, make_elements
from pipelines.json_stream import JsonStreamError, stream_arrays
from pipelines.readers.folder import Folder, list_folder
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Location, Source, first_folder, locate_image, parent_folder, require_input
from pipelines.readers.splits import SYNONYMS, WHOLE, Found, choose_split, output_split
from pipelines.readers.unlisted import ImageFolder
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import join

SUFFIXES = (".json", ".json.gz")
# Names that do not give the split.
PLAIN_NAMES = ("", "annotations", "annotation", "labels", "result", "coco", "instances", "default", "data", "images")
# Annotation files in these folders belong to the folder above.
ANNOTATION_FOLDERS = ("annotations", "annotation")
# COCO's files of other tasks, which repeat the images of `instances_*.json`.
OTHER_TASKS = re.compile(r"(person_keypoints|captions|stuff|panoptic|image_info)_")
# How much of a file is read to recognise it and to find its images.
HEAD_BYTES = 1 << 20
EXAMPLES = 4
# A folder with more JSON files has one per image, which is not COCO's format.
MAX_FILES = 64


@dataclass(frozen=True)
class CocoFile:
    """One annotation file.

    Attributes:
      number: its number among the inputs.
      path: path of the file.
      images: folder of the images.
      dataset: folder of the dataset, to which file names may be relative as well; empty if `--image_dir` is given.
      is_only_owner: whether no other annotation file uses the folder of the images, so that every image in it must be
        listed in this file.
    """

    number: int
    path: str
    images: str
    dataset: str = ""
    is_only_owner: bool = False


def read_coco(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the annotation files and the image folders.

    Raises:
      DataError: if one of them is missing.
    """
    return ReadAnnotations(partial(list, find_files(source)), partial(read_file, source=source))


def find_files(source: Source) -> list[CocoFile]:
    """Returns the annotation files of the split in all inputs.

    Raises:
      DataError: if an annotation file or a folder of images is missing.
    """
    files: list[CocoFile] = []
    for path in source.inputs:
        found = find_splits(path, source.image_dir)
        if found is None:
            raise DataError(f"--input={path}: {_explain_missing(path)}")
        files += choose_split(found, source, path)
    return [replace(file, number=number) for number, file in enumerate(files)]


def find_splits(path: str, image_dir: str) -> Found[CocoFile] | None:
    """Returns the splits in a folder, an annotation file or a pattern; None if there is no COCO file.

    Raises:
      DataError: if the images of an annotation file are in no folder.
    """
    if beam_storage.is_pattern(path):
        matched = [name for name in beam_storage.match_files(path) if is_coco(name)]
        return _describe({WHOLE: matched}, path, image_dir) if matched else None
    require_input(path)
    if beam_storage.is_file(path):
        return _describe({WHOLE: [path]}, path, image_dir) if is_coco(path) else None
    folder = list_folder(path)
    files_by_split = _group_by_split(folder)
    return _describe(files_by_split, path, image_dir) if files_by_split else None


def _group_by_split(folder: Folder) -> dict[str, list[str]]:
    """Returns the paths of the annotation files in a folder by the split in their name."""
    candidates = folder.find(
        *("annotations/instances_*.json", "annotations/*.json", "*.json", "*/_annotations.coco.json"),
        *("*/labels.json", "*/annotations/*.json", "*/*.json", "*.json.gz", "annotations/*.json.gz"),
    )
    by_folder: dict[str, int] = {}
    for name in candidates:
        by_folder[posixpath.dirname(name)] = by_folder.get(posixpath.dirname(name), 0) + 1
    candidates = [name for name in candidates if by_folder[posixpath.dirname(name)] <= MAX_FILES]
    files: dict[str, list[str]] = {}
    for name in candidates:
        # The first file of a split is used; COCO's files of other tasks follow it in the order of the patterns.
        split = split_in_name(name)
        other_task = OTHER_TASKS.match(posixpath.basename(name))
        if split not in files and not other_task and is_coco(folder.join(name)):
            files[split] = [folder.join(name)]
    if len(files) == 1:
        (split,) = files
        # A single file with another name, such as my_project.json, contains the whole dataset.
        if output_split(split) not in SYNONYMS:
            return {WHOLE: files[split]}
    return {split: paths for split, paths in files.items() if split or len(files) == 1}


def split_in_name(name: str) -> str:
    """Returns the split in the name of an annotation file, from its stem or else from its folder; may be empty."""
    stem = posixpath.basename(name).partition(".")[0].strip("_")
    stem = re.sub(r"^(instances|annotations|labels|coco)_|_(annotations|labels|coco|instances)$", "", stem)
    if stem.lower() not in PLAIN_NAMES:
        return stem
    folders = [part for part in posixpath.dirname(name).split("/") if part.lower() not in PLAIN_NAMES]
    return folders[-1] if folders else WHOLE


def is_coco(path: str) -> bool:
    """Returns whether a file begins like a COCO file: a JSON object with `images` or `annotations`.

    `categories` alone are in the notes.json of Label Studio's YOLO export too.
    """
    if not path.lower().endswith(SUFFIXES):
        return False
    try:
        with beam_storage.open_input(path) as stream:
            head = stream.read(HEAD_BYTES).decode("utf-8-sig", "ignore").lstrip()
    except beam_storage.UNREADABLE:
        head = ""
    # A damaged file with the name of a COCO file is reported when it is read.
    if re.match(r"instances_|_annotations\.coco\.", posixpath.basename(path)):
        return True
    if re.search(r'"items"\s*:\s*\[', head) and not re.search(r'"images"\s*:\s*\[', head):
        # The items of a Datumaro dataset contain their annotations.
        return False
    return head.startswith("{") and bool(re.search(r'"(images|annotations)"\s*:\s*\[', head))


def _describe(files_by_split: dict[str, list[str]], path: str, image_dir: str) -> Found[CocoFile]:
    """Returns the splits with the image folder of each annotation file."""
    splits = {
        split: tuple(_find_file(name, split, image_dir) for name in names) for split, names in files_by_split.items()
    }
    everything = [file for files in splits.values() for file in files]
    folders = [file.images for file in everything]
    for split, files in splits.items():
        splits[split] = tuple(replace(file, is_only_owner=_is_only_owner(file, folders)) for file in files)
    counts = {split: _count_images(files) for split, files in splits.items()}
    return Found(_name_tool(everything, path), splits, {name: n for name, n in counts.items() if n})


def _is_only_owner(file: CocoFile, folders: list[str]) -> bool:
    """Returns whether the folder of the images of a file neither contains nor is below that of another file."""
    if len(folders) == 1:
        siblings = [name for name in beam_storage.list_files(parent_folder(file.path)) if name.endswith(SUFFIXES)]
        return len(siblings) <= MAX_FILES and not any(name != file.path and is_coco(name) for name in siblings)
    own = f"{file.images}/"
    return sum(own.startswith(f"{other}/") or f"{other}/".startswith(own) for other in folders) == 1


def _name_tool(files: list[CocoFile], path: str) -> str:
    """Returns the tool that wrote the files, by their names."""
    names = {posixpath.basename(file.path) for file in files}
    images = {posixpath.basename(file.images) for file in files}
    if "_annotations.coco.json" in names:
        return "Roboflow COCO export"
    if names == {"instances_default.json"}:
        return "CVAT COCO export"
    if names == {"result.json"}:
        return "Label Studio COCO export"
    if names == {"labels.json"}:
        return "FiftyOne COCO export" if images == {"data"} else "MediaPipe Model Maker dataset"
    if all(re.match(r"instances_(train|val|test)\d{4}\.", name) for name in names):
        return "COCO dataset"
    return (
        f"COCO annotations {posixpath.basename(path)}"
        if len(files) == 1 and files[0].path == path
        else "COCO annotations"
    )


def _count_images(files: Sequence[CocoFile]) -> int:
    return sum(list_folder(file.images).count_images("") for file in files)


def _explain_missing(path: str) -> str:
    """Returns why an input contains no COCO file, and how to fix it."""
    if beam_storage.is_pattern(path):
        return "the pattern matches no COCO file; check the pattern"
    if beam_storage.is_file(path):
        return "not a COCO file (a JSON object with images, annotations and categories); use --input_format=auto"
    return (
        "the folder contains no COCO file (annotations/instances_SPLIT.json, SPLIT/_annotations.coco.json, SPLIT.json, "
        "labels.json, result.json); pass the file as --input"
    )


def _find_file(path: str, split: str, image_dir: str) -> CocoFile:
    dataset = find_dataset(path)
    images = find_images(path, dataset, split, image_dir)
    return CocoFile(0, path, images, "" if image_dir else dataset)


def find_images(path: str, dataset: str, split: str, image_dir: str) -> str:
    """Returns the folder of the images of an annotation file: the first one that contains an image of the file.

    Args:
      path: the annotation file.
      dataset: folder of the dataset.
      split: name of the split; empty if there is none.
      image_dir: value of `--image_dir`.

    Raises:
      DataError: if no folder contains images.
    """
    if image_dir:
        return first_folder([image_dir], "images", "check --image_dir")
    home = parent_folder(path)
    name = split or split_in_name(path)
    names = dict.fromkeys(
        (name, f"images/{name}", f"{name}/images", f"{name}/data", "images/default", "images", "data")
    )
    folders = [join(base, below) if below else base for base in (dataset, home) for below in names]
    folders = list(dict.fromkeys([*folders, home, dataset]))
    examples = read_file_names(path)
    for folder in folders:
        if any(beam_storage.is_file(locate_image(folder, example).path) for example in examples):
            return folder
    return first_folder(folders, "images", "pass their folder as --image_dir")


def read_file_names(path: str) -> list[str]:
    """Returns the first file names in an annotation file; empty if the beginning of the file contains none."""
    names: list[str] = []
    try:
        with beam_storage.open_input(path) as stream:
            head = io.BytesIO(stream.read(HEAD_BYTES))
        for _, _, item in stream_arrays(head, ("images",)):
            if isinstance(item, dict) and isinstance(item.get("file_name"), str):
                names.append(item["file_name"])
            if len(names) == EXAMPLES:
                break
    except (JsonStreamError, *beam_storage.UNREADABLE):
        # The head ends within an entry, or the file is damaged, which is reported when it is read.
        pass
    return names


def find_dataset(path: str) -> str:
    """Returns the folder of the dataset of an annotation file."""
    folder = parent_folder(path)
    return parent_folder(folder) if posixpath.basename(folder) in ANNOTATION_FOLDERS else folder


def read_file(file: CocoFile, source: Source) -> Iterator[Element]:
    """Yields the elements of one annotation file."""
    return make_elements(read_entries(file, source))


def read_entries(file: CocoFile, source: Source) -> Iterator[Image | SeparateBox | Category | Listing]:
    """Yields the categories, images and boxes in file order, then the end of the listing.

    Raises:
      DataError: if storage fails before the end of the file.
    """
    rows = 0
    has_images = False
    problem = None
    folder = ImageFolder(file.images) if file.is_only_owner else None
    placeholder = _Placeholder()
    try:
        with beam_storage.open_input(file.path) as stream:
            for array, index, item in stream_arrays(stream, ("categories", "images", "annotations")):
                if array == "categories":
                    category = parse_category(item, index, file)
                    if not placeholder.holds(category, item):
                        yield category
                elif array == "images":
                    has_images = True
                    image = parse_image(item, index, rows, file)
                    if folder is not None:
                        folder.mark_listed(image)
                    if source.includes(image.image_id):
                        yield image
                        rows += 1
                else:
                    box = parse_box(item, index, file)
                    placeholder.count(box.box)
                    if source.includes(box.image_id):
                        yield box
        if not has_images:
            raise DataError("the file contains no images")
    except (JsonStreamError, DataError, OSError) as error:
        beam_storage.require_damage(error, file.path)
        # The rest of the file is lost, so the images read so far may lack boxes. All images of the file are rejected.
        # One more entry represents the images that were not read.
        problem = Problem("broken_annotation", f"{file.path}: {error}")
        yield Image(f"the rest of {file.path}", file.number, rows, file.path, "", "", problem=problem)
        rows += 1
    yield from placeholder.release()
    if folder is not None and problem is None:
        for image in folder.make_images(source, file.number, rows, file.path):
            yield image
            rows += 1
    yield Listing(file.number, rows, file.path, problem)


class _Placeholder:
    """Omits the category 0 that tools add without any box: Roboflow's supercategory, Model Maker's background."""

    def __init__(self) -> None:
        self._category: Category | None = None
        self._parents: set[object] = set()
        self._is_used = False

    def holds(self, category: Category, item: dict[str, Any]) -> bool:
        """Returns whether the category is held back until its boxes are known."""
        self._parents.add(item.get("supercategory"))
        if category.order == 0:
            self._category = category
        return category.order == 0

    def count(self, box: Box) -> None:
        """Notices a box of the category."""
        self._is_used |= self._category is not None and box.category == self._category.key

    def release(self) -> Iterator[Category]:
        """Yields the category, unless it is a placeholder without boxes."""
        category = self._category
        if category is None:
            return
        is_parent = category.name in self._parents or category.name.lower().strip("_") == "background"
        if self._is_used or not is_parent:
            yield category


def parse_category(item: Any, index: int, file: CocoFile) -> Category:
    """Parses one entry of `categories`; ids may have gaps, labels are assigned in the order of the ids.

    Raises:
      DataError: if the id or the name is missing, because the labels would then be unknown.
    """
    try:
        return Category(_category_key(item["id"], file), int(item["id"]), str(item["name"]))
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"categories[{index}] needs an integer id and a name ({error!r}): {item!r:.200}") from None


def parse_image(item: Any, index: int, row: int, file: CocoFile) -> Image:
    """Parses one entry of `images`; missing fields and wrong types become the problem of the image."""
    entry = item if isinstance(item, dict) else {}
    image_id, filename = _normalize_id(entry.get("id")), entry.get("file_name")
    if isinstance(image_id, int | str) and isinstance(filename, str) and filename:
        location = locate_image(file.images, filename, dataset=file.dataset)
    else:
        detail = f"images[{index}] needs an id and a file_name: {item!r:.200}"
        location = Location(problem=Problem("broken_annotation", detail))
    return Image(
        image_id=f"images[{index}] of {file.path}" if image_id is None else str(image_id),
        file=file.number,
        row=row,
        source=file.path,
        filename=str(filename or ""),
        path=location.path,
        stems=location.stems,
        size=_parse_size(entry.get("height"), entry.get("width")),
        problem=location.problem,
    )


def parse_box(item: Any, index: int, file: CocoFile) -> SeparateBox:
    """Parses one entry of `annotations`; `bbox` is x, y, width, height in pixels."""
    where = f"annotations[{index}]"
    entry = item if isinstance(item, dict) else {}
    given = entry.get("bbox")
    corners = _parse_bbox(given) or (None if given else _enclose_polygons(entry.get("segmentation")))
    if corners is None:
        problem = Problem("broken_box", f"bbox: expected four numbers, got {given!r:.200}")
        box = Box("", (0, 0, 0, 0), where, problem=problem)
    else:
        area = _parse_number(entry.get("area"))
        box = Box(
            _category_key(entry.get("category_id"), file),
            corners,
            where,
            is_crowd=entry.get("iscrowd") in (1, True),
            area=area if area is not None and 0 < area < math.inf else None,
            is_reduced=not given,
        )
    return SeparateBox(str(_normalize_id(entry.get("image_id"))), file.number, index, file.path, box)


def _parse_bbox(given: Any) -> tuple[float, float, float, float] | None:
    """Returns ymin, xmin, ymax, xmax of a list of x, y, width and height; None if they are not four numbers."""
    numbers = [_parse_number(value) for value in given] if isinstance(given, list) else []
    if len(numbers) != 4 or None in numbers:
        return None
    x, y, width, height = (number for number in numbers if number is not None)
    return y, x, y + height, x + width


def _enclose_polygons(polygons: Any) -> tuple[float, float, float, float] | None:
    """Returns the box around polygons, each a list x, y, x, y, ...; None if there are none."""
    flat = [_parse_number(value) for polygon in polygons for value in _to_list(polygon)] if polygons else []
    numbers = [number for number in flat if number is not None]
    if len(numbers) < 6 or len(numbers) % 2 or len(numbers) < len(flat):
        return None
    return min(numbers[1::2]), min(numbers[::2]), max(numbers[1::2]), max(numbers[::2])


def _to_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _category_key(category: Any, file: CocoFile) -> str:
    return f"{file.number}/{_normalize_id(category)}"


def _normalize_id(value: Any) -> Any:
    """Returns whole floats as integers, because pandas writes 1 as 1.0 in a column with gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parse_number(value: Any) -> float | None:
    """Returns a JSON number, or a text that contains a number, as a float; else None.

    Roboflow writes numbers as texts in some exports. NaN and infinities, which Python's JSON parser accepts, are
    returned: validation rejects them with their own reason.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def _parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Returns (height, width) according to the annotation; None if one is missing or 0."""
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return None
