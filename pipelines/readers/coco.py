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
polygons of `segmentation`. `coco_layout.py` finds the files and the folders.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, SeparateBox, make_elements
from pipelines.json_stream import JsonStreamError, stream_arrays
from pipelines.readers.coco_layout import CocoFile, find_files
from pipelines.readers.coco_parts import ImageLocator, normalize_id
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Location, Source
from pipelines.readers.unlisted import ImageFolder
from ssd_dist.core.errors import DataError


def read_coco(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the annotation files and the image folders.

    Raises:
      DataError: if one of them is missing.
    """
    return ReadAnnotations(partial(list, find_files(source)), partial(read_file, source=source))


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
    folder = ImageFolder(file.images) if file.is_only_owner or file.others else None
    placeholder = _Placeholder(_category_key(0, file))
    locate = ImageLocator(file)
    try:
        with beam_storage.open_input(file.path) as stream:
            for array, index, item in stream_arrays(stream, ("categories", "images", "annotations")):
                if array == "categories":
                    category = parse_category(item, index, file)
                    if not placeholder.holds(category, item):
                        yield category
                elif array == "images":
                    has_images = True
                    image = parse_image(item, index, rows, file, locate)
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
    if folder is not None and problem is None and all(_mark_listed(other, folder) for other in file.others):
        annotations = [file.path, *(other.path for other in file.others)]
        for image in folder.make_images(source, file.number, rows, annotations):
            yield image
            rows += 1
    yield Listing(file.number, rows, file.path, problem)


def _mark_listed(file: CocoFile, folder: ImageFolder) -> bool:
    """Marks the images that another file lists; returns false if it is damaged, and may list more of them.

    Raises:
      DataError: if storage fails before the end of the file.
    """
    locate = ImageLocator(file)
    try:
        with beam_storage.open_input(file.path) as stream:
            for _, index, item in stream_arrays(stream, ("images",)):
                folder.mark_listed(parse_image(item, index, 0, file, locate))
    except (JsonStreamError, DataError, OSError) as error:
        beam_storage.require_damage(error, file.path)
        return False
    return True


class _Placeholder:
    """Omits the category 0 that tools add without any box: Roboflow's supercategory, Model Maker's background."""

    def __init__(self, key: str) -> None:
        self._key = key
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
        """Notices a box of the category, which may precede the category in the file."""
        self._is_used |= box.category == self._key

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
        name = str(item["name"]).strip()
        return Category(_category_key(item["id"], file), int(item["id"]), name or f"class {item['id']}")
    except (TypeError, KeyError, ValueError, OverflowError):
        raise DataError(f"categories[{index}] needs an integer id and a name, got {item!r:.200}") from None


def parse_image(item: Any, index: int, row: int, file: CocoFile, locate: ImageLocator) -> Image:
    """Parses one entry of `images`; missing fields and wrong types become the problem of the image."""
    entry = item if isinstance(item, dict) else {}
    image_id, filename = normalize_id(entry.get("id")), entry.get("file_name")
    if isinstance(image_id, int | str) and isinstance(filename, str) and filename:
        location = locate(filename)
    else:
        detail = f"images[{index}] needs an id and a file_name: {item!r:.200}"
        location = Location(problem=Problem("broken_annotation", detail))
    return Image(
        image_id=f"images[{index}] of {file.path}" if image_id is None else f"{file.prefix}{image_id}",
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
            is_crowd=bool(_parse_number(entry.get("iscrowd")) or entry.get("iscrowd") is True),
            area=area if area is not None and 0 < area < math.inf else None,
            is_reduced=not given,
        )
    return SeparateBox(f"{file.prefix}{normalize_id(entry.get('image_id'))}", file.number, index, file.path, box)


def _parse_bbox(given: Any) -> tuple[float, float, float, float] | None:
    """Returns ymin, xmin, ymax, xmax of a list of x, y, width and height; None if they are not four numbers."""
    if not isinstance(given, list) or len(given) != 4:
        return None
    x, y, width, height = map(_parse_number, given)
    if x is None or y is None or width is None or height is None:
        return None
    return y, x, y + height, x + width


def _enclose_polygons(polygons: Any) -> tuple[float, float, float, float] | None:
    """Returns the box around polygons, each a list x, y, x, y, ...; None if there are none."""
    if not isinstance(polygons, list):
        return None
    flat = [_parse_number(value) for polygon in polygons for value in _to_list(polygon)]
    numbers = [number for number in flat if number is not None]
    if len(numbers) < 6 or len(numbers) % 2 or len(numbers) < len(flat):
        return None
    return min(numbers[1::2]), min(numbers[::2]), max(numbers[1::2]), max(numbers[::2])


def _to_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _category_key(category: Any, file: CocoFile) -> str:
    return f"{file.number}/{normalize_id(category)}"


def _parse_number(value: Any) -> float | None:
    """Returns a JSON number, or a text that contains a number, as a float; else None.

    Roboflow writes numbers as texts in some exports. NaN and infinities, which Python's JSON parser accepts, are
    returned: validation rejects them with their own reason.
    """
    # The usual case; a dataset has millions of numbers.
    if type(value) is float:
        return value
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
