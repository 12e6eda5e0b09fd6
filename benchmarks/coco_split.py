"""Collects the annotations of a split and writes them as a COCO file, the input of prepare and ssd-fit."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path


class CocoSplit:
    """The images and objects of one split."""

    def __init__(self) -> None:
        self._images: list[dict[str, object]] = []
        self._annotations: list[dict[str, object]] = []

    def add_image(
        self, file_name: str, width: int, height: int, objects: Iterable[tuple[Sequence[float], int]]
    ) -> None:
        """Adds an image and its objects.

        Args:
          file_name: name of the file in the folder of the images.
          width: in pixels.
          height: in pixels.
          objects: box (xmin, ymin, xmax, ymax) in pixels, and category id, of each object.
        """
        image_id = len(self._images)
        self._images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for (left, top, right, bottom), category in objects:
            sides = [right - left, bottom - top]
            self._annotations.append({
                "id": len(self._annotations) + 1, "image_id": image_id, "category_id": category,
                "bbox": [left, top, *sides], "area": sides[0] * sides[1], "iscrowd": 0,
            })  # fmt: skip

    def write(self, path: Path, classes: Iterable[str]) -> None:
        """Writes the file; category ids count the classes from 1."""
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
        content = {"images": self._images, "annotations": self._annotations, "categories": categories}
        path.write_text(json.dumps(content))
