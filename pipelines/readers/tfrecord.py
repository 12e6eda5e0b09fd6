"""TFRecords of the TF Object Detection API: images and boxes in one record, and so data sets made for other trainers.

A reader passes on where each record lies and what its boxes are; the worker that writes the shard fetches the image
from there. `--input` is a file, a pattern, or a folder with files whose names begin with SPLIT.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from pipelines import files
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, keyed, pack_boxes
from pipelines.readers.source import Source, SpreadInputs, find_inputs
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import decode_example
from ssd_dist.core.tfrecord import read_records

FRAME_BYTES = 16
SIDES = ("ymin", "xmin", "ymax", "xmax")


@dataclass(frozen=True)
class RecordFile:
    """One file and its number among the inputs."""

    number: int
    path: str


def read_tfrecord(source: Source) -> beam.PTransform:
    """The transform that reads the source; finds the files first.

    Raises:
      DataError: if there are none.
    """
    names = (f"{source.split_name}*",)
    paths = [path for pattern in source.inputs for path in find_inputs(pattern, (".tfrecord", ".record"), names)]
    return ReadTfrecord([RecordFile(number, path) for number, path in enumerate(paths)], source)


class ReadTfrecord(beam.PTransform):
    """TFRecord files -> elements."""

    def __init__(self, record_files: list[RecordFile], source: Source) -> None:
        super().__init__()
        self._files = record_files
        self._source = source

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Streams each file in one place, several files in parallel."""
        return begin | "Files" >> SpreadInputs(self._files) | "Read records" >> beam.FlatMap(read_file, self._source)


def read_file(file: RecordFile, source: Source) -> Iterator[Element]:
    """The images of a file in order, with their classes, and the end of the listing."""
    row = offset = 0
    named: set[Category] = set()
    # As it lies there: a record must be found again at its offset.
    with files.open_plain(file.path) as stream:
        try:
            for index, data in enumerate(read_records(stream, file.path)):
                span = (offset, len(data) + FRAME_BYTES)
                offset += span[1]
                image, categories = parse_record(data, index, row, span, file)
                if not source.keeps(image.image_id):
                    continue
                yield keyed(image)
                row += 1
                for category in categories:
                    if category not in named:
                        named.add(category)
                        yield keyed(category)
        except DataError as error:
            yield keyed(_broken(file, row, f"bytes from {offset} on", f"{error}; what follows is lost (compressed?)"))
            row += 1
    yield keyed(Listing(file.number, row, file.path))


def parse_record(
    data: bytes, index: int, row: int, span: tuple[int, int], file: RecordFile
) -> tuple[Image, list[Category]]:
    """The image of a record and the classes it shows; a broken record is an image with a problem."""
    where = f"record {index}"
    try:
        features = decode_example(data)
        filename = _text(features, "image/filename") or f"{posixpath.basename(file.path)}#{index}"
        image_id = _text(features, "image/source_id") or filename
        boxes, categories = _parse_boxes(features)
        size = _size(features)
    except (DataError, ValueError, TypeError, IndexError, OverflowError) as error:
        return _broken(file, row, where, str(error)), []
    image = Image(
        image_id=image_id,
        file=file.number,
        row=row,
        source=f"{file.path}, {where}",
        filename=filename,
        path=file.path,
        size=size,
        packed=pack_boxes(boxes),
        span=span,
    )
    return image, categories


def _parse_boxes(features: dict[str, Any]) -> tuple[list[Box], list[Category]]:
    """Boxes and classes of a record.

    Raises:
      ValueError: if the lists of corners, classes and flags differ in length.
    """
    sides = [[float(value) for value in features.get(f"image/object/bbox/{side}", [])] for side in SIDES]
    count = len(sides[0])
    labels = [int(label) for label in features.get("image/object/class/label", [])]
    texts = [bytes(text).decode() for text in features.get("image/object/class/text", [])]
    columns = {
        "bbox": min(map(len, sides)),
        "class": len(texts or labels),
        **{name: len(features.get(f"image/object/{name}", [])) or count for name in ("difficult", "is_crowd", "area")},
    }
    if any(length != count for length in (*columns.values(), max(map(len, sides)))):
        raise ValueError(f"image/object lists of different lengths: {columns} for {count} boxes")
    names = texts or [f"class {label}" for label in labels]
    boxes = [
        Box(
            name,
            (sides[0][number], sides[1][number], sides[2][number], sides[3][number]),
            f"object {number}",
            normalized=True,
            difficult=bool(_flag(features, "difficult", number)),
            is_crowd=bool(_flag(features, "is_crowd", number)),
            area=_flag(features, "area", number),
        )
        for number, name in enumerate(names)
    ]
    orders = labels if len(labels) == count else [0] * count
    return boxes, [Category(name, order, name) for name, order in zip(names, orders, strict=True)]


def _flag(features: dict[str, Any], name: str, number: int) -> float:
    values = features.get(f"image/object/{name}", [])
    return float(values[number]) if len(values) else 0.0


def _text(features: dict[str, Any], key: str) -> str:
    values = features.get(key, [])
    return bytes(values[0]).decode() if len(values) else ""


def _size(features: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) that the record claims of its own image; None where they are left out or 0."""
    height, width = features.get("image/height", []), features.get("image/width", [])
    size = (int(height[0]), int(width[0])) if len(height) and len(width) else (0, 0)
    return size if min(size) > 0 else None


def _broken(file: RecordFile, row: int, where: str, detail: str) -> Image:
    source = f"{file.path}, {where}"
    return Image(source, file.number, row, source, "", "", problem=Problem("broken_annotation", detail))
