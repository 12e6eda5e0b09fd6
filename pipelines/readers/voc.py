"""Pascal VOC: one XML file an image.

    DIR/Annotations/*.xml  DIR/JPEGImages/*  DIR/ImageSets/Main/SPLIT.txt      the devkit's layout
    DIR/Annotations/SPLIT/*.xml  DIR/JPEGImages/[SPLIT/]*                      the same without lists
    DIR/SPLIT/*.xml beside the images                                          one folder a split
    DIR/*.xml or a pattern of XML files                                        everything is one split

With `--split_by` all of Annotations is one set, or DIR/*.xml, unless `--source_split` names a SPLIT.
Boxes are taken as xmin / width and so on, without the devkit's shift by one pixel, as the TF Object Detection API does.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element as XmlElement

import apache_beam as beam
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from pipelines import beam_storage
from pipelines.annotations import Box, Category, Element, Image, Listing, Problem, keyed, pack_boxes
from pipelines.readers.sources import Location, Source, SpreadInputs, locate_image, require_input
from ssd_dist.core.errors import DataError


@dataclass(frozen=True)
class VocLayout:
    """Where one input keeps its parts; `list_file` is empty where every annotation belongs to the split.

    With `is_flat` folders below the annotations are not theirs.
    """

    annotations: str
    images: str
    list_file: str = ""
    is_flat: bool = False


@dataclass(frozen=True)
class VocEntry:
    """One image to read: the place in the listing, its annotation and the folder of its image, or what is wrong."""

    image_id: str
    row: int
    annotation: str
    images: str
    problem: Problem | None = None


def read_voc(source: Source) -> beam.PTransform:
    """The transform that reads the source; finds the layout of each input first.

    Raises:
      DataError: if an input or its split is missing.
    """
    return ReadVoc(tuple(find_layout(path, source) for path in source.inputs), source)


class ReadVoc(beam.PTransform):
    """Pascal VOC annotations -> elements."""

    def __init__(self, layouts: tuple[VocLayout, ...], source: Source) -> None:
        super().__init__()
        self._layouts = layouts
        self._source = source

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Lists in order, then parses in parallel."""
        return (
            begin
            | "Layouts" >> SpreadInputs([self._layouts])
            | "List annotations" >> beam.FlatMap(list_annotations, self._source)
            | "Spread annotations" >> beam.Reshuffle()
            | "Parse annotations" >> beam.FlatMap(read_annotation)
        )


def find_layout(path: str, source: Source) -> VocLayout:
    """Finds annotations, images and the list of the split below an input folder; a pattern of XML files is taken as is.

    Raises:
      DataError: if there are none, or not this split.
    """
    if beam_storage.is_pattern(path):
        if not beam_storage.match_files(path):
            raise DataError(f"--input={path} matches no file; check the pattern")
        return VocLayout(path, source.image_dir)
    require_input(path)
    devkit = beam_storage.join(path, "Annotations")
    if beam_storage.exists(devkit):
        images = source.image_dir or beam_storage.join(path, "JPEGImages")
        if not beam_storage.exists(images):
            raise DataError(f"no images in {images}; name their folder with --image_dir")
        list_file = _find_list(path, source) if source.split_name else ""
        if list_file or not source.split_name or not beam_storage.exists(beam_storage.join(devkit, source.split_name)):
            return VocLayout(devkit, images, list_file)
        # No list, but a folder for each split.
        own = beam_storage.join(images, source.split_name)
        return VocLayout(beam_storage.join(devkit, source.split_name), own if beam_storage.exists(own) else images)
    for folder in (beam_storage.join(path, source.split_name).rstrip("/"), path):
        if any(name.lower().endswith(".xml") for name in beam_storage.list_files(folder)):
            return VocLayout(folder, source.image_dir or folder, is_flat=True)
    hint = "is --input_format=voc right?" if source.split_name else "--source_split names the folder to split"
    raise DataError(f"--input={path} holds neither Annotations/ nor XML files; {hint}")


def _find_list(path: str, source: Source) -> str:
    lists = beam_storage.join(path, "ImageSets", "Main")
    wanted = beam_storage.join(lists, f"{source.split_name}.txt")
    if beam_storage.exists(wanted):
        return wanted
    known = [posixpath.basename(name).removesuffix(".txt") for name in beam_storage.list_files(lists)]
    if known or (source.split and not beam_storage.exists(beam_storage.join(path, "Annotations", source.split))):
        raise DataError(
            f"{wanted} does not exist; --source_split takes one of: {', '.join(known) or 'none, there are no lists'}"
        )
    return ""


