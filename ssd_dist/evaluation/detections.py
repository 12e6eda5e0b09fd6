"""What an evaluation compares: the annotations of each image and the detections on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_dist.core.boxes import FloatArray, IntArray
from ssd_dist.core.errors import DataError
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


def align_detections(truths: Sequence[GroundTruth], detections: Sequence[Detections]) -> list[Detections]:
    """The detections on each image of `truths`, in that order; of several on one image the first counts.

    Padding repeats images, so detections may hold an image twice; a metric must see it once.

    Raises:
      DataError: if an image has no detections entry, an entry no image, or two images one id.
    """
    by_id: dict[str, Detections] = {}
    for found in detections:
        by_id.setdefault(found.source_id, found)
    wanted = dict.fromkeys(truth.source_id for truth in truths)
    if len(wanted) < len(truths):
        raise DataError(f"{len(truths) - len(wanted)} images to evaluate share their id with another; prepare again")
    missing = [name for name in wanted if name not in by_id]
    strange = [name for name in by_id if name not in wanted]
    if missing or strange:
        raise DataError(
            f"evaluation saw {len(by_id)} images, the split has {len(wanted)}: {len(missing)} were not seen, "
            f"{len(strange)} are not of the split (e.g. {(missing + strange)[0]!r}); do the shards fit dataset.json?"
        )
    return [by_id[name] for name in wanted]


def coco_boxes(boxes: FloatArray, height: int | IntArray, width: int | IntArray) -> list[list[float]]:
    """COCO's [x, y, width, height] in pixels, of normalised boxes [N, 4] in an image, or in N of these sizes."""
    ymin, xmin, ymax, xmax = (boxes.astype(np.float64) * np.stack([height, width, height, width], axis=-1)).T
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
    counts = [len(found.labels) for found in detections]
    # All at once: a call for each image would take longer than the rest.
    labels = np.concatenate([np.zeros(0, np.int64), *(found.labels for found in detections)])
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for found in detections)])
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(found.boxes for found in detections)])
    heights = np.repeat([truth.height for truth in truths], counts)
    widths = np.repeat([truth.width for truth in truths], counts)
    names = [name for name, count in zip(image_ids, counts, strict=True) for _ in range(count)]
    return [
        {"image_id": name, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for name, label, box, score in zip(
            names, labels.tolist(), coco_boxes(boxes, heights, widths), scores.tolist(), strict=True
        )
    ]
