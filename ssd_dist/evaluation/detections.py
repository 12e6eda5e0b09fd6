"""What an evaluation compares: the annotations of each image and the detections on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_dist.core.boxes import FloatArray, IntArray
from ssd_dist.core.records import Objects


@dataclass(frozen=True)
class Detections:
    """Detections on one image, best first.

    Attributes:
      source_id: the image.
      boxes: float32 [D, 4], normalised.
      labels: int64 [D], 1-based.
      scores: float32 [D].
    """

    source_id: str
    boxes: FloatArray
    labels: IntArray
    scores: FloatArray


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of one image of `height` x `width` original pixels."""

    source_id: str
    height: int
    width: int
    objects: Objects


def coco_boxes(boxes: FloatArray, height: int, width: int) -> list[list[float]]:
    """COCO's [x, y, width, height] in pixels of an image, of normalised boxes [N, 4]."""
    ymin, xmin, ymax, xmax = (boxes.astype(np.float64) * np.array([height, width, height, width])).T
    return np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1).tolist()


def coco_results(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    image_ids: Sequence[Any],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """COCO's results format: `bbox` is [x, y, width, height] in original pixels.

    Args:
      detections: of each image.
      truths: of the same images in the same order, for their sizes.
      image_ids: the id each image goes by in the results.
      category_ids: the id each class goes by; class label k is category_ids[k - 1].
    """
    results = []
    for image_id, found, truth in zip(image_ids, detections, truths, strict=True):
        boxes = coco_boxes(found.boxes, truth.height, truth.width)
        for box, label, score in zip(boxes, found.labels.tolist(), found.scores.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score})
    return results
