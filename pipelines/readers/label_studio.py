"""Parses the exports "JSON" and "JSON-MIN" of Label Studio: one file for all tasks.

    [{"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"was_cancelled": false, "result": [
        {"id": "r1", "type": "rectanglelabels", "original_width": 96, "original_height": 72, "value":
         {"x": 10, "y": 20, "width": 40, "height": 30, "rotation": 0, "rectanglelabels": ["bolt"]}}, ...]}]}, ...]

    [{"id": 1, "image": "/data/upload/1/0a1b2c3d-a.jpg", "label": [{"x": 10, "y": 20, ..., "rectanglelabels": ["bolt"],
      "original_width": 96, "original_height": 72}, ...]}, ...]

Format: https://labelstud.io/guide/export. Coordinates are percentages of the width and height of the image. `rotation`
is in degrees, clockwise around the top left corner of a box and the center of an ellipse. Rotated boxes, polygons and
ellipses become their bounds. Key points and brush masks are rejected. A region with several labels gives one box per
label. Results without a region (choices, texts, ratings) describe the image and are not objects.

If a task has several annotations, the one that was updated last is used, without cancelled (skipped) ones. A task
without an annotation is rejected, because it may contain objects; an annotation without regions is an image without
objects. Predictions are ignored.

The file name is that of `original_path`.
"""

import base64
import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipelines.annotations import IMAGE_SUFFIXES, Problem
from pipelines.readers.json_values import (
    load_json,
    read_list,
    read_name,
    read_number,
    read_numbers,
    read_object,
    read_points,
    read_size,
)
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import Corners, ObjectError, ParsedObject, parse_objects
from pipelines.readers.shapes import bound_ellipse, bound_points, bound_rotated_box, reject_points

ANNOTATION_KEYS = ("annotations", "completions")
# Keys of a row of JSON-MIN besides those of the task.
ROW_KEYS = ("annotation_id", "annotator", "lead_time")
MASK_KEYS = ("rle", "imageDataURL")
GEOMETRY_KEYS = ("x", "y", "width", "height", "radiusX", "radiusY", "rotation", "points", "vertices", *MASK_KEYS)


def parse_label_studio(data: bytes) -> Iterator[ParsedImage]:
    """Yields the images of an export.

    Raises:
      ValueError: if the file is not an export of Label Studio.
    """
    root = load_json(data)
    tasks = [root] if isinstance(root, dict) else root
    if not isinstance(tasks, list) or (tasks and not any(map(_is_task, tasks))):
        raise ValueError("not an export of Label Studio: expected a list of tasks with 'data' and 'annotations'")
    # JSON-MIN has one row per annotation, so a task may have several rows.
    last_rows: dict[str, int] = {}
    for index, task in enumerate(tasks):
        key = _task_id(task)
        if key and (key not in last_rows or _update_time(task) >= _update_time(tasks[last_rows[key]])):
            last_rows[key] = index
    for index, task in enumerate(tasks):
        if last_rows.get(_task_id(task), index) == index:
            yield _parse_task(task, f"[{index}]")


def original_path(uri: str) -> str:
    """Returns the path of an image from the reference that Label Studio exports.

    - `/data/upload/1/0a1b2c3d-a.jpg`: the file name, see also `remove_upload_prefix`
    - `/data/local-files/?d=folder/a.jpg`: the path below the document root
    - `s3://bucket/folder/a.jpg`, `gs://...`, `https://host/folder/a.jpg?query`: the path below the bucket or host
    - a presigned `/tasks/1/resolve/?fileuri=...`: the path of the file it refers to

    Raises:
      ValueError: if the reference is broken.
    """
    parts = urlsplit(uri.replace("\\", "/"))
    query = parse_qs(parts.query)
    if parts.path.rstrip("/").endswith("/local-files") and "d" in query:
        return query["d"][0]
    if parts.path.startswith("/tasks/") and "fileuri" in query:
        return original_path(base64.b64decode(query["fileuri"][0], validate=True).decode())
    if "/data/upload/" in parts.path:
        return unquote(parts.path.rpartition("/")[2])
    if parts.scheme in ("http", "https"):
        return unquote(parts.path).lstrip("/")
    return parts.path.lstrip("/") if parts.netloc else uri


def remove_upload_prefix(filename: str) -> str:
    """Returns the name that a file had before its upload to Label Studio, which adds 8 hex digits: 0a1b2c3d-a.jpg."""
    return re.sub(r"^[0-9a-f]{8}-(?=.)", "", filename)


def _is_task(task: Any) -> bool:
    if not isinstance(task, dict):
        return False
    if isinstance(task.get("data"), dict):
        return any(key in task for key in (*ANNOTATION_KEYS, "predictions"))
    return any(key in task for key in ROW_KEYS)


def _task_id(task: Any) -> str:
    """Returns the id of a row of JSON-MIN; empty for a task of JSON, which contains all its annotations."""
    is_row = isinstance(task, dict) and "data" not in task
    return str(task["id"]) if is_row and task.get("id") is not None else ""


def _update_time(entry: dict[str, Any]) -> str:
    return str(entry.get("updated_at") or entry.get("created_at") or "")


def _parse_task(task: Any, where: str) -> ParsedImage:
    filename, results = "", []
    problem = None
    try:
        read_object(task, "task")
        results = _list_results(task, where)
        filename = original_path(_find_image(task.get("data", task)))
    except ValueError as error:
        reason = error.reason if isinstance(error, ObjectError) else "broken_annotation"
        problem = Problem(reason, str(error))
    sizes = [size for _, item in results if isinstance(item, dict) and (size := _read_size(item))]
    regions = [(place, region) for place, region in _group_regions(results) if _is_region(region)]
    boxes = parse_objects(regions, partial(_parse_region, sizes[0] if sizes else None))
    return ParsedImage(filename, boxes, where, sizes[0] if sizes else None, problem)


