"""Parses "CVAT for images 1.1": one XML file for all images of a task or project.

    <annotations><version>1.1</version><meta>...</meta>
      <image id="0" name="a.jpg" width="96" height="72">
        <box label="bolt" xtl="10.5" ytl="12.0" xbr="50.1" ybr="60.0" rotation="30.0" .../>
        <polygon label="nut" points="1.0,2.0;3.5,4.0;5.0,6.0" .../>
        <ellipse label="nut" cx="30" cy="20" rx="10" ry="5" .../>
        <mask label="nut" rle="3, 5, 8" left="4" top="6" width="4" height="4" .../>
      </image>
    </annotations>

Format: https://docs.cvat.ai/docs/manual/advanced/xml_format/. Coordinates are in pixels; `rotation` is in degrees,
clockwise around the center. Rotated boxes, polygons, polylines, ellipses, cuboids and masks become their bounds. Points
and skeletons have no area and are rejected. Tags describe the whole image and are not objects.
"CVAT for video" contains tracks instead of images and is refused.

The export of a project names the subset of each image (`<image subset="Train" ...>`), and its files are in
images/SUBSET/NAME. Names of images are unique only within a subset, so the subset precedes the name of the image and is
its split. If every image is in the subset "default", the project has no splits.
"""

import math
from collections.abc import Iterator
from xml.etree.ElementTree import Element as XmlElement

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from pipelines.annotations import Problem
from pipelines.readers.json_values import read_name, read_number, read_size
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import Corners, ParsedObject, parse_objects
from pipelines.readers.shapes import bound_ellipse, bound_points, bound_rotated_box, reject_points
from pipelines.text_encoding import decode_xml, explain_invalid

DEFAULT_SUBSET = "default"
CUBOID_CORNERS = tuple(f"{row}{column}{face}" for face in (1, 2) for row in "tb" for column in "lr")


def parse_cvat_xml(data: bytes) -> Iterator[ParsedImage]:
    """Yields the images of an annotation file.

    Raises:
      ValueError: if the file is not an export of "CVAT for images", or contains a DTD or an entity.
    """
    images = _read_images(data)
    has_subsets = _have_subsets(images)
    for index, node in enumerate(images):
        yield _parse_image(node, f"image {index}", has_subsets)


def list_cvat_images(data: bytes) -> Iterator[ParsedImage]:
    """Yields the images of an annotation file without their objects; raises ValueError like `parse_cvat_xml`."""
    images = _read_images(data)
    has_subsets = _have_subsets(images)
    for node in images:
        filename, split = _read_filename(node, has_subsets)
        yield ParsedImage(filename, split=split)


def _read_images(data: bytes) -> list[XmlElement]:
    try:
        root = fromstring(decode_xml(data), forbid_dtd=True)
    except DefusedXmlException as error:
        raise ValueError(f"the file contains a DTD or an entity ({type(error).__name__}); remove it") from None
    except (ParseError, ValueError, LookupError) as error:
        raise ValueError(f"not valid XML: {explain_invalid(data, error)}") from None
    if root.tag != "annotations":
        raise ValueError(f"not an export of CVAT: expected <annotations>, got <{root.tag:.100}>")
    images = root.findall("image")
    if not images and root.find("track") is not None:
        raise ValueError('an export "CVAT for video 1.1", which has no images; export "CVAT for images 1.1" from CVAT')
    if not images:
        raise ValueError("not an export of CVAT: <annotations> contains no <image>")
    return images


def _have_subsets(images: list[XmlElement]) -> bool:
    return any(image.get("subset", "").strip() not in ("", DEFAULT_SUBSET) for image in images)


def _read_filename(node: XmlElement, has_subsets: bool) -> tuple[str, str]:
    """Returns the name of the image file, below the folder of its subset, and the subset."""
    filename, subset = node.get("name", "").strip(), node.get("subset", "").strip()
    if not has_subsets:
        return filename, ""
    return f"{subset}/{filename}" if subset and filename else filename, subset or DEFAULT_SUBSET


def _parse_image(node: XmlElement, where: str, has_subsets: bool) -> ParsedImage:
    shapes = [shape for shape in node if shape.tag != "tag"]
    boxes = parse_objects(((f"{where}, {shape.tag} {i}", shape) for i, shape in enumerate(shapes)), _parse_shape)
    size = read_size(node.get("height"), node.get("width"))
    filename, split = _read_filename(node, has_subsets)
    problem = None if filename else Problem("broken_annotation", "the image has no name")
    return ParsedImage(filename, boxes, where, size, problem, split)


def _parse_shape(shape: XmlElement) -> ParsedObject:
    name = read_name(shape.get("label"), "label")
    if shape.tag in ("points", "skeleton"):
        raise reject_points(f"<{shape.tag}>")
    angle = math.radians(read_number(shape.get("rotation", "0"), "rotation"))
    if shape.tag == "box":
        xmin, ymin, xmax, ymax = _read_numbers(shape, "xtl", "ytl", "xbr", "ybr")
        corners = ymin, xmin, ymax, xmax
        center = (xmin + xmax) / 2, (ymin + ymax) / 2
        return ParsedObject((name,), bound_rotated_box(corners, angle, center) if angle else corners, angle != 0)
    return ParsedObject((name,), _bound_shape(shape, angle), is_reduced=True)


def _bound_shape(shape: XmlElement, angle: float) -> Corners:
    if shape.tag in ("polygon", "polyline"):
        pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"points: expected x,y;x,y;... got {shape.get('points', '')!r:.100}")
        return bound_points([(read_number(x, "points"), read_number(y, "points")) for x, y in pairs])
    if shape.tag == "ellipse":
        x, y, radius_x, radius_y = _read_numbers(shape, "cx", "cy", "rx", "ry")
        return bound_ellipse((x, y), radius_x, radius_y, angle)
    if shape.tag == "mask":
        left, top, width, height = _read_numbers(shape, "left", "top", "width", "height")
        return top, left, top + height, left + width
    if shape.tag == "cuboid":
        xs, ys = (_read_numbers(shape, *(f"{axis}{corner}" for corner in CUBOID_CORNERS)) for axis in "xy")
        return bound_points(list(zip(xs, ys, strict=True)))
    raise ValueError(f"<{shape.tag:.100}> is not supported; expected box, polygon, polyline, ellipse, mask or cuboid")


def _read_numbers(node: XmlElement, *names: str) -> list[float]:
    return [read_number(node.get(name), name) for name in names]
