"""COCO and VOC metrics together beside pycocotools' COCO metrics of the same detections."""

import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.rows import Row, run_benchmark, take_turns
from ssd_dist.core.records import Objects
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.metrics import evaluate_detections


def measure_metrics(images: int, per_image: int, classes: int) -> Row:
    """COCO and VOC metrics together beside pycocotools' COCO metrics of the same detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    names = tuple(f"class {number}" for number in range(classes))
    truths, found = [], []
    for number in range(images):
        corners = np.sort(rng.uniform(0, 1, (7, 2, 2)), axis=1).reshape(7, 4).astype(np.float32)
        labels = rng.integers(1, classes + 1, 7)
        area = ((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]) * 640 * 480).astype(np.float32)
        nothing = np.zeros(7, bool)
        objects = Objects(corners, labels, tuple(names[label - 1] for label in labels), nothing, nothing, area)
        truths.append(GroundTruth(str(number), 480, 640, objects))
        chosen = rng.integers(0, 7, per_image)
        # Down to a score of 0.01 a detector names many classes that are not there.
        guesses = rng.integers(1, classes + 1, per_image)
        of_class = np.where(rng.uniform(size=per_image) < 0.5, labels[chosen], guesses)
        boxes = np.clip(corners[chosen] + rng.normal(0, 0.05, (per_image, 4)), 0, 1).astype(np.float32)
        scores = np.sort(rng.uniform(0.01, 1, per_image).astype(np.float32))[::-1]
        found.append(Detections(str(number), boxes, of_class, scores))

    def reference() -> None:
        annotations, results = [], []
        for number, (truth, one) in enumerate(zip(truths, found, strict=True)):
            for (y0, x0, y1, x1), label in zip(
                truth.objects.boxes.tolist(), truth.objects.labels.tolist(), strict=True
            ):
                box = [x0 * 640, y0 * 480, (x1 - x0) * 640, (y1 - y0) * 480]
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box,
                                    "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
            for (y0, x0, y1, x1), label, score in zip(one.boxes.tolist(), one.labels.tolist(), one.scores.tolist(),
                                                      strict=True):  # fmt: skip
                box = [x0 * 640, y0 * 480, (x1 - x0) * 640, (y1 - y0) * 480]
                results.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": number, "height": 480, "width": 640} for number in range(images)],
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(names)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    with Path(os.devnull).open("w") as nowhere:
        shown, sys.stdout = sys.stdout, nowhere
        try:
            ours, theirs = take_turns(lambda: evaluate_detections(truths, found, names), reference, 1)
        finally:
            sys.stdout = shown
    return Row("COCO and VOC metrics", "s", ours, theirs, f"pycocotools, {images} x {per_image} x {classes}")


def measure() -> list[Row]:
    return [measure_metrics(images=5000, per_image=100, classes=80)]


if __name__ == "__main__":
    run_benchmark(measure, __doc__)
