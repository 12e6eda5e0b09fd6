"""TFRecords of the TF Object Detection API: images and boxes in one record, and so data sets made for other trainers.

A reader passes on where each record lies and what its boxes are; the worker that writes the shard fetches the image
from there. What a record says of its original, as those of prepare do, is kept. `--input` is a file, a pattern, or a
folder with files whose names begin with SPLIT; with `--split_by`, and no `--source_split`, with any.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, keyed, pack_boxes
from pipelines.readers.sources import Source, SpreadInputs, find_inputs
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import decode_example
from ssd_dist.core.tfrecord_io import DAMAGED_BODY, scan_records

FRAME_BYTES = 16
SIDES = ("ymin", "xmin", "ymax", "xmax")
FLAGS = ("difficult", "is_crowd", "area")


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
    # The records of all splits may be cut together: their ids do not depend on the file.
    names = (f"{source.split_name}*",) if source.split_name else ("*.tfrecord*", "*.record*", "*-of-*")
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
    with beam_storage.open_plain(file.path) as stream:
        for index, (data, problem) in enumerate(scan_records(stream)):
            if problem and problem != DAMAGED_BODY:
                detail = (
                    f"record {index}: {problem}; what follows is lost (cut short, damaged, compressed, no TFRecord?)"
                )
                yield keyed(_broken(file, row, f"bytes from {offset} on", detail))
                row += 1
                break
            span = (offset, len(data) + FRAME_BYTES)
            offset += span[1]
            image, categories = parse_record(data, index, row, span, file, problem)
            if not source.keeps(image.image_id):
                continue
            yield keyed(image)
            row += 1
            for category in categories:
                if category not in named:
                    named.add(category)
                    yield keyed(category)
    yield keyed(Listing(file.number, row, file.path))


def parse_record(
    data: bytes, index: int, row: int, span: tuple[int, int], file: RecordFile, damage: str = ""
) -> tuple[Image, list[Category]]:
    """The image of a record and the classes it shows; a broken record is an image with a problem."""
    where = f"record {index}"
    if damage:
        return _broken(file, row, where, damage), []
    try:
        features = decode_example(data)
        _blobs(features, "image/encoded")
        filename = _text(features, "image/filename") or f"{posixpath.basename(file.path)}#{index}"
        image_id = _source_id(features) or filename
        boxes, categories = _parse_boxes(features)
        size, original = _size(features, "image"), _size(features, "image/original")
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
        original=original,
        packed=pack_boxes(boxes),
        span=span,
    )
    return image, categories


def _parse_boxes(features: dict[str, Any]) -> tuple[list[Box], list[Category]]:
    """Boxes and classes of a record.

    Raises:
      ValueError: if the lists of corners, classes and flags differ in length, or one is of another type.
    """
    sides = [[float(value) for value in _numbers(features, f"image/object/bbox/{side}")] for side in SIDES]
    count = len(sides[0])
    labels = _integers(features, "image/object/class/label")
    texts = [text.decode() for text in _blobs(features, "image/object/class/text")]
    # Left out, none is set; an area of 0 is none.
    flags = {name: _numbers(features, f"image/object/{name}") or [0.0] * count for name in FLAGS}
    columns = {
        "bbox": min(map(len, sides)),
        "class": len(texts or labels),
        **{name: len(values) for name, values in flags.items()},
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
            difficult=bool(flags["difficult"][number]),
            is_crowd=bool(flags["is_crowd"][number]),
            area=float(flags["area"][number]),
        )
        for number, name in enumerate(names)
    ]
    orders = labels if len(labels) == count else [0] * count
    return boxes, [Category(name, order, name) for name, order in zip(names, orders, strict=True)]


def _source_id(features: dict[str, Any]) -> str:
    """The id as text; some tools write COCO's number."""
    if isinstance(features.get("image/source_id"), np.ndarray):
        return "".join(map(str, _integers(features, "image/source_id")[:1]))
    return _text(features, "image/source_id")


def _text(features: dict[str, Any], key: str) -> str:
    return b"".join(_blobs(features, key)[:1]).decode()


def _size(features: dict[str, Any], of: str) -> tuple[int, int] | None:
    """(height, width) that the record claims of its own image, or of the original; None where left out or 0."""
    height, width = _integers(features, f"{of}/height"), _integers(features, f"{of}/width")
    size = (height[0], width[0]) if height and width else (0, 0)
    return size if min(size) > 0 else None


# An empty list may have lost its type, and so is of any.
def _blobs(features: dict[str, Any], key: str) -> list[bytes]:
    values = features.get(key, [])
    if isinstance(values, np.ndarray) and len(values):
        raise ValueError(f"{key} holds {values.dtype}, not bytes")
    return list(values)


def _numbers(features: dict[str, Any], key: str) -> list[float]:
    values = features.get(key, [])
    if not isinstance(values, np.ndarray) and len(values):
        raise ValueError(f"{key} holds bytes, not numbers")
    return np.asarray(values).tolist()


def _integers(features: dict[str, Any], key: str) -> list[int]:
    values = features.get(key, [])
    if len(values) and getattr(values, "dtype", None) != np.int64:
        raise ValueError(f"{key} holds {getattr(values, 'dtype', 'bytes')}, not int64")
    return [int(value) for value in values]


def _broken(file: RecordFile, row: int, where: str, detail: str) -> Image:
    source = f"{file.path}, {where}"
    return Image(source, file.number, row, source, "", "", problem=Problem("broken_annotation", detail))
