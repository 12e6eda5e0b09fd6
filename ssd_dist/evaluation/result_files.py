"""Writes detections to files that other programs read: COCO results and CSV.

    detections.json    COCO results with every detection, for evaluation servers
    detections.csv     the detections above the score thresholds, in pixels; `prepare` can read it as annotations

`detections.json` has the exact names. In the CSV file, control characters are escaped, and names that a spreadsheet
would execute as formulas get a prefix (https://owasp.org/www-community/attacks/CSV_Injection).

Both files are written one image at a time, so memory does not grow with the number of images. They appear under their
names when all images have been written.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ssd_dist.core.errors import UsageError
from ssd_dist.core.printable import escape
from ssd_dist.core.spreadsheet_text import DETECTION_COLUMNS, FORMULA_STARTS, protect_name
from ssd_dist.core.storage import replace_file
from ssd_dist.evaluation.detections import Detections, convert_to_coco_boxes

COCO_NAME = "detections.json"
CSV_NAME = "detections.csv"


@dataclass(frozen=True)
class CocoIds:
    """The ids of images and classes in COCO results.

    Attributes:
      categories: the category id of each class, label 1 first.
      images: image ids by file name without folders; None to use the path as the id.
    """

    categories: tuple[int, ...]
    images: dict[str, Any] | None = None

    def get_image_id(self, source_id: str) -> Any:
        """Returns the id of the image at a path."""
        return source_id if self.images is None else self.images[Path(source_id).name]


def read_coco_ids(path: str, classes: Sequence[str], files: Sequence[str]) -> CocoIds:
    """Reads the image and category ids of a COCO annotation file, so that results can be evaluated against it.

    Args:
      path: the annotation file.
      classes: class names in label order.
      files: paths of the images.

    Raises:
      UsageError: if the file is not a COCO annotation file, contains one of the `files` twice, or lacks a class or
        one of the `files`.
    """
    try:
        content = json.loads(Path(path).read_text())
        names = [Path(entry["file_name"]).name for entry in content["images"]]
        images = dict(zip(names, (entry["id"] for entry in content["images"]), strict=True))
        categories = {entry["name"]: entry["id"] for entry in content["categories"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--coco_ids={path}: not a COCO annotation file ({error!r}); give a file with images and categories"
        ) from None
    counts = Counter(names)
    if ambiguous := [name for name in (Path(file).name for file in files) if counts[name] > 1]:
        raise UsageError(
            f"--coco_ids={path}: two of its images have the file name {ambiguous[0]!r}; omit --coco_ids, or rename "
            "the images"
        )
    if missing := [name for name in classes if name not in categories]:
        raise UsageError(
            f"--coco_ids={path}: the file has no category {missing[0]!r}; its categories are "
            f"{', '.join(map(repr, categories))}"
        )
    if unknown := [name for name in files if Path(name).name not in images]:
        raise UsageError(
            f"--coco_ids={path}: the file has no image {Path(unknown[0]).name!r} ({len(unknown)} of the files of "
            "--images are missing); give the annotation file of these images"
        )
    return CocoIds(tuple(categories[name] for name in classes), images)


class ResultFiles:
    """Writes the detections of one image after another to the two files."""

    def __init__(self, coco: TextIO, csv_file: TextIO, classes: Sequence[str], ids: CocoIds) -> None:
        self._coco, self._csv = coco, csv.writer(csv_file, lineterminator="\n")
        self._classes, self._ids = classes, ids
        self._separator = "[\n"
        self._csv.writerow(DETECTION_COLUMNS)

    def add(self, found: Detections, height: int, width: int, shown: np.ndarray) -> None:
        """Adds the detections on one image.

        Args:
          found: the detections.
          height: height of the image in pixels.
          width: width of the image in pixels.
          shown: bool [D], the detections to write to the CSV file.
        """
        boxes = convert_to_coco_boxes(found.boxes, height, width)
        image_id = self._ids.get_image_id(found.source_id)
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
            # A row with empty fields: `prepare` reads it as an image without objects.
            self._csv.writerow([name_file(found.source_id), width, height, *[""] * 6])
        for index in np.flatnonzero(shown).tolist():
            x, y, w, h = boxes[index]
            corners = (f"{value:.2f}" for value in (x, y, x + w, y + h))
            name = name_class(self._classes[int(found.labels[index]) - 1])
            self._csv.writerow(
                [name_file(found.source_id), width, height, name, *corners, f"{found.scores[index]:.4f}"]
            )

    def finish(self) -> None:
        """Writes the end of the COCO results."""
        self._coco.write("[]\n" if self._separator == "[\n" else "\n]\n")


def name_file(path: str) -> str:
    """Returns the path of an image for the CSV file.

    Prefixes a relative path that a spreadsheet would read as a formula with `./`; it still refers to the same file.
    """
    name = _escape_control_characters(path)
    return f"./{name}" if name.startswith(FORMULA_STARTS) else name


def name_class(name: str) -> str:
    """Returns the name of a class for the CSV file; prefixes a name that looks like a formula with an apostrophe."""
    return protect_name(_escape_control_characters(name))


def _escape_control_characters(text: str) -> str:
    # Surrogates stay: they are the bytes of a file name that is not UTF-8.
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: escape(match.group()), text)


@contextmanager
def open_result_files(folder: str, classes: Sequence[str], ids: CocoIds) -> Iterator[ResultFiles]:
    """Opens the result files in `folder`; they appear under their names if the block ends without an error."""
    names = [Path(folder) / name for name in (COCO_NAME, CSV_NAME)]
    # File names need not be valid UTF-8: the CSV file contains their bytes, JSON escapes them.
    with (
        replace_file(names[0]) as coco_path,
        replace_file(names[1]) as csv_path,
        coco_path.open("w") as coco,
        csv_path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as csv_file,
    ):
        files = ResultFiles(coco, csv_file, classes, ids)
        yield files
        files.finish()
