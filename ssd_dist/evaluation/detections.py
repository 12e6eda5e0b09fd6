"""The inputs of an evaluation: the annotations of each image and the detections on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_dist.core.boxes import FloatArray, IntArray
from ssd_dist.core.errors import DataError
from ssd_dist.core.records import Objects, Record


@dataclass(frozen=True)
class Detections:
    """Detections on one image, sorted by descending score.

    Attributes:
      source_id: id of the image.
      boxes: float32 [D, 4], normalized.
      labels: int64 [D], 1-based.
      scores: float32 [D].
    """

    source_id: str
    boxes: FloatArray
    labels: IntArray
    scores: FloatArray


def select_detections(found: Detections, chosen: np.ndarray) -> Detections:
    """Returns the detections that `chosen`, bool [D] or their indices, selects."""
    return Detections(found.source_id, found.boxes[chosen], found.labels[chosen], found.scores[chosen])


def remove_padding(source_id: str, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Detections:
    """Returns the detections on one image of a batch; the scores of the padding at the end are 0."""
    count = int((scores > 0).sum())
    return Detections(source_id, boxes[:count], labels[:count].astype(np.int64), scores[:count])


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of one image; `height` and `width` are in pixels of the original image."""

    source_id: str
    height: int
    width: int
    objects: Objects

    @classmethod
    def from_record(cls, record: Record) -> "GroundTruth":
        """Returns the annotations of a record."""
        return cls(record.source_id, record.original_height, record.original_width, record.objects)


def align_detections(ground_truth: Sequence[GroundTruth], detections: Sequence[Detections]) -> list[Detections]:
    """Returns the detections on each image of `ground_truth`, in that order.

    Padding repeats images, so `detections` may contain an image several times. The first entry is used, because metrics
    must count each image once.

    Raises:
      DataError: if an image has no entry, an entry belongs to no image, or two images have the same id.
    """
    by_id: dict[str, Detections] = {}
    for found in detections:
        by_id.setdefault(found.source_id, found)
    expected = dict.fromkeys(annotated.source_id for annotated in ground_truth)
    if len(expected) < len(ground_truth):
        raise DataError(
            f"evaluation: {len(ground_truth) - len(expected)} images have the id of another image; "
            "prepare the data again"
        )
    missing = [name for name in expected if name not in by_id]
    unknown = [name for name in by_id if name not in expected]
    if missing or unknown:
        raise DataError(
            f"evaluation: {len(by_id)} images were evaluated, the split has {len(expected)}: {len(missing)} are "
            f"missing, {len(unknown)} do not belong to the split (e.g. {(missing + unknown)[0]!r}); the shards do not "
            "match dataset.json, so prepare the data again"
        )
    return [by_id[name] for name in expected]


def convert_to_coco_boxes(boxes: FloatArray, height: int | IntArray, width: int | IntArray) -> list[list[float]]:
    """Converts normalized boxes [N, 4] to COCO's [x, y, width, height] in pixels.

    Args:
      boxes: float [N, 4].
      height: height of the image in pixels, or int [N], one per box.
      width: width of the image in pixels, or int [N], one per box.
    """
    ymin, xmin, ymax, xmax = (boxes.astype(np.float64) * np.stack([height, width, height, width], axis=-1)).T
    return np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1).tolist()


def convert_to_coco_results(
    detections: Sequence[Detections],
    ground_truth: Sequence[GroundTruth],
    image_ids: Sequence[Any],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Converts detections to COCO's results format; `bbox` is [x, y, width, height] in original pixels.

    Args:
      detections: the detections on each image.
      ground_truth: the same images in the same order, for their sizes.
      image_ids: the COCO id of each image.
      category_ids: the COCO id of each class; label k has category_ids[k - 1].
    """
    counts = [len(found.labels) for found in detections]
    # All images at once: one call per image would take longer than everything else here.
    labels = np.concatenate([np.zeros(0, np.int64), *(found.labels for found in detections)])
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for found in detections)])
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(found.boxes for found in detections)])
    heights = np.repeat([annotated.height for annotated in ground_truth], counts)
    widths = np.repeat([annotated.width for annotated in ground_truth], counts)
    names = [name for name, count in zip(image_ids, counts, strict=True) for _ in range(count)]
    return [
        {"image_id": name, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for name, label, box, score in zip(
            names, labels.tolist(), convert_to_coco_boxes(boxes, heights, widths), scores.tolist(), strict=True
        )
    ]
