"""Detections as files that other programs read: COCO results and CSV.

    detections.json    COCO results, every detection: what a benchmark wants
    detections.csv     those that are shown, in pixels: what a person counts, and what prepare reads as annotations

Both are written as the detections come, so that their number does not matter, and are there once all have come.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ssd_dist.core.errors import UsageError
from ssd_dist.evaluation.detections import Detections, coco_boxes

COCO_NAME = "detections.json"
CSV_NAME = "detections.csv"
COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "score")


@dataclass(frozen=True)
class CocoIds:
    """What images and classes are called in COCO results.

    Attributes:
      categories: the id of each class, label 1 first.
      images: ids by the name of the file, without folders; None for the path itself.
    """

    categories: tuple[int, ...]
    images: dict[str, Any] | None = None

    def of_image(self, source_id: str) -> Any:
        """The id of the image at a path."""
        return source_id if self.images is None else self.images[Path(source_id).name]


def read_coco_ids(path: str, classes: Sequence[str], files: Sequence[str]) -> CocoIds:
    """The ids of an annotation file of COCO's, whose evaluation will then take the results.

    Raises:
      UsageError: if it is none, names one of the `files` twice, or lacks a class or one of the `files`.
    """
    try:
        content = json.loads(Path(path).read_text())
        names = [Path(entry["file_name"]).name for entry in content["images"]]
        images = dict(zip(names, (entry["id"] for entry in content["images"]), strict=True))
        categories = {entry["name"]: entry["id"] for entry in content["categories"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--coco_ids={path}: no annotation file in COCO's format ({error!r})") from None
    counts = Counter(names)
    if twice := [name for name in (Path(file).name for file in files) if counts[name] > 1]:
        raise UsageError(
            f"--coco_ids={path}: {twice[0]!r} is the name of two of its images, which --images cannot tell apart; "
            "leave --coco_ids away, or give the images other names"
        )
    if missing := [name for name in classes if name not in categories]:
        raise UsageError(f"--coco_ids={path}: has no category {missing[0]!r}")
    if strange := [name for name in files if Path(name).name not in images]:
        raise UsageError(f"--coco_ids={path}: has no image {Path(strange[0]).name!r} ({len(strange)} of --images)")
    return CocoIds(tuple(categories[name] for name in classes), images)


class ResultFiles:
    """The two files while they are written."""

    def __init__(self, coco: TextIO, table: TextIO, classes: Sequence[str], ids: CocoIds) -> None:
        self._coco, self._table = coco, csv.writer(table, lineterminator="\n")
        self._classes, self._ids = classes, ids
        self._separator = "[\n"
        self._table.writerow(COLUMNS)

    def add(self, found: Detections, height: int, width: int, shown: np.ndarray) -> None:
        """Adds the detections on an image of `height` x `width` pixels; `shown` bool [D] are those for the table."""
        boxes = coco_boxes(found.boxes, height, width)
        image_id = self._ids.of_image(found.source_id)
        for box, label, score in zip(boxes, found.labels.tolist(), found.scores.tolist(), strict=True):
            row = {
                "image_id": image_id,
                "category_id": self._ids.categories[label - 1],
                "category": self._classes[label - 1],
                "bbox": box,
                "score": score,
            }
            self._coco.write(self._separator + json.dumps(row))
            self._separator = ",\n"
        if not shown.any():
            # An image without objects, as prepare reads it.
            self._table.writerow([found.source_id, width, height, *[""] * 6])
        for index in np.flatnonzero(shown).tolist():
            x, y, w, h = boxes[index]
            corners = (f"{value:.2f}" for value in (x, y, x + w, y + h))
            name = self._classes[int(found.labels[index]) - 1]
            self._table.writerow([found.source_id, width, height, name, *corners, f"{found.scores[index]:.4f}"])

    def finish(self) -> None:
        """Ends the list of COCO results, which may be empty."""
        self._coco.write("[]\n" if self._separator == "[\n" else "\n]\n")


@contextmanager
def open_result_files(folder: str, classes: Sequence[str], ids: CocoIds) -> Iterator[ResultFiles]:
    """Files in `folder` that appear when the block ends without an error."""
    names = [Path(folder) / name for name in (COCO_NAME, CSV_NAME)]
    partial = [path.with_name(path.name + ".partial") for path in names]
    # A file's name may be no UTF-8: the table has its bytes, JSON escapes them.
    with (
        partial[0].open("w") as coco,
        partial[1].open("w", newline="", encoding="utf-8", errors="surrogateescape") as table,
    ):
        files = ResultFiles(coco, table, classes, ids)
        yield files
        files.finish()
    for temporary, path in zip(partial, names, strict=True):
        temporary.replace(path)
