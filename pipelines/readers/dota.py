"""Parses the labels of DOTA 1.0, 1.5 and 2.0 (aerial images): one text file per image, labelTxt/P0001.txt.

    imagesource:GoogleEarth
    gsd:0.146343590398
    2753.0 2408.0 2861.0 2385.0 2888.0 2468.0 2805.0 2502.0 plane 0

Format: https://captain-whu.github.io/DOTA/dataset.html. The two header lines are optional. A line contains x and y of
the four corners of a rotated box, in pixels, the class, and the difficulty: 0 or 1, in DOTA 1.5 and 2.0 also 2 for very
small objects. Every difficulty but 0 sets the flag `difficult`. Rotated boxes become their bounds.
"""

from collections.abc import Iterator

from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import ParsedObject, parse_objects
from pipelines.readers.shapes import bound_points
from pipelines.readers.text_lines import read_fields, read_lines

HEADERS = ("imagesource:", "gsd:")
FIELDS = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")


def parse_dota(data: bytes) -> Iterator[ParsedImage]:
    """Yields one image with the boxes of a DOTA label file.

    Its file name is empty, because the label file does not contain it.

    Raises:
      ValueError: if the file is not text.
    """
    lines = ((where, line) for where, line in read_lines(data) if not line.lower().startswith(HEADERS))
    boxes = parse_objects(lines, _parse_line)
    yield ParsedImage("", boxes)


def _parse_line(line: str) -> ParsedObject:
    fields = line.split()
    numbers = read_fields(fields, *FIELDS)
    if not len(FIELDS) < len(fields) <= len(FIELDS) + 2:
        raise ValueError(f"expected {' '.join(FIELDS)} class difficulty, got {line!r:.100}")
    corners = bound_points(list(zip(numbers[::2], numbers[1::2], strict=True)))
    difficulty = read_fields(fields[9:], "difficulty")[0] if len(fields) > 9 else 0
    # Upright boxes are written in the same way.
    is_upright = len(set(numbers[::2])) == len(set(numbers[1::2])) == 2
    return ParsedObject((fields[8],), corners, is_reduced=not is_upright, difficult=difficulty != 0)
