"""Counts the confusion matrix: one entry for each pair of annotated and detected class."""

import numpy as np

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.evaluation.detection_matching import Matches
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.voc_metrics import IOU_THRESHOLD


def count_confusions(
    matches: Matches, ground_truth: list[GroundTruth], detections: list[Detections], thresholds: np.ndarray
) -> np.ndarray:
    """Counts how often each annotated class was detected as each class.

    In each image, detections above the thresholds and counted objects are paired one to one where their IoU is at least
    0.5. Pairs of equal class are chosen first, then pairs of different classes, each in order of descending IoU.
    Detections on difficult objects or crowds are ignored.

    Args:
      matches: the matches of `ground_truth` and `detections`.
      ground_truth: the annotations of each image.
      detections: the detections on the same images in the same order.
      thresholds: float [C], the lowest score that counts, for each class.

    Returns:
      int64 [C + 1, C + 1]. Rows are annotated classes, the last is "background"; columns are detected classes, the last
      is "missed".
    """
    missed = background = len(matches.classes)
    matrix = np.zeros((background + 1, missed + 1), np.int64)
    shown = matches.above_thresholds(thresholds).detections
    bounds = np.searchsorted(shown.images, np.arange(len(ground_truth) + 1))
    for image, (annotated, found) in enumerate(zip(ground_truth, detections, strict=True)):
        own_rows = slice(bounds[image], bounds[image + 1])
        rows = shown.rows[own_rows][shown.outcomes[own_rows] != 0]
        counted = ~(annotated.objects.difficult | annotated.objects.is_crowd)
        object_labels, detected_labels = annotated.objects.labels[counted], found.labels[rows]
        pairs = _pair_boxes(
            iou_matrix(found.boxes[rows], annotated.objects.boxes[counted]), detected_labels, object_labels
        )
        np.add.at(matrix, (object_labels[pairs[:, 1]] - 1, detected_labels[pairs[:, 0]] - 1), 1)
        np.add.at(matrix[:, missed], np.delete(object_labels, pairs[:, 1]) - 1, 1)
        np.add.at(matrix[background], np.delete(detected_labels, pairs[:, 0]) - 1, 1)
    return matrix


def _pair_boxes(iou: np.ndarray, detected_labels: np.ndarray, object_labels: np.ndarray) -> np.ndarray:
    """Returns int64 [P, 2], pairs (detection, object) from iou [D, N]; each index occurs in at most one pair."""
    rows, columns = np.nonzero(iou >= IOU_THRESHOLD)
    differs = detected_labels[rows] != object_labels[columns]
    order = np.lexsort((-iou[rows, columns], differs))
    used_rows, used_columns, pairs = set(), set(), []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return np.array(pairs, np.int64).reshape(-1, 2)
