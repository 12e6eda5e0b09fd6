"""Evaluates scenes with pycocotools and with the loop of the VOC devkit, and compares the metrics."""

import contextlib
import io

import pytest
from scenes import HEIGHT, WIDTH, class_names
from support.reference_detection import VocImage, voc_ap_reference

from ssd_dist.evaluation.metrics import Metrics, evaluate_detections

COCO_STATS = (
    "coco/AP", "coco/AP50", "coco/AP75", "coco/AP_small", "coco/AP_medium", "coco/AP_large",
    "coco/AR1", "coco/AR10", "coco/AR100", "coco/AR_small", "coco/AR_medium", "coco/AR_large",
)  # fmt: skip


def pycocotools_reference(ground_truth, detections, classes: int) -> tuple[list[float], list[list[float]]]:
    """Returns COCO's twelve metrics, and (AP, AP50) of each class; -1 for undefined values."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class DifficultIgnored(COCOeval):
        """Sets the field "ignore" after `_prepare`, which overwrites it with "iscrowd"."""

        def _prepare(self):
            super()._prepare()
            for annotation in (one for group in self._gts.values() for one in group):
                annotation["ignore"] = annotation["ignore"] or annotation["difficult"]

    def pixels(box):
        ymin, xmin, ymax, xmax = (float(v) for v in box)
        return [xmin * WIDTH, ymin * HEIGHT, (xmax - xmin) * WIDTH, (ymax - ymin) * HEIGHT]

    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(len(ground_truth))]
    categories = [{"id": k, "name": str(k)} for k in range(1, classes + 1)]
    annotations, results = [], []
    for i, image in enumerate(ground_truth):
        for n, box in enumerate(image.objects.boxes):
            annotations.append(
                {
                    # pycocotools treats a match with id 0 as no match.
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(image.objects.labels[n]),
                    "bbox": pixels(box),
                    "area": float(image.objects.area[n]),
                    "iscrowd": int(image.objects.is_crowd[n]),
                    "difficult": bool(image.objects.difficult[n]),
                }
            )
    for i, image in enumerate(detections):
        for d, box in enumerate(image.boxes):
            x, y, w, h = pixels(box)
            results.append(
                {
                    "id": len(results) + 1,
                    "image_id": i,
                    "category_id": int(image.labels[d]),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "score": float(image.scores[d]),
                    "iscrowd": 0,
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for rows in (annotations, results):
            side = COCO()
            side.dataset = {"images": images, "categories": categories, "annotations": rows}
            side.createIndex()
            sides.append(side)
        evaluation = DifficultIgnored(*sides, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, -1]
    per_class = []
    for k in range(classes):
        both = []
        for values in (precision[:, :, k], precision[0, :, k]):
            valid = values[values > -1]
            both.append(valid.mean() if valid.size else -1.0)
        per_class.append(both)
    return evaluation.stats.tolist(), per_class


def assert_equal_numbers(actual: float | None, expected: float, name: str) -> None:
    if expected == -1:
        assert actual is None, name
    else:
        assert actual == pytest.approx(expected, abs=1e-6), name


def assert_equals_pycocotools(ground_truth, detections, classes: int) -> Metrics:
    metrics = evaluate_detections(ground_truth, detections, class_names(classes))
    stats, per_class = pycocotools_reference(ground_truth, detections, classes)
    for name, expected in zip(COCO_STATS, stats, strict=True):
        assert_equal_numbers(metrics.scalars[name], expected, name)
    for name, (ap, ap50) in zip(class_names(classes), per_class, strict=True):
        assert_equal_numbers(metrics.per_class[name]["coco/AP"], ap, name)
        assert_equal_numbers(metrics.per_class[name]["coco/AP50"], ap50, name)
    return metrics


def voc_reference(ground_truth, detections, label: int) -> tuple[float, float] | None:
    images = []
    for image, detected in zip(ground_truth, detections, strict=True):
        own, own_detections = image.objects.labels == label, detected.labels == label
        objects, crowds = own & ~image.objects.is_crowd, own & image.objects.is_crowd
        images.append(
            VocImage(
                image.objects.boxes[objects], image.objects.difficult[objects], detected.boxes[own_detections],
                detected.scores[own_detections], image.objects.boxes[crowds],
            )
        )  # fmt: skip
    return voc_ap_reference(images)


def assert_equals_devkit(ground_truth, detections, classes: int) -> Metrics:
    metrics = evaluate_detections(ground_truth, detections, class_names(classes))
    expected = [voc_reference(ground_truth, detections, label) for label in range(1, classes + 1)]
    for name, pair in zip(class_names(classes), expected, strict=True):
        values = metrics.per_class[name]
        if pair is None:
            assert (values["voc07/AP"], values["voc/AP"], values["objects"]) == (None, None, 0)
        else:
            assert (values["voc07/AP"], values["voc/AP"]) == pytest.approx(pair, abs=1e-9)
    known = [pair for pair in expected if pair is not None]
    for index, name in enumerate(("voc07/mAP", "voc/mAP")):
        if known:
            assert metrics.scalars[name] == pytest.approx(sum(pair[index] for pair in known) / len(known), abs=1e-9)
        else:
            assert metrics.scalars[name] is None
    return metrics
