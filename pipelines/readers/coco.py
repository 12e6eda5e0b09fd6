"""Reads COCO annotations: one JSON file of any size with images, annotations and categories.

The file is read once, as a stream. Images and annotations are emitted in file order and joined later by image id, so
the file is never held in memory.

`--input` is a JSON file, a pattern, or a folder that contains `annotations/instances_SPLIT.json`, and may be repeated.
With `--split_by` and without `--source_split`, the folder must contain a single annotation file.
"""

import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, SeparateBox, make_elements
from pipelines.json_stream import JsonStreamError, stream_arrays
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import (
    Location,
    Source,
    find_annotation_files,
    find_images,
    locate_image,
    parent_folder,
)
from ssd_dist.core.errors import DataError

SUFFIXES = (".json", ".json.gz")


@dataclass(frozen=True)
class CocoFile:
    """One annotation file.

    Attributes:
      number: its number among the inputs.
      path: path of the file.
      images: folder of the images.
      dataset: folder of the dataset, to which file names may be relative as well; empty if `--image_dir` is given.
    """

    number: int
    path: str
    images: str
    dataset: str = ""


def read_coco(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the annotation files and the image folders.

    Raises:
      DataError: if one of them is missing.
    """
    return ReadAnnotations(partial(list, find_files(source)), partial(read_file, source=source))


def find_files(source: Source) -> list[CocoFile]:
    """Returns the annotation files of all inputs.

    Raises:
      DataError: if an annotation file or a folder of images is missing.
    """
    split = source.split_name
    names = (f"annotations/instances_{split}.json", f"annotations/{split}.json", f"{split}.json", "annotations.json",
             f"{split}/_annotations.coco.json")  # fmt: skip
    any_names = ("annotations/instances_*.json", "annotations/*.json", "annotations.json", "*/_annotations.coco.json")
    paths = [
        path for given in source.inputs for path in find_annotation_files(given, source, SUFFIXES, names, any_names)
    ]
    annotation_files = []
    for number, path in enumerate(paths):
        dataset = find_dataset(path)
        images = find_images(path, dataset, source)
        annotation_files.append(CocoFile(number, path, images, "" if source.image_dir else dataset))
    return annotation_files


def find_dataset(path: str) -> str:
    """Returns the folder of the dataset of an annotation file."""
    folder = parent_folder(path)
    return parent_folder(folder) if posixpath.basename(folder) == "annotations" else folder


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
    try:
        with beam_storage.open_input(file.path) as stream:
            for array, index, item in stream_arrays(stream, ("categories", "images", "annotations")):
                if array == "categories":
                    yield parse_category(item, index, file)
                elif array == "images":
                    has_images = True
                    image = parse_image(item, index, rows, file)
                    if source.includes(image.image_id):
                        yield image
                        rows += 1
                else:
                    box = parse_box(item, index, file)
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
    yield Listing(file.number, rows, file.path, problem)


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
    numbers = [_parse_number(value) for value in given] if isinstance(given, list) else []
    x, y, width, height = numbers if len(numbers) == 4 else (None,) * 4
    if x is None or y is None or width is None or height is None:
        problem = Problem("broken_box", f"bbox: expected four numbers, got {given!r:.200}")
        box = Box("", (0, 0, 0, 0), where, problem=problem)
    else:
        area = _parse_number(entry.get("area"))
        box = Box(
            _category_key(entry.get("category_id"), file),
            (y, x, y + height, x + width),
            where,
            is_crowd=entry.get("iscrowd") in (1, True),
            area=area if area is not None and 0 < area < math.inf else None,
        )
    return SeparateBox(str(_normalize_id(entry.get("image_id"))), file.number, index, file.path, box)


def _category_key(category: Any, file: CocoFile) -> str:
    return f"{file.number}/{_normalize_id(category)}"


def _normalize_id(value: Any) -> Any:
    """Returns whole floats as integers, because pandas writes 1 as 1.0 in a column with gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parse_number(value: Any) -> float | None:
    """Returns a JSON number as a float, else None.

    NaN and infinities, which Python's JSON parser accepts, are returned: validation rejects them with their own reason.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Returns (height, width) according to the annotation; None if one is missing or 0."""
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return None
