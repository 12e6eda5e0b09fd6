"""COCO metrics equal those of pycocotools to 1e-6; undefined values are None."""

import numpy as np
import pytest
from hypothesis import given, settings
from reference_metrics import assert_equals_pycocotools
from scenes import SCENES, Scene, draw_scene, make_detections, make_ground_truth

from ssd_dist.evaluation.metrics import evaluate_detections


@settings(deadline=None, max_examples=60)
@given(SCENES)
def test_coco_equals_pycocotools(scene):
    assert_equals_pycocotools(*draw_scene(scene), scene.classes)


@pytest.mark.parametrize(
    "scene",
    [
        Scene(0, images=30, classes=5),
        Scene(1, images=3, detections=250, objects=40),  # more than 100 detections per image
        Scene(
            2, images=3, detections=250, objects=40, classes=1, score_levels=2
        ),  # and tied scores at the limit of 100
        Scene(3, classes=12),  # classes without objects
        Scene(4, crowd=1.0),  # only crowds
        Scene(5, score_levels=1),  # all scores equal
        Scene(6, objects=0),  # no objects
        Scene(7, detections=0),  # no detections
        Scene(8, objects=0, detections=0),
    ],
)
def test_coco_equals_pycocotools_in_hard_cases(scene):
    assert_equals_pycocotools(*draw_scene(scene), scene.classes)


def test_coco_at_the_boundaries_of_the_size_classes():
    # Areas of 32^2 and 96^2 belong to both adjacent size classes. The annotated area is used, not that of the box.
    sides = [31, 32, 33, 95, 96, 97]
    boxes = [[10, 150 * n, 10 + side, 150 * n + side] for n, side in enumerate(sides)]
    detections = [make_detections("a", boxes, [1] * 6, np.linspace(0.9, 0.4, 6))]
    assert_equals_pycocotools([make_ground_truth("a", boxes, [1] * 6)], detections, 1)
    assert_equals_pycocotools(
        [make_ground_truth("a", boxes, [1] * 6, area=[1023, 1024, 1025, 9215, 9216, 9217])], detections, 1
    )
    assert_equals_pycocotools([make_ground_truth("a", boxes, [1] * 6, area=[20000] * 6)], detections, 1)


def test_an_object_with_an_impossible_area_counts():
    box = [[10, 10, 50, 50]]
    metrics = evaluate_detections(
        [make_ground_truth("a", box, [1], area=[1e12])], [make_detections("a", box, [1], [0.9])], ["class 1"]
    )
    assert (metrics.scalars["coco/AP"], metrics.scalars["coco/AP_large"]) == (1, 1)


def test_coco_ignores_difficult_objects():
    boxes = [[10, 10, 60, 60], [100, 100, 180, 180]]
    ground_truth = [make_ground_truth("a", boxes, [1, 1], difficult=[False, True])]
    for detections in (
        [make_detections("a", boxes[:1], [1], [0.9])],
        [make_detections("a", boxes, [1, 1], [0.8, 0.9])],
    ):
        assert assert_equals_pycocotools(ground_truth, detections, 1).scalars["coco/AP"] == pytest.approx(1)
    alone = assert_equals_pycocotools(
        [make_ground_truth("a", boxes, [1, 1], difficult=[True, True])], [make_detections("a", [], [], [])], 1
    )
    assert alone.scalars["coco/AP"] is None
    # Only the detection that matches the difficult object is ignored, not those inside it: five false positives come
    # before the true positive.
    large, small = [0, 0, 400, 400], [300, 300, 340, 340]
    within = [[20 + 50 * n, 20, 50 + 50 * n, 50] for n in range(5)]
    detections = [make_detections("a", [*within, large, small], [1] * 7, np.linspace(0.95, 0.5, 7))]
    mixed = [make_ground_truth("a", [large, small], [1, 1], difficult=[True, False])]
    assert assert_equals_pycocotools(mixed, detections, 1).scalars["coco/AP"] == pytest.approx(1 / 6)


def test_coco_at_the_iou_thresholds():
    # A box of 512 x 512 pixels of which the detection covers k / 512: the IoU is exactly k / 512. The first
    # threshold is 256 / 512.
    for covered in (255, 256, 257, 384, 486, 512):
        ground_truth, detections = (
            [make_ground_truth("a", [[0, 0, 512, 512]], [1])],
            [make_detections("a", [[0, 0, 512, covered]], [1], [0.5])],
        )
        metrics = assert_equals_pycocotools(ground_truth, detections, 1)
        thresholds_met = sum(covered / 512 >= t / 100 for t in range(50, 100, 5))
        assert metrics.scalars["coco/AP"] == pytest.approx(thresholds_met / 10, abs=1e-9)
