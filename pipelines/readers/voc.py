"""Reads Pascal VOC annotations: one XML file per image.

    DIR/Annotations/*.xml  DIR/JPEGImages/*  DIR/ImageSets/Main/SPLIT.txt      layout of the VOC devkit
    DIR/Annotations/SPLIT/*.xml  DIR/JPEGImages/[SPLIT/]*                      the same without list files
    DIR/SPLIT/*.xml and images in the same folder                              one folder per split
    DIR/*.xml or a pattern of XML files                                        all files are one split

With `--split_by` and without `--source_split`, all of Annotations, or DIR/*.xml, is divided.
Coordinates are used as they are, as in the TF Object Detection API: the devkit's shift by one pixel is not applied.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from xml.etree.ElementTree import Element as XmlElement

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, make_element, pack_boxes
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Location, Source, locate_image, require_input
from pipelines.readers.splits import Found
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import join


@dataclass(frozen=True)
class VocLayout:
    """The files and folders of one input.

    Attributes:
      annotations: folder or pattern of the XML files.
      images: folder of the images; empty for the folder of each XML file.
      list_file: file with the image ids of the split; empty if every annotation belongs to the split.
      is_flat: whether subfolders of `annotations` are ignored.
    """

    annotations: str
    images: str
    list_file: str = ""
    is_flat: bool = False


@dataclass(frozen=True)
class VocEntry:
    """One image to read.

    Attributes:
      image_id: id of the image, its path relative to the annotations without a suffix.
      row: position in the listing.
      annotation: path of the XML file.
      images: folder of the images.
      problem: set if the id is not usable.
    """

    image_id: str
    row: int
    annotation: str
    images: str
    problem: Problem | None = None


def find_splits(path: str, image_dir: str) -> Found[Any] | None:
    """Returns the splits in a folder, a file or a pattern; None if the input is not in this format."""
    return None


def read_voc(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the layout of each input.

    Raises:
      DataError: if an input or its split is missing.
    """
    layouts = [find_layout(path, source) for path in source.inputs]
    return ReadAnnotations(partial(list_annotations, layouts, source), read_annotation)


def find_layout(path: str, source: Source) -> VocLayout:
    """Finds the annotations, images and list file of the split in an input folder; accepts a pattern of XML files too.

    Raises:
      DataError: if there are none, or the split is missing.
    """
    if beam_storage.is_pattern(path):
        if not beam_storage.match_files(path):
            raise DataError(f"--input={path} matches no file; check the pattern")
        return VocLayout(path, source.image_dir)
    require_input(path)
    annotations = join(path, "Annotations")
    if beam_storage.exists(annotations):
        images = source.image_dir or join(path, "JPEGImages")
        if not beam_storage.exists(images):
            raise DataError(f"{images}: the folder of the images does not exist; pass it as --image_dir")
        return _find_devkit_split(path, annotations, images, source)
    for folder in (join(path, source.split_name).rstrip("/"), path):
        if any(name.lower().endswith(".xml") for name in beam_storage.list_files(folder)):
            return VocLayout(folder, source.image_dir or folder, is_flat=True)
    hint = "check --input_format=voc" if source.split_name else "pass the folder to split as --source_split"
    raise DataError(f"--input={path}: the folder contains neither Annotations/ nor XML files; {hint}")


def _find_devkit_split(path: str, annotations: str, images: str, source: Source) -> VocLayout:
    split = source.split_name
    list_file = _find_list(path, source) if split else ""
    if list_file or not split or not beam_storage.exists(join(annotations, split)):
        return VocLayout(annotations, images, list_file)
    # There is no list file, but one folder per split.
    split_images = join(images, split)
    return VocLayout(join(annotations, split), split_images if beam_storage.exists(split_images) else images)


def _find_list(path: str, source: Source) -> str:
    lists = join(path, "ImageSets", "Main")
    wanted = join(lists, f"{source.split_name}.txt")
    if beam_storage.exists(wanted):
        return wanted
    known = [posixpath.basename(name).removesuffix(".txt") for name in beam_storage.list_files(lists)]
    if known or (source.split and not beam_storage.exists(join(path, "Annotations", source.split))):
        choice = f"set --source_split to one of {', '.join(known)}" if known else "there are no list files"
        raise DataError(f"{wanted} does not exist; {choice}")
    return ""


def list_annotations(layouts: list[VocLayout], source: Source) -> Iterator[VocEntry | Listing]:
    """Yields the annotations of all inputs in order, then the end of the listing."""
    row = 0
    for layout in layouts:
        for name, location in _locate_annotations(layout):
            image_id = posixpath.splitext(name)[0] if name.lower().endswith(".xml") else name
            if source.includes(image_id):
                images = layout.images or posixpath.dirname(location.path)
                yield VocEntry(image_id, row, location.path or layout.list_file, images, location.problem)
                row += 1
    yield Listing(0, row, layouts[0].annotations)


