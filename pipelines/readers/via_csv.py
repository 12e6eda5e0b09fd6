"""Parses CSV files of VIA 1 and 2 (VGG Image Annotator): one row per region.

    filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes
    a.jpg,3000,"{}",1,0,"{""name"":""rect"",""x"":10,""y"":12,""width"":40,""height"":48}","{""type"":""bolt""}"

Format: https://www.robots.ox.ac.uk/~vgg/software/via/docs/user_guide.html. The last two columns are JSON. An image
without regions has one row with the region count 0. VIA 1.0 writes # before the header. Classes, shapes and units are
described in via_regions.py.
"""

import csv
import io
from collections.abc import Iterator
from functools import partial
from typing import Any

from pipelines.annotations import Problem
from pipelines.readers.json_values import load_json
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import parse_objects
from pipelines.readers.via_regions import find_class_attribute, parse_region
from pipelines.text_encoding import decode_text

COLUMNS = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"


def parse_via_csv(data: bytes) -> Iterator[ParsedImage]:
    """Yields the images of a CSV file, each at its first row.

    Raises:
      ValueError: if the file is not a CSV file of VIA.
    """
    try:
        reader = csv.reader(io.StringIO(decode_text(data), newline=""))
        rows = [(f"line {reader.line_num}", row) for row in reader if row]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"not a CSV file: {error}") from None
    header = ",".join(name.strip().lower() for name in rows[0][1]) if rows else ""
    if header.removeprefix("#") != COLUMNS:
        raise ValueError(f"not a CSV file of VIA: expected the header {COLUMNS}")
    images: dict[str, list[tuple[str, Any]]] = {}
    for where, row in rows[1:]:
        regions = images.setdefault(row[0].strip(), [])
        regions += ((where, region) for region in _read_row(row))
    attribute = find_class_attribute(region for regions in images.values() for _, region in regions)
    for filename, regions in images.items():
        boxes = parse_objects(regions, partial(parse_region, attribute))
        problem = None if filename else Problem("broken_annotation", "the file name is empty")
        yield ParsedImage(filename, boxes, problem=problem)


def _read_row(row: list[str]) -> list[Any]:
    """Returns the region of a row, as in the JSON files; an empty list for an image without regions."""
    if len(row) != COLUMNS.count(",") + 1:
        return [f"a row of {len(row)} columns"]
    try:
        shape, attributes = map(load_json, (field.encode("utf-8", "surrogatepass") for field in row[-2:]))
    except ValueError as error:
        return [str(error)]
    if not shape and row[3].strip() in ("", "0"):
        return []
    return [{"shape_attributes": shape, "region_attributes": attributes}]
