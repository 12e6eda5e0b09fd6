"""Reads YOLO annotations: one text file per image with a line `class x_center y_center width height` per box.

Coordinates are fractions of the image. The class names are in data.yaml.

    DIR/data.yaml  DIR/images/SPLIT/*  DIR/labels/SPLIT/*.txt         the usual layout
    DIR/data.yaml  DIR/SPLIT/images/*  DIR/SPLIT/labels/*.txt         one folder per split
    DIR/X/any.yaml DIR/images/SPLIT/*  DIR/X/labels/SPLIT/*.txt       labels of one task, images shared by all tasks

`--input` is DIR or the YAML file. SPLIT is a folder, or a key of the YAML file (`train`, `val`) whose value is a folder
or a `.txt` file that lists images. The labels of listed images are found by replacing `images` with `labels` in their
path. Images in subfolders are read too. The id of an image is its path without a suffix, relative to the image folder;
for listed images, relative to the deepest folder that contains them all. With `--split_by` and without
`--source_split`, all of `images/` is divided.
"""

import posixpath
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipelines import beam_storage
from pipelines.annotations import (
    IMAGE_SUFFIXES,
    Box,
    Category,
    Element,
    Image,
    Listing,
    Problem,
    make_element,
    pack_boxes,
)
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Source, locate_image
from pipelines.readers.splits import Found
from pipelines.readers.yolo_layout import YoloLayout, find_layout, labels_folder
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import join


@dataclass(frozen=True)
class YoloEntry:
    """One image to read.

    Attributes:
      image_id: id of the image.
      row: position in the listing.
      filename: file name in the dataset.
      image: path of the image; empty if there is only a label file.
      label: path of the label file; empty if there is none.
      problem: set if the file name is not usable.
    """

    image_id: str
    row: int
    filename: str
    image: str
    label: str
    problem: Problem | None = None


def find_splits(path: str, image_dir: str) -> Found[Any] | None:
    """Returns the splits in a folder, a file or a pattern; None if the input is not in this format."""
    return None


