"""Reads TFRecord files of the TF Object Detection API, in which each record contains an image and its boxes.

The reader emits the boxes and the position of each record; the worker that writes the shard reads the image from there.
The size of the original image, which records written by prepare contain, is kept. Classes get the names in the records,
or else those of the label map.
"""

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, make_element, pack_boxes
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Source
from pipelines.readers.splits import choose_split
from pipelines.readers.tfrecord_layout import FRAME_BYTES, RecordFile, find_splits
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import decode_example
from ssd_dist.core.tfrecord_io import DAMAGED_BODY, scan_records

SIDES = ("ymin", "xmin", "ymax", "xmax")
FLAGS = ("difficult", "is_crowd", "area")
# Compressed files are recognized by their first bytes.
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x78\x9c": "zlib", b"\x78\x01": "zlib", b"\x78\xda": "zlib"}


def read_tfrecord(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the files.

    Raises:
      DataError: if there are none.
    """
    return ReadAnnotations(partial(list, find_files(source)), partial(read_file, source=source))


def find_files(source: Source) -> list[RecordFile]:
    """Returns the TFRecord files of the split in all inputs.

    Raises:
      DataError: if there are none.
    """
    files: list[RecordFile] = []
    for path in source.inputs:
        found = find_splits(path, source.image_dir)
        if found is None:
            raise DataError(
                f"--input={path}: no TFRecord files (*.tfrecord, *.record, SPLIT-00000-of-00010); pass them as --input"
            )
        files += choose_split(found, source, path)
    return [replace(file, number=number) for number, file in enumerate(files)]


def read_file(file: RecordFile, source: Source) -> Iterator[Element]:
    """Yields the images of a file in order, with their classes, then the end of the listing."""
    row = offset = 0
    emitted: set[Category] = set()
    # The file is not decompressed, because the offsets of the records must be those in the file.
    with beam_storage.open_plain(file.path) as stream:
        for index, (data, problem) in enumerate(scan_records(stream)):
            if problem and problem != DAMAGED_BODY:
                detail = _explain_damage(file.path, index, problem)
                yield make_element(_make_broken_image(file, row, f"bytes from {offset} on", detail))
                row += 1
                break
            span = (offset, len(data) + FRAME_BYTES)
            offset += span[1]
            image, categories = parse_record(data, index, row, span, file, problem)
            if not source.includes(image.image_id):
                continue
            yield make_element(image)
            row += 1
            for category in categories:
                if category not in emitted:
                    emitted.add(category)
                    yield make_element(category)
    yield make_element(Listing(file.number, row, file.path))


def _explain_damage(path: str, index: int, problem: str) -> str:
    """Returns why the rest of a file is lost: it is compressed, which its first bytes show, or it is damaged."""
    with beam_storage.open_plain(path) as stream:
        compression = COMPRESSIONS.get(stream.read(2), "") if index == 0 else ""
    if compression:
        tool = "gunzip" if compression == "gzip" else "zlib-flate -uncompress"
        return f"the file is compressed with {compression}; decompress it, for example with {tool}"
    return f"record {index}: {problem}; the rest of the file is lost (truncated or damaged)"


def parse_record(
    data: bytes, index: int, row: int, span: tuple[int, int], file: RecordFile, damage: str = ""
) -> tuple[Image, list[Category]]:
    """Returns the image of a record and its classes; a broken record gives an image with a problem.

    Args:
      data: the serialized `tf.train.Example`.
      index: number of the record in the file, for messages.
      row: position of the image in the listing.
      span: (offset, length) of the framed record in the file.
      file: the file.
      damage: why the record is damaged, or empty.
    """
    where = f"record {index}"
    if damage:
        return _make_broken_image(file, row, where, damage), []
    try:
        features = decode_example(data)
        _get_bytes(features, "image/encoded")
        filename = _get_text(features, "image/filename") or f"{posixpath.basename(file.path)}#{index}"
        image_id = _get_source_id(features) or filename
        boxes, categories = _parse_boxes(features, file.names)
        size, original = _parse_size(features, "image"), _parse_size(features, "image/original")
    except (DataError, ValueError, TypeError, IndexError, OverflowError) as error:
        return _make_broken_image(file, row, where, str(error)), []
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


def _parse_boxes(features: dict[str, Any], class_names: Mapping[int, str]) -> tuple[list[Box], list[Category]]:
    """Returns the boxes and classes of a record.

    Args:
      features: the features of the record.
      class_names: names of the classes by number, for records without names.

    Raises:
      ValueError: if the lists of corners, classes and flags differ in length, or one has the wrong type.
    """
    sides = [[float(value) for value in _get_numbers(features, f"image/object/bbox/{side}")] for side in SIDES]
    count = len(sides[0])
    labels = _get_integers(features, "image/object/class/label")
    texts = [text.decode() for text in _get_bytes(features, "image/object/class/text")]
    # A missing flag is false for every box; an area of 0 means unknown.
    flags = {name: _get_numbers(features, f"image/object/{name}") or [0.0] * count for name in FLAGS}
    # Open Images marks a box around several objects so.
    if any(groups := _get_numbers(features, "image/object/group_of")) and not any(flags["is_crowd"]):
        flags["is_crowd"] = groups
    columns = {
        "bbox": min(map(len, sides)),
        "class": len(texts if any(texts) else labels),
        **{name: len(values) for name, values in flags.items()},
    }
    if any(length != count for length in (*columns.values(), max(map(len, sides)))):
        raise ValueError(f"image/object lists of different lengths: {columns} for {count} boxes")
    if any(texts) and not all(texts):
        raise ValueError("image/object/class/text is empty for some of the boxes")
    names = texts if any(texts) else [class_names.get(label, f"class {label}") for label in labels]
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


def _get_source_id(features: dict[str, Any]) -> str:
    """Returns the id as text; some tools write COCO's numeric id."""
    if isinstance(features.get("image/source_id"), np.ndarray):
        return "".join(map(str, _get_integers(features, "image/source_id")[:1]))
    return _get_text(features, "image/source_id")


def _get_text(features: dict[str, Any], key: str) -> str:
    return b"".join(_get_bytes(features, key)[:1]).decode()


def _parse_size(features: dict[str, Any], prefix: str) -> tuple[int, int] | None:
    """Returns (height, width) according to the features with this prefix; None if one is missing or 0."""
    height, width = _get_integers(features, f"{prefix}/height"), _get_integers(features, f"{prefix}/width")
    size = (height[0], width[0]) if height and width else (0, 0)
    return size if min(size) > 0 else None


# An empty list may have lost its type, so it is accepted as any type.
def _get_bytes(features: dict[str, Any], key: str) -> list[bytes]:
    values = features.get(key, [])
    if isinstance(values, np.ndarray) and len(values):
        raise ValueError(f"{key} contains {values.dtype}, expected bytes")
    return list(values)


def _get_numbers(features: dict[str, Any], key: str) -> list[float]:
    values = features.get(key, [])
    if not isinstance(values, np.ndarray) and len(values):
        raise ValueError(f"{key} contains bytes, expected numbers")
    return np.asarray(values).tolist()


def _get_integers(features: dict[str, Any], key: str) -> list[int]:
    values = features.get(key, [])
    if len(values) and getattr(values, "dtype", None) != np.int64:
        raise ValueError(f"{key} contains {getattr(values, 'dtype', 'bytes')}, expected int64")
    return [int(value) for value in values]


def _make_broken_image(file: RecordFile, row: int, where: str, detail: str) -> Image:
    source = f"{file.path}, {where}"
    return Image(source, file.number, row, source, "", "", problem=Problem("broken_annotation", detail))
