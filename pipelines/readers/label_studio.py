"""Parses the exports "JSON" and "JSON-MIN" of Label Studio: one file for all tasks.

    [{"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"was_cancelled": false, "result": [
        {"id": "r1", "type": "rectanglelabels", "original_width": 96, "original_height": 72, "value":
         {"x": 10, "y": 20, "width": 40, "height": 30, "rotation": 0, "rectanglelabels": ["bolt"]}}, ...]}]}, ...]

    [{"id": 1, "image": "/data/upload/1/0a1b2c3d-a.jpg", "label": [{"x": 10, "y": 20, ..., "rectanglelabels": ["bolt"],
      "original_width": 96, "original_height": 72}, ...], "annotation_id": 5, "annotator": 1, ...}, ...]

Format: https://labelstud.io/guide/export. Shapes and units are described in label_studio_regions.py, file names in
label_studio_paths.py.

If a task has several annotations, the one that was updated last is used, without canceled (skipped) ones. A task
without an annotation is rejected, because it may contain objects; an annotation without regions is an image without
objects. Predictions are ignored.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from pipelines.annotations import IMAGE_SUFFIXES, Problem
from pipelines.readers.json_values import load_json, read_list, read_name, read_object, to_text
from pipelines.readers.label_studio_paths import original_path
from pipelines.readers.label_studio_regions import parse_regions
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.parsed_objects import ObjectError

ANNOTATION_KEYS = ("annotations", "completions")
# Keys of a row of JSON-MIN besides those of the task.
ROW_KEYS = ("annotation_id", "annotator", "lead_time")


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


def _is_task(task: Any) -> bool:
    if not isinstance(task, dict):
        return False
    if isinstance(task.get("data"), dict):
        return any(key in task for key in (*ANNOTATION_KEYS, "predictions"))
    return any(key in task for key in ROW_KEYS)


def _task_id(task: Any) -> str:
    """Returns the id of a row of JSON-MIN; empty for a task of JSON, which contains all its annotations."""
    is_row = isinstance(task, dict) and "data" not in task
    return to_text(task.get("id")) if is_row else ""


def _update_time(entry: dict[str, Any]) -> str:
    return to_text(entry.get("updated_at") or entry.get("created_at"))


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
        if reason == "not_annotated":
            with contextlib.suppress(ValueError):
                filename = original_path(_find_image(task.get("data", task)))
    boxes, size = parse_regions(results)
    return ParsedImage(filename, boxes, where, size, problem)


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
        raise ObjectError("not_annotated", "the task has no annotation, or only canceled ones; annotate it")
    index = max(completed)[1]
    results = read_list(annotations[index].get("result"), "result")
    return [(f"{where}.{key}[{index}].result[{i}]", result) for i, result in enumerate(results)]


def _find_image(data: Any) -> str:
    """Returns the reference to the image: the value of `image`, else the first value with the suffix of an image."""
    values = {key: value for key, value in read_object(data, "data").items() if isinstance(value, str)}
    found = [value for value in values.values() if value.partition("?")[0].lower().endswith(IMAGE_SUFFIXES)]
    found += [value for value in values.values() if value.lower().endswith(IMAGE_SUFFIXES)]
    return read_name(values.get("image") or next(iter(found), None), "image")