def _list_results(task: dict[str, Any], where: str) -> list[tuple[str, Any]]:
    """Returns the position and value of each result of the annotation that was updated last.

    Raises:
      ValueError: if there is none.
    """
    if "data" not in task:
        return [
            (f"{where}.{key}[{i}]", {**item, "value": item} if isinstance(item, dict) else item)
            for key, items in task.items()
            if isinstance(items, list) and any(isinstance(item, dict) for item in items)
            for i, item in enumerate(items)
        ]
    key = next((key for key in ANNOTATION_KEYS if key in task), ANNOTATION_KEYS[0])
    annotations = read_list(task.get(key, []), key)
    completed = [
        (_update_time(entry), index)
        for index, entry in enumerate(annotations)
        if not (read_object(entry, key).get("was_cancelled") or entry.get("skipped"))
    ]
    if not completed:
        raise ObjectError("not_annotated", "the task has no annotation, or only cancelled ones; annotate it")
    index = max(completed)[1]
    results = read_list(annotations[index].get("result"), "result")
    return [(f"{where}.{key}[{index}].result[{i}]", result) for i, result in enumerate(results)]


def _find_image(data: Any) -> str:
    """Returns the reference to the image: the value of `image`, else the first value with the suffix of an image."""
    values = {key: value for key, value in read_object(data, "data").items() if isinstance(value, str)}
    found = [value for value in values.values() if value.partition("?")[0].lower().endswith(IMAGE_SUFFIXES)]
    found += [value for value in values.values() if value.lower().endswith(IMAGE_SUFFIXES)]
    return read_name(values.get("image") or next(iter(found), None), "image")


def _group_regions(results: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields one entry per region, because the tags `Rectangle` and `Labels` give a result each for the same region."""
    groups: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, item in results:
        value = item.get("value") if isinstance(item, dict) else None
        if not isinstance(value, dict):
            # Relations between regions have no value.
            if not isinstance(item, dict) or "value" in item:
                yield where, item
            continue
        geometry = {name: value[name] for name in GEOMETRY_KEYS if name in value}
        # JSON-MIN has no ids.
        key = str(item.get("id") or (geometry if geometry else where))
        names = [name for field, given in value.items() if field.endswith("labels") for name in _as_list(given)]
        has_labels = any(field.endswith("labels") for field in value)
        region = groups.setdefault(key, (where, {"names": [], "has_labels": False}))[1]
        region["names"] += names
        region["has_labels"] |= has_labels
        region.update(geometry, size=_read_size(item), image_rotation=item.get("image_rotation") or 0)
    yield from groups.values()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_region(region: Any) -> bool:
    """Returns whether a result describes an object and not the whole image."""
    return not isinstance(region, dict) or "names" not in region or region["has_labels"] or _has_geometry(region)


def _has_geometry(region: dict[str, Any]) -> bool:
    return any(key in region for key in GEOMETRY_KEYS)


def _read_size(result: dict[str, Any]) -> tuple[int, int] | None:
    return read_size(result.get("original_height"), result.get("original_width"))


def _parse_region(size: tuple[int, int] | None, value: Any) -> ParsedObject:
    region = read_object(value, "result")
    names = tuple(read_name(name, "labels") for name in read_list(region.get("names"), "value"))
    if read_number(region["image_rotation"], "image_rotation") % 360:
        raise ObjectError("rotated_image", "the image was rotated in Label Studio; rotate the file instead")
    height, width = region["size"] or size or (0, 0)
    corners, reduced = _bound_region(region, height, width)
    return ParsedObject(names, corners, reduced, normalized=True)


def _bound_region(region: dict[str, Any], height: int, width: int) -> tuple[Corners, bool]:
    """Returns the box of a region, as fractions of the image, and whether it is the bounds of another shape."""
    outline = region.get("points", region.get("vertices"))
    if outline is not None:
        return _to_fractions(bound_points(read_points(outline, "points")), 100, 100), True
    if any(key in region for key in MASK_KEYS):
        raise ObjectError("no_box", "a brush mask is not supported; export it as COCO, or annotate with boxes")
    if "radiusX" not in region and "x" in region and "height" not in region:
        raise reject_points("a key point")
    angle = math.radians(read_number(region.get("rotation") or 0, "rotation") % 360)
    if angle and not height:
        raise ValueError("the region is rotated, so original_width and original_height are needed")
    # Only a rotation depends on the shape of the image.
    to_x, to_y = (width / 100, height / 100) if angle else (1.0, 1.0)
    if "radiusX" in region:
        x, y, radius_x, radius_y = read_numbers(region, "x", "y", "radiusX", "radiusY")
        corners = bound_ellipse((x * to_x, y * to_y), radius_x * to_x, radius_y * to_y, angle)
        return _to_fractions(corners, 100 * to_y, 100 * to_x), True
    x, y, box_width, box_height = read_numbers(region, "x", "y", "width", "height")
    corners = y * to_y, x * to_x, (y + box_height) * to_y, (x + box_width) * to_x
    if angle:
        corners = bound_rotated_box(corners, angle, (x * to_x, y * to_y))
    return _to_fractions(corners, 100 * to_y, 100 * to_x), angle != 0


def _to_fractions(corners: Corners, height: float, width: float) -> Corners:
    ymin, xmin, ymax, xmax = corners
    return ymin / height, xmin / width, ymax / height, xmax / width
