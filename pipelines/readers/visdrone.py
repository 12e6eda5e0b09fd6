"""Parses the labels of VisDrone-DET: one text file per image, annotations/a.txt for images/a.jpg.

    684,8,273,116,0,0,0,0
    406,119,265,70,1,4,0,1

Format: https://github.com/VisDrone/VisDrone2018-DET-toolkit. The fields are left, top, width, height, score, category,
truncation, occlusion. Coordinates are in pixels. The dataset defines the names of the categories, `CATEGORIES`.
Category 0 and score 0 mark regions that the benchmark ignores. They are rejected with the reason "ignored_region" and
their pixels are trained as background.
"""

from collections.abc import Iterator

from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import ObjectError, ParsedObject, parse_objects
from pipelines.readers.text_lines import read_fields, read_lines

CATEGORIES = (
    "ignored regions", "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus",
    "motor", "others",
)  # fmt: skip
FIELDS = ("left", "top", "width", "height", "score", "category")


def parse_visdrone(data: bytes) -> Iterator[ParsedImage]:
    """Yields the image of a label file, without a file name.

    Raises:
      ValueError: if the file is not text.
    """
    boxes = parse_objects(read_lines(data), _parse_line)
    yield ParsedImage("", boxes)


def _parse_line(line: str) -> ParsedObject:
    left, top, width, height, score, category = read_fields(line.split(","), *FIELDS)
    if category not in range(len(CATEGORIES)):
        raise ValueError(f"category: expected 0 to {len(CATEGORIES) - 1}, got {category:g}")
    if category == 0 or score == 0:
        raise ObjectError("ignored_region", "VisDrone ignores the region in evaluation; it is trained as background")
    return ParsedObject((CATEGORIES[int(category)],), (top, left, top + height, left + width))
