"""Parses the labels of WIDER FACE: one text file for all images, wider_face_split/wider_face_train_bbx_gt.txt.

    0--Parade/0_Parade_marchingband_1_849.jpg
    1
    449 330 122 149 0 0 0 0 0 0

Format: http://shuoyang1213.me/WIDERFACE/ (readme.txt). An entry is a path below WIDER_train/images, the number of
faces, and a line per face: left, top, width, height, blur, expression, illumination, invalid, occlusion, pose.
Coordinates are in pixels. An image without faces has the number 0 and one line of zeros. The only class is `face`.
Faces that are marked as invalid are rejected with the reason "marked_invalid".
"""

from collections.abc import Iterator

from pipelines.annotations import IMAGE_SUFFIXES, Problem
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import ObjectError, ParsedObject, parse_objects
from pipelines.readers.text_lines import read_fields, read_lines

FIELDS = ("left", "top", "width", "height")
FLAGS = ("blur", "expression", "illumination", "invalid")


def parse_wider(data: bytes) -> Iterator[ParsedImage]:
    """Yields the images of a label file.

    Raises:
      ValueError: if the file does not begin with the name of an image.
    """
    name, where = "", ""
    lines: list[tuple[str, str]] = []
    for place, line in read_lines(data):
        if line.lower().endswith(IMAGE_SUFFIXES):
            if name:
                yield _parse_entry(name, where, lines)
            name, where, lines = line, place, []
        elif name:
            lines.append((place, line))
        else:
            raise ValueError(f"not a label file of WIDER FACE: expected the name of an image, got {line!r:.100}")
    if name:
        yield _parse_entry(name, where, lines)


def _parse_entry(name: str, where: str, lines: list[tuple[str, str]]) -> ParsedImage:
    count = lines[0][1] if lines else ""
    faces = lines[1:]
    if count == "0" and len(faces) == 1 and not any(field != "0" for field in faces[0][1].split()):
        faces = []
    boxes = parse_objects(faces, _parse_line)
    problem = None
    if count != str(len(faces)):
        problem = Problem("broken_annotation", f"expected the number of faces, {len(faces)}, got {count!r:.100}")
    return ParsedImage(name, boxes, where, problem=problem)


def _parse_line(line: str) -> ParsedObject:
    fields = line.split()
    left, top, width, height = read_fields(fields, *FIELDS)
    if len(fields) > len(FIELDS) and read_fields(fields, *FIELDS, *FLAGS)[-1]:
        raise ObjectError("marked_invalid", "WIDER FACE marks the face as invalid")
    return ParsedObject(("face",), (top, left, top + height, left + width))
