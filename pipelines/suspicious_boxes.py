"""Counts boxes that are valid but suggest that the annotations were misread, and names the likely cause.

checked objects of an image -> `SuspiciousBoxes` of a shard -> sum over the shards -> warnings in the summary
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from pydantic import BaseModel

from ssd_dist.core.boxes import FloatArray

# A split with fewer boxes gives no warning.
MIN_BOXES = 20
# Fractions of the boxes of a split above which a warning is given. Datasets contain some very small objects.
MAX_SUB_PIXEL = 0.1
MAX_OTHERS = 0.5


class SuspiciousBoxes(BaseModel):
    """Counts of suspicious boxes in one shard or split.

    Attributes:
      sub_pixel: boxes less than one pixel of the original image wide or high.
      whole_image: boxes that touch all four borders of the image.
      border: boxes that touch two or three borders of the image.
      same_corners: number of boxes for each set of corners; the key is the four rounded coordinates, joined by spaces.
    """

    sub_pixel: int = 0
    whole_image: int = 0
    border: int = 0
    same_corners: dict[str, int] = {}

    def keep_most_frequent(self) -> None:
        """Drops all corners but the most frequent ones."""
        self.same_corners = dict(sorted(self.same_corners.items(), key=lambda entry: (-entry[1], entry[0]))[:1])


def count_suspicious(images: Sequence[tuple[FloatArray, int, int]]) -> SuspiciousBoxes:
    """Counts the suspicious boxes of a shard.

    Args:
      images: of each image, the boxes [N, 4] in fractions, and the height and width of the original in pixels.
    """
    boxes = np.concatenate([np.zeros([0, 4], np.float32), *(each for each, _, _ in images)])
    shapes = np.array([size for _, *size in images], np.float64).reshape(-1, 2)
    pixels = shapes.repeat([len(each) for each, _, _ in images], axis=0)
    sides = (boxes[:, 2:] - boxes[:, :2]) * pixels
    touching = (boxes[:, :2] <= 0).sum(axis=1) + (boxes[:, 2:] >= 1).sum(axis=1)
    corners, counts = np.unique(np.round(boxes.astype(np.float64), 3), axis=0, return_counts=True)
    found = SuspiciousBoxes(
        sub_pixel=int((sides < 1).any(axis=1).sum()),
        whole_image=int((touching == 4).sum()),
        border=int(((touching >= 2) & (touching < 4)).sum()),
        same_corners={
            " ".join(map(str, each)): count for each, count in zip(corners.tolist(), counts.tolist(), strict=True)
        },
    )
    found.keep_most_frequent()
    return found


def add_up(parts: Iterable[SuspiciousBoxes]) -> SuspiciousBoxes:
    """Returns the sum of the counts over the shards of a split."""
    total, corners = SuspiciousBoxes(), Counter[str]()
    for part in parts:
        total.sub_pixel += part.sub_pixel
        total.whole_image += part.whole_image
        total.border += part.border
        corners.update(part.same_corners)
    total.same_corners = dict(corners)
    total.keep_most_frequent()
    return total


def find_causes(found: SuspiciousBoxes, boxes: int) -> Iterator[str]:
    """Yields a message for each kind of suspicious boxes that is frequent among the `boxes` of a split."""
    if boxes < MIN_BOXES:
        return
    if found.sub_pixel > MAX_SUB_PIXEL * boxes:
        yield (
            f"{found.sub_pixel} of {boxes} boxes are smaller than one pixel; the coordinates are probably in another "
            "unit (fractions or percent instead of pixels)"
        )
    if found.whole_image > MAX_OTHERS * boxes:
        yield (
            f"{found.whole_image} of {boxes} boxes cover the whole image; they are probably labels of whole images "
            "(classification), or the coordinates are in another unit (pixels instead of fractions)"
        )
    if found.border > MAX_OTHERS * boxes:
        yield (
            f"{found.border} of {boxes} boxes touch two or three borders of their image; the images were probably "
            "resized or cropped after they were annotated, or width and height are swapped"
        )
    same = max(found.same_corners.values(), default=0)
    if same > MAX_OTHERS * boxes and found.whole_image <= MAX_OTHERS * boxes:
        yield (
            f"{same} of {boxes} boxes are at the same place ({next(iter(found.same_corners))}); the annotations were "
            "probably copied from one image"
        )
