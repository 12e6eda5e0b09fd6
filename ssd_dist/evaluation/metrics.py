"""COCO and VOC metrics of a set of detections, under the names the config uses.

COCO's numbers are faster-coco-eval's (the algorithm of pycocotools in C++); VOC's come from `voc.py`.
"""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from ssd_dist.evaluation.detections import Detections, GroundTruth, align_detections, coco_boxes, coco_results
from ssd_dist.evaluation.voc_metrics import class_curves

# The order of the twelve numbers of COCO's summary.
_COCO_NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
# COCO's largest size class, "all", ends at 1e5^2 pixels.
BEYOND_ALL_SIZES = 1e11


@dataclass(frozen=True)
class Metrics:
    """`scalars` by name (`coco/AP`, `voc07/mAP`, ...) and the same of each class; None: nothing to find."""

    scalars: dict[str, float | None]
    per_class: dict[str, dict[str, float | int | None]]

    def as_dict(self) -> dict[str, Any]:
        """One JSON-ready mapping, as `metrics.jsonl` has it."""
        return {**self.scalars, "per_class": self.per_class}


def evaluate_detections(
    truths: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]
) -> Metrics:
    """Compares detections with annotations of the same images, paired by id; `classes` in label order.

    Equal scores go by the order of `truths`, then by that of the detections in the image.

    Raises:
      DataError: if the images are not the same.
    """
    detections = align_detections(truths, detections)
    with _without_collection():
        stats, precision = _run_coco(truths, detections, classes)
    curves = class_curves(truths, detections, len(classes))
    scalars = {f"coco/{name}": _number(value) for name, value in zip(_COCO_NAMES, stats, strict=False)}
    scalars["voc07/mAP"] = _mean([curve.ap_2007 for curve in curves])
    scalars["voc/mAP"] = _mean([curve.ap for curve in curves])
    per_class = {
        name: {
            "coco/AP": _number(_mean_of_valid(precision[:, :, index])),
            "coco/AP50": _number(_mean_of_valid(precision[0, :, index])),
            "voc07/AP": curve.ap_2007,
            "voc/AP": curve.ap,
            "objects": curve.objects,
        }
        for index, (name, curve) in enumerate(zip(classes, curves, strict=True))
    }
    return Metrics(scalars, per_class)


def _run_coco(
    truths: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's summary, and the precision [IoU thresholds, recalls, classes] over all areas. No dict outlives it."""
    image_ids = list(range(1, len(truths) + 1))
    category_ids = list(range(1, len(classes) + 1))
    silent = logging.getLogger("faster_coco_eval").debug
    shared = {
        "images": [
            {"id": i, "height": truth.height, "width": truth.width} for i, truth in zip(image_ids, truths, strict=True)
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(category_ids, classes, strict=True)],
    }
    results = coco_results(detections, truths, image_ids, category_ids)
    # What `loadRes` would add, but for a polygon of each box, which nothing reads.
    for number, result in enumerate(results, start=1):
        _, _, width, height = result["bbox"]
        result["id"], result["area"], result["iscrowd"] = number, width * height, 0
    truth = COCO(shared | {"annotations": _coco_annotations(truths)}, print_function=silent)
    found = COCO(shared | {"annotations": results}, print_function=silent)
    evaluation = COCOeval_faster(truth, found, "bbox", print_function=silent)
    evaluation.run()
    # Of area ranges and detection limits: all, and most.
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, -1]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Leaves cycles alone: looking for some among half a million dicts that hold none takes a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _coco_annotations(truths: Sequence[GroundTruth]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image_id, truth in enumerate(truths, start=1):
        objects = truth.objects
        boxes = coco_boxes(objects.boxes, truth.height, truth.width)
        # COCO knows no difficult objects; what is outside all of its size classes is neither to be found nor wrong to
        # find. As a crowd it would excuse whatever lies within it.
        areas = np.where(objects.difficult & ~objects.is_crowd, BEYOND_ALL_SIZES, objects.area).tolist()
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
    """COCO marks what does not exist by -1."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def _number(value: float) -> float | None:
    return None if value == -1 or np.isnan(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
