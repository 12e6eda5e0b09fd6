"""Which class is taken for which: one count for each pair of true and detected class."""

import numpy as np

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.evaluation.detection_matching import Matches
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.voc_metrics import IOU_THRESHOLD


def confuse(
    matches: Matches, truths: list[GroundTruth], detections: list[Detections], thresholds: np.ndarray
) -> np.ndarray:
    """int64 [C + 1, C + 1]: rows are true classes and last background, columns detected classes and last "missed".

    In each image, detections above the `thresholds` [C] and counted objects are paired one to one where their IoU
    reaches 0.5: first those of one class, then the others, each time the highest IoU first. Detections on difficult
    objects or crowds are left out.

    Args:
      matches: of `truths` and `detections`.
      truths: the annotations.
      detections: of the same images in the same order.
      thresholds: float [C], the lowest score that counts, by class.
    """
    missed = background = len(matches.classes)
    matrix = np.zeros((background + 1, missed + 1), np.int64)
    shown = matches.above(thresholds).found
    bounds = np.searchsorted(shown.images, np.arange(len(truths) + 1))
    for image, (truth, found) in enumerate(zip(truths, detections, strict=True)):
        own = slice(bounds[image], bounds[image + 1])
        rows = shown.rows[own][shown.verdicts[own] != 0]
        counted = ~(truth.objects.difficult | truth.objects.is_crowd)
        true_labels, found_labels = truth.objects.labels[counted], found.labels[rows]
        pairs = _pair(iou_matrix(found.boxes[rows], truth.objects.boxes[counted]), found_labels, true_labels)
        np.add.at(matrix, (true_labels[pairs[:, 1]] - 1, found_labels[pairs[:, 0]] - 1), 1)
        np.add.at(matrix, (np.delete(true_labels, pairs[:, 1]) - 1, missed), 1)
        np.add.at(matrix, (background, np.delete(found_labels, pairs[:, 0]) - 1), 1)
    return matrix


def _pair(iou: np.ndarray, found_labels: np.ndarray, true_labels: np.ndarray) -> np.ndarray:
    """int64 [P, 2]: pairs (detection, object) of iou [D, N], each used once."""
    rows, columns = np.nonzero(iou >= IOU_THRESHOLD)
    differs = found_labels[rows] != true_labels[columns]
    order = np.lexsort((-iou[rows, columns], differs))
    used_rows, used_columns, pairs = set(), set(), []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return np.array(pairs, np.int64).reshape(-1, 2)
