"""Parses the lists of keras-yolo3 and its successors: one text file for all images, one line per image.

    images/a.jpg 10,12,50,60,0 30,20,44,58,2
    images/b.jpg

Format: https://github.com/qqwweee/keras-yolo3#training. A line is the path of the image and left, top, right, bottom,
class of each box. Coordinates are in pixels. The class is an index into a file with one class name per line, or a name.
The path may contain spaces; it ends at the first suffix of an image.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial

from pipelines.annotations import IMAGE_SUFFIXES, Problem
from pipelines.json_stream import parse_integer
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import ParsedObject, parse_objects
from pipelines.readers.text_lines import read_fields, read_lines

FIELDS = ("left", "top", "right", "bottom")
LINE = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))(?:\s+(.*))?", re.IGNORECASE)


def parse_keras_yolo(data: bytes, names: Sequence[str] = ()) -> Iterator[ParsedImage]:
    """Yields the images of a list.

    Args:
      data: the list.
      names: the class names; if empty, the class of a box is used as its name.

    Raises:
      ValueError: if no line begins with the path of an image.
    """
    lines = [(where, line, LINE.fullmatch(line)) for where, line in read_lines(data)]
    if lines and not any(match for _, _, match in lines):
        expected = "PATH.jpg left,top,right,bottom,class ..."
        raise ValueError(f"not a list of images and boxes: expected {expected}, got {lines[0][1]!r:.100}")
    for where, line, match in lines:
        if match is None:
            problem = Problem("broken_annotation", f"the line has no path of an image: {line!r:.100}")
            yield ParsedImage("", where=where, problem=problem)
            continue
        fields = enumerate((match[2] or "").split())
        boxes = parse_objects(((f"{where}, box {i}", field) for i, field in fields), partial(_parse_box, names))
        yield ParsedImage(match[1], boxes, where)


def _parse_box(names: Sequence[str], text: str) -> ParsedObject:
    fields = text.split(",")
    if len(fields) != len(FIELDS) + 1:
        raise ValueError(f"expected left,top,right,bottom,class, got {text!r:.100}")
    left, top, right, bottom = read_fields(fields, *FIELDS)
    name = fields[-1]
    if names and name not in names:
        if not name.isascii() or not name.isdigit() or parse_integer(name) >= len(names):
            raise ValueError(f"class: expected a name or 0 to {len(names) - 1}, got {name!r:.100}")
        name = names[int(name)]
    return ParsedObject((name,) if name else (), (top, left, bottom, right))
