"""Compares the time of COCO and VOC metrics with that of pycocotools' COCO metrics."""

import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.rows import Row, run_benchmark, take_turns
from ssd_dist.core.records import Objects
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.metrics import evaluate_detections


def measure_metrics(images: int, per_image: int, classes: int) -> Row:
    """Compares COCO and VOC metrics with pycocotools' COCO metrics of the same detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    names = tuple(f"class {number}" for number in range(classes))
    ground_truth, detections = [], []
    for number in range(images):
        corners = np.sort(rng.uniform(0, 1, (7, 2, 2)), axis=1).reshape(7, 4).astype(np.float32)
        labels = rng.integers(1, classes + 1, 7)
        area = ((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]) * 640 * 480).astype(np.float32)
        no_flags = np.zeros(7, bool)
        objects = Objects(corners, labels, tuple(names[label - 1] for label in labels), no_flags, no_flags, area)
        ground_truth.append(GroundTruth(str(number), 480, 640, objects))
        chosen = rng.integers(0, 7, per_image)
        # At scores down to 0.01, detectors report many wrong classes.
        guesses = rng.integers(1, classes + 1, per_image)
        of_class = np.where(rng.uniform(size=per_image) < 0.5, labels[chosen], guesses)
        boxes = np.clip(corners[chosen] + rng.normal(0, 0.05, (per_image, 4)), 0, 1).astype(np.float32)
        scores = np.sort(rng.uniform(0.01, 1, per_image).astype(np.float32))[::-1]
        detections.append(Detections(str(number), boxes, of_class, scores))

    def reference() -> None:
        annotations, results = [], []
        for number, (annotated, detected) in enumerate(zip(ground_truth, detections, strict=True)):
            for (y0, x0, y1, x1), label in zip(
                annotated.objects.boxes.tolist(), annotated.objects.labels.tolist(), strict=True
            ):
                box = [x0 * 640, y0 * 480, (x1 - x0) * 640, (y1 - y0) * 480]
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box,
                                    "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
            columns = (detected.boxes.tolist(), detected.labels.tolist(), detected.scores.tolist())
            for (y0, x0, y1, x1), label, score in zip(*columns, strict=True):
                box = [x0 * 640, y0 * 480, (x1 - x0) * 640, (y1 - y0) * 480]
                results.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": number, "height": 480, "width": 640} for number in range(images)],
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(names)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    with Path(os.devnull).open("w") as null:
        stdout, sys.stdout = sys.stdout, null
        try:
            ours, theirs = take_turns(lambda: evaluate_detections(ground_truth, detections, names), reference, 1)
        finally:
            sys.stdout = stdout
    return Row(
        "COCO and VOC metrics",
        "s",
        ours,
        theirs,
        f"pycocotools; {images} images x {per_image} detections, {classes} classes",
    )


def measure() -> list[Row]:
    return [measure_metrics(images=5000, per_image=100, classes=80)]


if __name__ == "__main__":
    run_benchmark(measure, __doc__)