def list_annotations(layouts: tuple[VocLayout, ...], source: Source) -> Iterator[VocEntry | Listing]:
    """The annotations of all inputs in order, then the end of the listing."""
    row = 0
    for layout in layouts:
        for name, where in _annotations(layout):
            image_id = posixpath.splitext(name)[0] if name.lower().endswith(".xml") else name
            if source.keeps(image_id):
                images = layout.images or posixpath.dirname(where.path)
                yield VocEntry(image_id, row, where.path or layout.list_file, images, where.problem)
                row += 1
    yield Listing(0, row, layouts[0].annotations)


def _annotations(layout: VocLayout) -> Iterator[tuple[str, Location]]:
    if layout.list_file:
        for name in _listed_names(layout):
            where = locate_image(layout.annotations, f"{name}.xml")
            yield posixpath.basename(name) if where.problem else name, where
        return
    if beam_storage.is_pattern(layout.annotations):
        yield from ((posixpath.basename(path), Location(path)) for path in beam_storage.match_files(layout.annotations))
        return
    # Beside their images the annotations of one split lie in one folder; the devkit's folder holds all, at any depth.
    found = (
        beam_storage.list_files(layout.annotations)
        if layout.is_flat
        else beam_storage.match_below(layout.annotations, "**")
    )
    for path in found:
        if path.lower().endswith(".xml"):
            yield beam_storage.path_below(layout.annotations, path), Location(path)


def _listed_names(layout: VocLayout) -> list[str]:
    """The ids of the list file, without the second column (1, 0 or -1) of the devkit's per-class lists.

    An id may hold blanks and end in such a number, too: if there is an annotation of that name.
    """
    lines = list(filter(None, map(str.strip, beam_storage.read_text(layout.list_file).split("\n"))))
    columns = {line: column[1] for line in lines if (column := re.fullmatch(r"(.*\S)\s+-?[01]", line))}
    found = beam_storage.match_below(layout.annotations, "**") if columns else []
    there = {beam_storage.path_below(layout.annotations, path) for path in found}
    return [columns[line] if line in columns and f"{line}.xml" not in there else line for line in lines]


def read_annotation(entry: VocEntry | Listing) -> Iterator[Element]:
    """The image that an entry stands for and the classes it shows; a broken annotation is an image with a problem."""
    if isinstance(entry, Listing):
        yield keyed(entry)
        return
    if entry.problem is not None:
        yield keyed(_broken(entry, *entry.problem))
        return
    try:
        image = parse_annotation(beam_storage.read_item(entry.annotation), entry)
    except (*beam_storage.LASTING, ValueError) as error:
        image = _broken(entry, "missing_annotation", str(error))
    yield keyed(image)
    for name in dict.fromkeys(box.category for box in image.boxes if box.problem is None):
        yield keyed(Category(name, 0, name))


def parse_annotation(data: bytes, entry: VocEntry) -> Image:
    """The image that an XML file describes."""
    try:
        root = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        return _broken(entry, "unsafe_annotation", f"DTDs and entities are refused ({type(error).__name__})")
    except (ParseError, ValueError, LookupError) as error:
        return _broken(entry, "broken_annotation", str(error))
    for node in root.iter():
        # The name without its namespace.
        node.tag = node.tag.rpartition("}")[2]
    if root.tag != "annotation":
        return _broken(entry, "broken_annotation", f"expected <annotation>, got <{root.tag:.100}>")
    filename = _text(root, "filename") or entry.image_id
    # An annotation in a folder below is of the image in the folder of that name, or of one where all are together.
    below, stem = posixpath.split(entry.image_id)
    images = beam_storage.join(entry.images, below) if below else entry.images
    where = locate_image(images, filename, stem, home=entry.images)
    return Image(
        image_id=entry.image_id,
        file=0,
        row=entry.row,
        source=entry.annotation,
        filename=filename,
        path=where.path,
        stems=where.stems,
        size=_size(root),
        packed=pack_boxes(_parse_object(node, number) for number, node in enumerate(root.findall("object"))),
        problem=where.problem,
    )


def _parse_object(node: XmlElement, number: int) -> Box:
    where = f"object {number}"
    name = _text(node, "name")
    try:
        corners = [float(_text(node, f"bndbox/{side}")) for side in ("ymin", "xmin", "ymax", "xmax")]
    except ValueError as error:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", f"bndbox: {error}"))
    if not name:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", "the object has no name"))
    ymin, xmin, ymax, xmax = corners
    return Box(name, (ymin, xmin, ymax, xmax), where, difficult=_text(node, "difficult") == "1")


def _size(root: XmlElement) -> tuple[int, int] | None:
    """(height, width) as claimed; None where the tool that wrote the file left them out or at 0."""
    try:
        height, width = int(float(_text(root, "size/height"))), int(float(_text(root, "size/width")))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _text(node: XmlElement, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _broken(entry: VocEntry, reason: str, detail: str) -> Image:
    return Image(entry.image_id, 0, entry.row, entry.annotation, "", "", problem=Problem(reason, detail))