def _locate_annotations(layout: VocLayout) -> Iterator[tuple[str, Location]]:
    if layout.list_file:
        for name in _read_list(layout):
            location = locate_image(layout.annotations, f"{name}.xml")
            yield posixpath.basename(name) if location.problem else name, location
        return
    if beam_storage.is_pattern(layout.annotations):
        yield from ((posixpath.basename(path), Location(path)) for path in beam_storage.match_files(layout.annotations))
        return
    # Annotations next to their images are in one folder per split; the devkit's Annotations may have subfolders.
    found = (
        beam_storage.list_files(layout.annotations)
        if layout.is_flat
        else beam_storage.match_below(layout.annotations, "**")
    )
    for path in found:
        if path.lower().endswith(".xml"):
            yield beam_storage.path_below(layout.annotations, path), Location(path)


def _read_list(layout: VocLayout) -> list[str]:
    """Returns the ids of the list file, without the second column (1, 0 or -1) of the devkit's per-class lists.

    An id may itself contain spaces and end in such a number. If there is an annotation with the name of the whole line,
    the line is an id.
    """
    lines = list(filter(None, map(str.strip, beam_storage.read_text(layout.list_file).split("\n"))))
    columns = {line: column[1] for line in lines if (column := re.fullmatch(r"(.*\S)\s+-?[01]", line))}
    found = beam_storage.match_below(layout.annotations, "**") if columns else []
    existing = {beam_storage.path_below(layout.annotations, path) for path in found}
    return [columns[line] if line in columns and f"{line}.xml" not in existing else line for line in lines]


def read_annotation(entry: VocEntry | Listing) -> Iterator[Element]:
    """Yields the image of an entry and its classes; a broken annotation gives an image with a problem."""
    if isinstance(entry, Listing):
        yield make_element(entry)
        return
    if entry.problem is not None:
        yield make_element(_make_broken_image(entry, *entry.problem))
        return
    try:
        image = parse_annotation(beam_storage.read_item(entry.annotation), entry)
    except (*beam_storage.LASTING, ValueError) as error:
        image = _make_broken_image(entry, "missing_annotation", str(error))
    yield make_element(image)
    for name in dict.fromkeys(box.category for box in image.boxes if box.problem is None):
        yield make_element(Category(name, 0, name))


def parse_annotation(data: bytes, entry: VocEntry) -> Image:
    """Returns the image that an XML file describes."""
    try:
        root = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        detail = f"the file contains a DTD or an entity ({type(error).__name__}); remove it"
        return _make_broken_image(entry, "unsafe_annotation", detail)
    except (ParseError, ValueError, LookupError) as error:
        return _make_broken_image(entry, "broken_annotation", str(error))
    for node in root.iter():
        # Removes the namespace.
        node.tag = node.tag.rpartition("}")[2]
    if root.tag != "annotation":
        return _make_broken_image(entry, "broken_annotation", f"expected <annotation>, got <{root.tag:.100}>")
    filename = _find_text(root, "filename") or entry.image_id
    # The image of an annotation in a subfolder is in the subfolder of the same name, or directly in the image folder.
    subfolder, stem = posixpath.split(entry.image_id)
    images = join(entry.images, subfolder) if subfolder else entry.images
    location = locate_image(images, filename, stem, dataset=entry.images)
    return Image(
        image_id=entry.image_id,
        file=0,
        row=entry.row,
        source=entry.annotation,
        filename=filename,
        path=location.path,
        stems=location.stems,
        size=_parse_size(root),
        packed=pack_boxes(_parse_object(node, number) for number, node in enumerate(root.findall("object"))),
        problem=location.problem,
    )


def _parse_object(node: XmlElement, number: int) -> Box:
    where = f"object {number}"
    name = _find_text(node, "name")
    try:
        corners = [float(_find_text(node, f"bndbox/{side}")) for side in ("ymin", "xmin", "ymax", "xmax")]
    except ValueError as error:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", f"bndbox: {error}"))
    if not name:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", "the object has no name"))
    ymin, xmin, ymax, xmax = corners
    return Box(name, (ymin, xmin, ymax, xmax), where, difficult=_find_text(node, "difficult") == "1")


def _parse_size(root: XmlElement) -> tuple[int, int] | None:
    """Returns (height, width) according to the annotation; None if one is missing or 0."""
    try:
        height, width = int(float(_find_text(root, "size/height"))), int(float(_find_text(root, "size/width")))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _find_text(node: XmlElement, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _make_broken_image(entry: VocEntry, reason: str, detail: str) -> Image:
    return Image(entry.image_id, 0, entry.row, entry.annotation, "", "", problem=Problem(reason, detail))
