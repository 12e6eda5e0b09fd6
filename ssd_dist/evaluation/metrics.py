"""Computes COCO and VOC metrics of detections, under the names that `eval.metric` uses.

The COCO metrics come from faster-coco-eval (the algorithm of pycocotools in C++), the VOC metrics from `voc_metrics`.
"""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from ssd_dist.evaluation.detections import (
    Detections,
    GroundTruth,
    align_detections,
    convert_to_coco_boxes,
    convert_to_coco_results,
)
from ssd_dist.evaluation.voc_metrics import compute_class_curves

# The twelve values of COCO's summary, in its order.
_COCO_NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
# The end of COCO's size class "all" in pixels, 1e5^2, and an area beyond it.
LARGEST_SIZE, BEYOND_ALL_SIZES = 1e10, 1e11


@dataclass(frozen=True)
class Metrics:
    """The metrics of one evaluation.

    Attributes:
      scalars: metrics over all classes by name (`coco/AP`, `voc07/mAP`, ...); None where there are no objects.
      per_class: for each class, its metrics by name and its number of objects.
    """

    scalars: dict[str, float | None]
    per_class: dict[str, dict[str, float | int | None]]

    def as_dict(self) -> dict[str, Any]:
        """Returns the metrics as JSON values, in the format of `metrics.jsonl`."""
        return {**self.scalars, "per_class": self.per_class}


def evaluate_detections(
    ground_truth: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]
) -> Metrics:
    """Computes the metrics of detections on the images of `ground_truth`.

    Ties in the score keep the order of `ground_truth`, then the order of the detections in the image.

    Args:
      ground_truth: the annotations of each image.
      detections: the detections on the same images, paired by image id.
      classes: class names in label order.

    Raises:
      DataError: if the two sets of images differ.
    """
    detections = align_detections(ground_truth, detections)
    with _without_garbage_collection():
        stats, precision = _run_coco(ground_truth, detections, classes)
    curves = compute_class_curves(ground_truth, detections, len(classes))
    scalars = {f"coco/{name}": _convert_missing(value) for name, value in zip(_COCO_NAMES, stats, strict=False)}
    scalars["voc07/mAP"] = _mean_of_known([curve.ap_2007 for curve in curves])
    scalars["voc/mAP"] = _mean_of_known([curve.ap for curve in curves])
    per_class = {
        name: {
            "coco/AP": _convert_missing(_mean_of_valid(precision[:, :, index])),
            "coco/AP50": _convert_missing(_mean_of_valid(precision[0, :, index])),
            "voc07/AP": curve.ap_2007,
            "voc/AP": curve.ap,
            "objects": curve.objects,
        }
        for index, (name, curve) in enumerate(zip(classes, curves, strict=True))
    }
    return Metrics(scalars, per_class)


def _run_coco(
    ground_truth: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns COCO's summary, and the precision [IoU thresholds, recalls, classes] over all areas.

    Its dicts are freed on return, while the garbage collector is still disabled.
    """
    image_ids = list(range(1, len(ground_truth) + 1))
    category_ids = list(range(1, len(classes) + 1))
    log = logging.getLogger("faster_coco_eval").debug
    shared = {
        "images": [
            {"id": i, "height": annotated.height, "width": annotated.width}
            for i, annotated in zip(image_ids, ground_truth, strict=True)
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(category_ids, classes, strict=True)],
    }
    results = convert_to_coco_results(detections, ground_truth, image_ids, category_ids)
    # The fields that `loadRes` would add, except a polygon per box, which is not needed.
    for number, result in enumerate(results, start=1):
        _, _, width, height = result["bbox"]
        result["id"], result["area"], result["iscrowd"] = number, width * height, 0
    expected = COCO(shared | {"annotations": _coco_annotations(ground_truth)}, print_function=log)
    actual = COCO(shared | {"annotations": results}, print_function=log)
    evaluation = COCOeval_faster(expected, actual, "bbox", print_function=log)
    evaluation.run()
    # The first area range is "all"; the last detection limit is the largest.
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, -1]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disables the garbage collector: scanning half a million dicts without cycles takes a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _coco_annotations(ground_truth: Sequence[GroundTruth]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image_id, annotated in enumerate(ground_truth, start=1):
        objects = annotated.objects
        boxes = convert_to_coco_boxes(objects.boxes, annotated.height, annotated.width)
        # COCO has no difficult objects. An object outside all size classes counts neither as missed nor as found; if it
        # were marked as a crowd, all detections inside it would be ignored.
        # A wrong area in an annotation must not have this effect.
        areas = np.minimum(objects.area.astype(np.float64), LARGEST_SIZE)
        areas = np.where(objects.difficult & ~objects.is_crowd, BEYOND_ALL_SIZES, areas).tolist()
        for box, label, area, crowd in zip(
            boxes, objects.labels.tolist(), areas, objects.is_crowd.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return annotations


def _mean_of_valid(values: np.ndarray) -> float:
    """Returns the mean of the values that exist; COCO marks missing values by -1."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def _convert_missing(value: float) -> float | None:
    return None if value == -1 or np.isnan(value) else float(value)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