def read_yolo(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the layout of each input.

    Raises:
      DataError: if an input or its split is missing, or the inputs differ in their classes.
    """
    layouts = [find_layout(path, source) for path in source.inputs]
    for path, layout in zip(source.inputs, layouts, strict=True):
        if layout.names != layouts[0].names:
            raise DataError(f"--input={path}: the classes differ from those of {source.inputs[0]}; use one data.yaml")
    return ReadAnnotations(partial(list_labels, layouts, source), read_label)


def list_labels(layouts: list[YoloLayout], source: Source) -> Iterator[YoloEntry | Category | Listing]:
    """Yields the classes, the images of all inputs, and the end of the listing.

    Images and labels are matched by their path without suffix, independent of the Unicode normalization of the names.
    An image without a label file has no objects. A label file without an image is listed too, so that it is reported.

    Raises:
      DataError: if none of the images in a list file has a label file.
    """
    for index, name in enumerate(layouts[0].names):
        yield Category(str(index), index, name)
    row = 0
    for layout in layouts:
        for entry in _read_list(layout) if layout.list_file else _read_folders(layout):
            if source.includes(entry.image_id):
                yield replace(entry, row=row)
                row += 1
    yield Listing(0, row, layouts[0].list_file or layouts[0].labels)


def _read_folders(layout: YoloLayout) -> Iterator[YoloEntry]:
    """Yields the images and labels of the folders, sorted by name; two images with one stem give one id twice."""
    images = [path for path in _find_files(layout.images, layout) if path.lower().endswith(IMAGE_SUFFIXES)]
    texts = [path for path in _find_files(layout.labels, layout) if path.lower().endswith(".txt")]
    stems = [_relative_stem(layout.images, path) for path in images]
    labels = {_relative_stem(layout.labels, path): path for path in texts}
    # Some systems store accented letters as two characters (NFD), and archives carry such names to other systems.
    stem_by_nfc = {_to_nfc(stem): stem for stem in labels.keys() - set(stems)}
    label_stems = [stem if stem in labels else stem_by_nfc.get(_to_nfc(stem), "") for stem in stems]
    entries = [(stem, image, labels.get(own, "")) for stem, image, own in zip(stems, images, label_stems, strict=True)]
    # Labelling tools put a list of the classes, classes.txt, next to the labels.
    unmatched = labels.keys() - set(label_stems)
    entries += [(stem, "", labels[stem]) for stem in unmatched if posixpath.basename(stem) != "classes"]
    for stem, image, label in sorted(entries):
        yield YoloEntry(stem, 0, beam_storage.path_below(layout.images, image) if image else "", image, label)


def _find_files(folder: str, layout: YoloLayout) -> list[str]:
    excluded = tuple(f"{other}/" for other in layout.excluded if other.startswith(f"{folder.rstrip('/')}/"))
    return [path for path in beam_storage.match_below(folder, "**") if not path.startswith(excluded)]


def _read_list(layout: YoloLayout) -> Iterator[YoloEntry]:
    """Yields the images of the list file in order; ids are relative to the deepest folder that contains them all."""
    lines = list(filter(None, map(str.strip, beam_storage.read_text(layout.list_file).splitlines())))
    locations = [locate_image(layout.images, line) for line in lines]
    found = [beam_storage.path_below(layout.images, location.path) for location in locations if not location.problem]
    shared = join(layout.images, posixpath.commonpath(map(posixpath.dirname, found)) if found else "")
    labels_by_folder: dict[str, dict[str, str]] = {}
    images = labelled = 0
    for line, location in zip(lines, locations, strict=True):
        if location.problem is not None:
            yield YoloEntry(_stem(line), 0, line, location.path, "", location.problem)
            continue
        folder = labels_folder(posixpath.dirname(location.path))
        if folder not in labels_by_folder:
            files = beam_storage.list_files(folder)
            labels_by_folder[folder] = {**{_to_nfc(path): path for path in files}, **{path: path for path in files}}
        name = f"{folder}/{_stem(location.path)}.txt"
        label = labels_by_folder[folder].get(name) or labels_by_folder[folder].get(_to_nfc(name), "")
        images, labelled = images + 1, labelled + bool(label)
        yield YoloEntry(_relative_stem(shared, location.path), 0, line, location.path, label)

    if images and not labelled:
        raise DataError(
            f"{layout.list_file}: none of {images} images has a label file in {' or '.join(labels_by_folder)}; "
            "move the images to a folder named images and the labels to a folder named labels next to it"
        )


def _stem(path: str) -> str:
    return posixpath.basename(path).rpartition(".")[0]


def _to_nfc(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _relative_stem(folder: str, path: str) -> str:
    """Returns the path relative to the folder, without its suffix."""
    return posixpath.splitext(beam_storage.path_below(folder, path))[0]


def read_label(entry: YoloEntry | Category | Listing) -> Iterator[Element]:
    """Yields the image of an entry with its boxes."""
    if not isinstance(entry, YoloEntry):
        yield make_element(entry)
        return
    packed = b""
    problem = entry.problem
    if problem is None and not entry.image:
        problem = Problem("missing_image", f"there is no image for the label file {entry.label}")
    if entry.label:
        try:
            packed = pack_boxes(parse_label(beam_storage.read_item(entry.label).decode("utf-8-sig")))
        except (*beam_storage.LASTING, ValueError) as error:
            problem = problem or Problem("broken_annotation", str(error))
    source = entry.label or entry.image
    yield make_element(
        Image(entry.image_id, 0, entry.row, source, entry.filename, entry.image, packed=packed, problem=problem)
    )


def parse_label(text: str) -> Iterator[Box]:
    """Yields the boxes of a label file, one per nonempty line; an invalid line gives a box with a problem."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield _parse_line(line.split(), f"line {number}")


def _parse_line(fields: list[str], where: str) -> Box:
    try:
        category = int(fields[0])
        x_center, y_center, width, height = map(float, fields[1:])
    except ValueError as error:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", f"expected class x y width height: {error}"))
    corners = (y_center - height / 2, x_center - width / 2, y_center + height / 2, x_center + width / 2)
    return Box(str(category), corners, where, normalized=True)
