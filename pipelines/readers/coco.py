"""COCO: one JSON file of images, annotations and categories, of any size.

The file is read as a stream, once; images and annotations leave it as they come and meet again by image id. Nothing
of the file stays in memory and no worker holds a copy.

`--input` is the JSON file (or several, or a pattern), or a folder with `annotations/instances_SPLIT.json`; with
`--split_by`, and no `--source_split`, the folder's only file.
"""

import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, LooseBox, Problem, gather_boxes
from pipelines.json_stream import JsonStreamError, stream_arrays
from pipelines.readers.sources import (
    Location,
    Source,
    SpreadInputs,
    find_images,
    find_listings,
    folder_of,
    locate_image,
)
from ssd_dist.core.errors import DataError

SUFFIXES = (".json", ".json.gz")


@dataclass(frozen=True)
class CocoFile:
    """One annotation file, its number among the inputs and the folder of its images.

    `home` is where names may lead from as well; empty if the folder of the images was given.
    """

    number: int
    path: str
    images: str
    home: str = ""


def read_coco(source: Source) -> beam.PTransform:
    """The transform that reads the source; finds the annotation files and the folders of images first.

    Raises:
      DataError: if one of them is missing.
    """
    split = source.split_name
    names = (f"annotations/instances_{split}.json", f"annotations/{split}.json", f"{split}.json", "annotations.json",
             f"{split}/_annotations.coco.json")  # fmt: skip
    any_name = ("annotations/instances_*.json", "annotations/*.json", "annotations.json", "*/_annotations.coco.json")
    paths = [path for given in source.inputs for path in find_listings(given, source, SUFFIXES, names, any_name)]
    annotation_files = []
    for number, path in enumerate(paths):
        home = find_home(path)
        images = find_images(path, home, source)
        annotation_files.append(CocoFile(number, path, images, "" if source.image_dir else home))
    return ReadCoco(annotation_files, source)


class ReadCoco(beam.PTransform):
    """COCO annotation files -> elements."""

    def __init__(self, annotation_files: list[CocoFile], source: Source) -> None:
        super().__init__()
        self._files = annotation_files
        self._source = source

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Streams each file in one place, several files in parallel."""
        return (
            begin
            | "Annotation files" >> SpreadInputs(self._files)
            | "Stream annotations" >> beam.FlatMap(read_file, self._source)
        )


def find_home(path: str) -> str:
    """The folder of the data set of an annotation file."""
    here = folder_of(path)
    return folder_of(here) if posixpath.basename(here) == "annotations" else here


def read_file(file: CocoFile, source: Source) -> Iterator[Element]:
    """Streams one annotation file into elements."""
    return gather_boxes(read_entries(file, source))


def read_entries(file: CocoFile, source: Source) -> Iterator[Image | LooseBox | Category | Listing]:
    """Categories, images and boxes of a file as they come, then the end of the listing.

    Raises:
      DataError: if storage fails midway.
    """
    rows = 0
    listed = False
    problem = None
    try:
        with beam_storage.open_input(file.path) as stream:
            for array, index, item in stream_arrays(stream, ("categories", "images", "annotations")):
                if array == "categories":
                    yield parse_category(item, index, file)
                elif array == "images":
                    listed = True
                    image = parse_image(item, index, rows, file)
                    if source.keeps(image.image_id):
                        yield image
                        rows += 1
                else:
                    box = parse_box(item, index, file)
                    if source.keeps(box.image_id):
                        yield box
        if not listed:
            raise DataError("the file lists no images")
    except (JsonStreamError, DataError, OSError) as error:
        beam_storage.require_damage(error, file.path)
        # What follows is lost, so the images read so far may lack boxes: all of the file's images are refused, and
        # the file itself stands for those that were not reached.
        problem = Problem("broken_annotation", f"{file.path}: {error}")
        yield Image(f"the rest of {file.path}", file.number, rows, file.path, "", "", problem=problem)
        rows += 1
    yield Listing(file.number, rows, file.path, problem)


def parse_category(item: Any, index: int, file: CocoFile) -> Category:
    """One entry of `categories`; ids are not contiguous, labels follow their order.

    Raises:
      DataError: if it has no id or no name; the order of the labels could not be told then.
    """
    try:
        return Category(_category_key(item["id"], file), int(item["id"]), str(item["name"]))
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"categories[{index}] has no usable id and name ({error!r}): {item!r:.200}") from None


def parse_image(item: Any, index: int, row: int, file: CocoFile) -> Image:
    """One entry of `images`; what is missing or of a wrong type becomes the image's problem."""
    entry = item if isinstance(item, dict) else {}
    image_id, filename = _whole(entry.get("id")), entry.get("file_name")
    if isinstance(image_id, int | str) and isinstance(filename, str) and filename:
        where = locate_image(file.images, filename, home=file.home)
    else:
        detail = f"images[{index}] needs an id and a file_name: {item!r:.200}"
        where = Location(problem=Problem("broken_annotation", detail))
    return Image(
        image_id=f"images[{index}] of {file.path}" if image_id is None else str(image_id),
        file=file.number,
        row=row,
        source=file.path,
        filename=str(filename or ""),
        path=where.path,
        stems=where.stems,
        size=_size(entry.get("height"), entry.get("width")),
        problem=where.problem,
    )


def parse_box(item: Any, index: int, file: CocoFile) -> LooseBox:
    """One entry of `annotations`; `bbox` is x, y, width, height in pixels."""
    where = f"annotations[{index}]"
    entry = item if isinstance(item, dict) else {}
    given = entry.get("bbox")
    numbers = [_number(value) for value in given] if isinstance(given, list) else []
    x, y, width, height = numbers if len(numbers) == 4 else (None,) * 4
    if x is None or y is None or width is None or height is None:
        problem = Problem("broken_box", f"bbox: expected four numbers, got {given!r:.200}")
        box = Box("", (0, 0, 0, 0), where, problem=problem)
    else:
        area = _number(entry.get("area"))
        box = Box(
            _category_key(entry.get("category_id"), file),
            (y, x, y + height, x + width),
            where,
            is_crowd=entry.get("iscrowd") in (1, True),
            area=area if area is not None and 0 < area < math.inf else None,
        )
    return LooseBox(str(_whole(entry.get("image_id"))), file.number, index, file.path, box)


def _category_key(category: Any, file: CocoFile) -> str:
    return f"{file.number}/{_whole(category)}"


def _whole(value: Any) -> Any:
    """An id as it is meant: pandas writes 1 as 1.0 in a column with gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any) -> float | None:
    """A JSON number as a float; NaN and infinities, which Python's parser takes, are refused later by name."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) as claimed; None where they are left out or 0."""
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return None
