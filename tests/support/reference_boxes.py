"""Float64 NumPy references of anchors, box arithmetic and matching, written from the formulas in plain loops.

This module does not import the package under test.

Sources: docs/formulas.md, SSD (Liu et al. 2016). Boxes are [ymin, xmin, ymax, xmax], normalized.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Values that differ by less are treated as equal: float32 coordinates have an error of about 1e-7.
TIE = 1e-6


def anchors_reference(
    sizes: Sequence[float], aspect_ratios: Sequence[Sequence[float]], feature_sizes: Sequence[int]
) -> np.ndarray:
    """Returns anchors [A, 4] in the order level, row, column, shape; `sizes` has one entry more than the levels."""
    anchors = []
    for level, cells in enumerate(feature_sizes):
        size, following = sizes[level], sizes[level + 1]
        widths_and_heights = [(size, size), (math.sqrt(size * following), math.sqrt(size * following))]
        for ratio in aspect_ratios[level]:
            widths_and_heights.append((size * math.sqrt(ratio), size / math.sqrt(ratio)))
            widths_and_heights.append((size / math.sqrt(ratio), size * math.sqrt(ratio)))
        for row in range(cells):
            for column in range(cells):
                cy, cx = (row + 0.5) / cells, (column + 0.5) / cells
                for width, height in widths_and_heights:
                    anchors.append([cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2])
    return np.array(anchors, np.float64)


def area_reference(box: Sequence[float]) -> float:
    """Returns the area of one box; 0 if it is reversed."""
    return max(0.0, float(box[2]) - float(box[0])) * max(0.0, float(box[3]) - float(box[1]))


def intersection_reference(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the area of the intersection of two boxes."""
    height = min(float(a[2]), float(b[2])) - max(float(a[0]), float(b[0]))
    width = min(float(a[3]), float(b[3])) - max(float(a[1]), float(b[1]))
    return height * width if height > 0 and width > 0 else 0.0


def iou_reference(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the intersection over union of two boxes; 0 if the union is empty."""
    shared = intersection_reference(a, b)
    union = area_reference(a) + area_reference(b) - shared
    return shared / union if union > 0 else 0.0


def center_distance_reference(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the Euclidean distance between the centers of two boxes."""
    dy = (float(a[0]) + float(a[2]) - float(b[0]) - float(b[2])) / 2
    dx = (float(a[1]) + float(a[3]) - float(b[1]) - float(b[3])) / 2
    return math.hypot(dy, dx)


def encode_reference(box: Sequence[float], anchor: Sequence[float], center_variance: float, size_variance: float):
    """Encodes a box relative to an anchor: [ty, tx, th, tw], equation 2 of Liu et al. 2016 over the variances."""
    box, anchor = [float(v) for v in box], [float(v) for v in anchor]
    out = []
    for axis in (0, 1):
        anchor_size = anchor[axis + 2] - anchor[axis]
        shift = (box[axis] + box[axis + 2]) / 2 - (anchor[axis] + anchor[axis + 2]) / 2
        out.append(shift / anchor_size / center_variance)
    for axis in (0, 1):
        ratio = (box[axis + 2] - box[axis]) / (anchor[axis + 2] - anchor[axis])
        out.append(math.log(ratio) / size_variance)
    return np.array(out, np.float64)


def decode_reference(offsets: Sequence[float], anchor: Sequence[float], center_variance: float, size_variance: float):
    """Returns the box whose encoding is `offsets`."""
    offsets, anchor = [float(v) for v in offsets], [float(v) for v in anchor]
    box = [0.0] * 4
    for axis in (0, 1):
        anchor_size = anchor[axis + 2] - anchor[axis]
        center = (anchor[axis] + anchor[axis + 2]) / 2 + offsets[axis] * center_variance * anchor_size
        size = anchor_size * math.exp(offsets[axis + 2] * size_variance)
        box[axis], box[axis + 2] = center - size / 2, center + size / 2
    return np.array(box, np.float64)


@dataclass(frozen=True)
class MatchReference:
    """The result of matching.

    Attributes:
      positives: maps each positive anchor to its object.
      ignored: anchors that are neither positive nor negative.
    """

    positives: dict[int, int]
    ignored: set[int]


def match_reference(
    boxes: np.ndarray,
    anchors: np.ndarray,
    policy: str = "multi",
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    is_crowd: Sequence[bool] | None = None,
) -> MatchReference:
    """Matches anchors to objects as listed in docs/formulas.md.

    An anchor is compared with the object of the highest IoU. Above `positive_iou` it is positive (policy `multi`),
    below `negative_iou` negative, and ignored in between. In addition, greedy bipartite assignment by the global
    maximum gives each object one anchor of its own, which is positive for any IoU. Ties go to the object with the
    nearer center, then to the lower index. An anchor is ignored if a crowd covers at least the share `negative_iou` of
    it; crowds have no positive anchors.
    """
    crowd = [False] * len(boxes) if is_crowd is None else list(is_crowd)
    objects = [n for n in range(len(boxes)) if not crowd[n]]
    iou = {n: [iou_reference(boxes[n], anchor) for anchor in anchors] for n in objects}
    distance = {n: [center_distance_reference(boxes[n], anchor) for anchor in anchors] for n in objects}

    positives: dict[int, int] = {}
    ignored: set[int] = set()
    for a in range(len(anchors)):
        if any(
            intersection_reference(boxes[n], anchors[a]) / area_reference(anchors[a]) >= negative_iou - TIE
            for n in range(len(boxes))
            if crowd[n]
        ):
            ignored.add(a)
        if not objects:
            continue
        top = max(iou[n][a] for n in objects)
        if top >= negative_iou - TIE:
            ignored.add(a)
        if policy == "multi" and top > positive_iou + TIE:
            tied = [n for n in objects if iou[n][a] >= top - TIE]
            nearest = min(distance[n][a] for n in tied)
            positives[a] = min(n for n in tied if distance[n][a] <= nearest + TIE)

    for a, n in assign_one_each_reference(iou, distance, len(anchors)).items():
        positives[a] = n
    return MatchReference(positives, ignored - set(positives))


def assign_one_each_reference(
    iou: dict[int, list[float]], distance: dict[int, list[float]], anchor_count: int
) -> dict[int, int]:
    """Greedy bipartite matching: repeatedly selects the best pair of an unmatched object and a free anchor."""
    unmatched, free, owner = set(iou), set(range(anchor_count)), {}
    while unmatched and free:
        pairs = [(iou[n][a], n, a) for n in unmatched for a in free]
        top = max(pair[0] for pair in pairs)
        pairs = [(distance[n][a], n, a) for value, n, a in pairs if value >= top - TIE]
        nearest = min(pair[0] for pair in pairs)
        n, a = min((n, a) for value, n, a in pairs if value <= nearest + TIE)
        owner[a] = n
        unmatched.remove(n)
        free.remove(a)
    return owner
