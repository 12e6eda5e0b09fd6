"""Parses the VOC annotation of one image.

Coordinates are used as they are, as in the TF Object Detection API: the devkit's shift by one pixel is not applied.
Rotated boxes (roLabelImg) and polygons (Roboflow, FAIR1M) become the upright box around them.
"""

import math
import posixpath
import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element as XmlElement

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from pipelines.annotations import Box, Image, Problem, pack_boxes
from pipelines.file_names import base_name, fold_name, stem_of
from pipelines.readers.sources import Location, locate_from_annotation, locate_image
from pipelines.text_encoding import decode_xml, explain_invalid
from ssd_dist.core.storage import join

SIDES = ("ymin", "xmin", "ymax", "xmax")


@dataclass(frozen=True)
class VocEntry:
    """One image to read.

    Attributes:
      image_id: id of the image, its path relative to the annotations without a suffix.
      row: position in the listing.
      annotation: path of the XML file.
      images: folder of the images.
      problem: set if the id is not usable.
      image: path of the only image file with the name of the annotation; empty if there is none.
    """

    image_id: str
    row: int
    annotation: str
    images: str
    problem: Problem | None = None
    image: str = ""


def parse_annotation(data: bytes, entry: VocEntry) -> Image:
    """Returns the image that an XML file describes."""
    try:
        root = fromstring(decode_xml(data), forbid_dtd=True)
    except DefusedXmlException as error:
        detail = f"the file contains a DTD or an entity ({type(error).__name__}); remove it"
        return make_broken_image(entry, "unsafe_annotation", detail)
    except (ParseError, ValueError, LookupError) as error:
        return make_broken_image(entry, "broken_annotation", explain_invalid(data, error))
    for node in root.iter():
        # Removes the namespace.
        node.tag = node.tag.rpartition("}")[2]
    if root.tag != "annotation":
        return make_broken_image(entry, "broken_annotation", f"expected <annotation>, got <{root.tag:.100}>")
    filename = _find_text(root, "filename") or entry.image_id
    # The image of an annotation in a subfolder is in the subfolder of the same name, or directly in the image folder.
    subfolder, stem = posixpath.split(entry.image_id)
    images = join(entry.images, subfolder) if subfolder else entry.images
    beside = locate_from_annotation(entry.annotation, filename, entry.images)
    location = beside or locate_image(images, filename, stem, dataset=entry.images)
    if entry.image and location.problem is None and fold_name(stem_of(base_name(filename))) != fold_name(stem):
        # Files may have been renamed: the image with the name of the annotation precedes the one that it names.
        location = Location(entry.image)
    return Image(
        image_id=entry.image_id,
        file=0,
        row=entry.row,
        source=entry.annotation,
        filename=filename,
        path=location.path,
        stems=location.stems,
        size=_parse_size(root),
        # Some datasets, such as FAIR1M, wrap the objects in <objects>.
        packed=pack_boxes(_parse_object(node, number) for number, node in enumerate(root.iter("object"))),
        problem=location.problem,
    )


def _parse_object(node: XmlElement, number: int) -> Box:
    where = f"object {number}"
    if _find_text(node, "deleted") == "1":
        return Box("", (0, 0, 0, 0), where, problem=Problem("marked_invalid", "the object was deleted in LabelMe"))
    name = _find_text(node, "name") or _find_text(node, "possibleresult/name")
    corners, is_reduced = _parse_corners(node), False
    if corners is None:
        points = _parse_points(node)
        is_reduced = bool(points)
        corners = (
            (min(y for _, y in points), min(x for x, _ in points), max(y for _, y in points), max(x for x, _ in points))
            if points
            else None
        )
    if corners is None:
        given = {side: _find_text(node, f"bndbox/{side}") for side in SIDES}
        detail = f"bndbox: expected four numbers, got {given}" if any(given.values()) else "the object has no bndbox"
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", detail))
    if not name:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", "the object has no name"))
    return Box(name, corners, where, difficult=_find_text(node, "difficult") == "1", is_reduced=is_reduced)


def _parse_corners(node: XmlElement) -> tuple[float, float, float, float] | None:
    """Returns the corners of an upright box; None if one is missing or is not a number."""
    try:
        ymin, xmin, ymax, xmax = (float(_find_text(node, f"bndbox/{side}")) for side in SIDES)
    except ValueError:
        return None
    return ymin, xmin, ymax, xmax


def _parse_points(node: XmlElement) -> list[tuple[float, float]]:
    """Returns the corners (x, y) of a rotated box or a polygon; empty if there is none or one is not a number."""
    try:
        rotated = node.find("robndbox")
        if rotated is not None:
            cx, cy, width, height, angle = (float(_find_text(rotated, key)) for key in ("cx", "cy", "w", "h", "angle"))
            cos, sin = math.cos(angle) / 2, math.sin(angle) / 2
            halves = [(width * i, height * j) for i, j in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
            return [(cx + w * cos - h * sin, cy + w * sin + h * cos) for w, h in halves]
        polygon = node.find("polygon")
        if polygon is not None and polygon.find("pt") is None:
            values = {child.tag: float(child.text or "") for child in polygon if re.fullmatch(r"[xy]\d+", child.tag)}
            return [(values[key], values[f"y{key[1:]}"]) for key in values if key[0] == "x" and f"y{key[1:]}" in values]
        if points := node.findall("polygon/pt"):
            # LabelMe of MIT.
            return [(float(_find_text(point, "x")), float(_find_text(point, "y"))) for point in points]
        texts = [point.text or "" for point in node.iterfind("points/point")]
        return [(float(x), float(y)) for x, y in (text.split(",")[:2] for text in texts)]
    except ValueError:
        return []


def _parse_size(root: XmlElement) -> tuple[int, int] | None:
    """Returns (height, width) according to the annotation; None if one is missing or 0."""
    try:
        height, width = int(float(_find_text(root, "size/height"))), int(float(_find_text(root, "size/width")))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _find_text(node: XmlElement, path: str) -> str:
    return (node.findtext(path) or "").strip()


def make_broken_image(entry: VocEntry, reason: str, detail: str) -> Image:
    """Returns the image of an entry whose annotation is not usable."""
    return Image(entry.image_id, 0, entry.row, entry.annotation, "", "", problem=Problem(reason, detail))
