"""COCO metrics are pycocotools' to 1e-6, and None stands for what does not exist."""

import numpy as np
import pytest
from hypothesis import given, settings
from oracles import assert_equals_pycocotools
from scenes import SCENES, Scene, draw_scene, found, truth


@settings(deadline=None, max_examples=60)
@given(SCENES)
def test_coco_equals_pycocotools(scene):
    assert_equals_pycocotools(*draw_scene(scene), scene.classes)


@pytest.mark.parametrize(
    "scene",
    [
        Scene(0, images=30, classes=5),
        Scene(1, images=3, detections=250, objects=40),  # more than 100 detections in an image
        Scene(2, images=3, detections=250, objects=40, classes=1, score_levels=2),  # and ties at the cut
        Scene(3, classes=12),  # classes without objects
        Scene(4, crowd=1.0),  # nothing but crowds
        Scene(5, score_levels=1),  # all scores equal
        Scene(6, objects=0),  # nothing to find
        Scene(7, detections=0),  # nothing found
        Scene(8, objects=0, detections=0),
    ],
)
def test_coco_equals_pycocotools_in_hard_cases(scene):
    assert_equals_pycocotools(*draw_scene(scene), scene.classes)


def test_coco_on_the_bounds_of_its_size_classes():
    # 32^2 and 96^2 belong to the class above and to the one below; the annotated area counts, not the box's.
    sides = [31, 32, 33, 95, 96, 97]
    boxes = [[10, 150 * n, 10 + side, 150 * n + side] for n, side in enumerate(sides)]
    detections = [found("a", boxes, [1] * 6, np.linspace(0.9, 0.4, 6))]
    assert_equals_pycocotools([truth("a", boxes, [1] * 6)], detections, 1)
    assert_equals_pycocotools([truth("a", boxes, [1] * 6, area=[1023, 1024, 1025, 9215, 9216, 9217])], detections, 1)
    assert_equals_pycocotools([truth("a", boxes, [1] * 6, area=[20000] * 6)], detections, 1)


def test_coco_a_difficult_object_is_neither_hit_nor_miss():
    boxes = [[10, 10, 60, 60], [100, 100, 180, 180]]
    truths = [truth("a", boxes, [1, 1], difficult=[False, True])]
    for detections in ([found("a", boxes[:1], [1], [0.9])], [found("a", boxes, [1, 1], [0.8, 0.9])]):
        assert assert_equals_pycocotools(truths, detections, 1).scalars["coco/AP"] == pytest.approx(1)
    alone = assert_equals_pycocotools([truth("a", boxes, [1, 1], difficult=[True, True])], [found("a", [], [], [])], 1)
    assert alone.scalars["coco/AP"] is None
    # It excuses what finds it, not whatever lies within it: five wrong before the right one.
    large, small = [0, 0, 400, 400], [300, 300, 340, 340]
    within = [[20 + 50 * n, 20, 50 + 50 * n, 50] for n in range(5)]
    detections = [found("a", [*within, large, small], [1] * 7, np.linspace(0.95, 0.5, 7))]
    mixed = [truth("a", [large, small], [1, 1], difficult=[True, False])]
    assert assert_equals_pycocotools(mixed, detections, 1).scalars["coco/AP"] == pytest.approx(1 / 6)


def test_coco_at_the_iou_thresholds():
    # A box of 512 x 512; the detection covers k / 512 of it: IoU k / 512 exactly, 256 / 512 being the first threshold.
    for covered in (255, 256, 257, 384, 486, 512):
        truths, detections = [truth("a", [[0, 0, 512, 512]], [1])], [found("a", [[0, 0, 512, covered]], [1], [0.5])]
        metrics = assert_equals_pycocotools(truths, detections, 1)
        thresholds_met = sum(covered / 512 >= t / 100 for t in range(50, 100, 5))
        assert metrics.scalars["coco/AP"] == pytest.approx(thresholds_met / 10, abs=1e-9)
