"""Parses the labels of the KITTI object benchmark: one text file per image, label_2/000001.txt for image_2/000001.png.

    Car 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 69.44 -1.56

Format: https://github.com/bostondiditeam/kitti/blob/master/resources/devkit_object/readme.txt. The fields are type,
truncated, occluded, alpha, left, top, right, bottom, and the size, location and rotation in space, which are ignored.
Coordinates are in pixels. Regions with the type DontCare contain objects that were not labeled. They have no class,
which records need, so they are rejected with the reason "dont_care" and their pixels are trained as background.
"""

from collections.abc import Iterator

from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import ObjectError, ParsedObject, parse_objects
from pipelines.readers.text_lines import read_fields, read_lines

FIELDS = ("truncated", "occluded", "alpha", "left", "top", "right", "bottom")


def parse_kitti(data: bytes) -> Iterator[ParsedImage]:
    """Yields the image of a label file, without a file name.

    Raises:
      ValueError: if the file is not text.
    """
    boxes = parse_objects(read_lines(data), _parse_line)
    yield ParsedImage("", boxes)


def _parse_line(line: str) -> ParsedObject:
    name, *fields = line.split()
    left, top, right, bottom = read_fields(fields, *FIELDS)[3:]
    if name.lower() == "dontcare":
        raise ObjectError("dont_care", "KITTI marks a region without labeled objects; it is trained as background")
    return ParsedObject((name,), (top, left, bottom, right))
