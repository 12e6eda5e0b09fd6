"""VOC metrics equal those of the VOC devkit."""

import numpy as np
import pytest
from hypothesis import given, settings
from reference_metrics import assert_equals_devkit, assert_equals_pycocotools
from scenes import BOX, NEAR, OTHER, SCENES, draw_scene, make_detections, make_ground_truth


@settings(deadline=None, max_examples=150)
@given(SCENES)
def test_voc_equals_the_devkit(scene):
    assert_equals_devkit(*draw_scene(scene), scene.classes)


def test_voc_by_hand():
    # True, false, true positive on two objects: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    ground_truth = [make_ground_truth("a", [[0, 0, 100, 100], [200, 200, 300, 300]], [1, 1])]
    detections = [
        make_detections("a", [[0, 0, 100, 100], [400, 400, 500, 500], [200, 200, 300, 300]], [1, 1, 1], [0.9, 0.8, 0.7])
    ]
    values = assert_equals_devkit(ground_truth, detections, 1).per_class["class 1"]
    # Recalls 0 to 0.5 are reached at precision 1, 0.6 to 1.0 at 2/3.
    assert values["voc07/AP"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert values["voc/AP"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert values["objects"] == 2


@pytest.mark.parametrize("objects", range(1, 12))
def test_voc_eleven_points_with_any_number_of_objects(objects):
    # All objects but one are detected, without false positives: the points up to recall (n - 1) / n count, also where
    # n does not divide 10.
    boxes = [[0, 40 * n, 30, 40 * n + 30] for n in range(objects)]
    ground_truth = [make_ground_truth("a", boxes, [1] * objects)]
    detections = [make_detections("a", boxes[1:], [1] * (objects - 1), np.linspace(0.9, 0.5, objects - 1))]
    points = sum(tenth * objects <= 10 * (objects - 1) for tenth in range(11)) if objects > 1 else 0
    values = assert_equals_devkit(ground_truth, detections, 1).per_class["class 1"]
    assert values["voc07/AP"] == pytest.approx(points / 11)


def voc_ap(ground_truth, detections) -> float | None:
    return assert_equals_devkit(ground_truth, detections, 1).per_class["class 1"]["voc/AP"]


def test_voc_ignores_difficult_objects():
    plain = [make_ground_truth("a", [BOX], [1])]
    with_difficult = [make_ground_truth("a", [OTHER, BOX], [1, 1], difficult=[True, False])]
    # Detected never, once or twice: the result is that without the difficult object.
    for extra, scores in (([], []), ([OTHER], [0.9]), ([OTHER, OTHER], [0.9, 0.8])):
        detections = [make_detections("a", [*extra, BOX], [1] * (len(extra) + 1), [*scores, 0.5])]
        assert voc_ap(with_difficult, detections) == 1
    # If it is not difficult, the missed object halves AP.
    assert voc_ap([make_ground_truth("a", [OTHER, BOX], [1, 1])], [make_detections("a", [BOX], [1], [0.5])]) == 0.5
    # A detection far from every object remains a false positive.
    false_positive = [make_detections("a", [[400, 400, 500, 500], BOX], [1, 1], [0.9, 0.5])]
    assert voc_ap(with_difficult, false_positive) == voc_ap(plain, false_positive) == 0.5


def test_voc_ignores_detections_inside_a_crowd_like_coco():
    # The second detection covers a hundredth of the crowd; the third is in it by less than half.
    scene = [make_ground_truth("a", [BOX, [200, 200, 500, 500]], [1, 1], crowd=[False, True])]
    inside = [make_detections("a", [BOX, [200, 200, 230, 230]], [1, 1], [0.5, 0.9])]
    assert voc_ap(scene, inside) == 1
    assert assert_equals_pycocotools(scene, inside, 1).scalars["coco/AP"] == pytest.approx(1)
    beside = [make_detections("a", [BOX, [150, 200, 249, 300]], [1, 1], [0.5, 0.9])]
    assert voc_ap(scene, beside) == 0.5
    # A crowd of another class ignores nothing.
    other = [make_ground_truth("a", [BOX, [200, 200, 500, 500]], [1, 2], crowd=[False, True])]
    assert assert_equals_devkit(other, inside, 2).per_class["class 1"]["voc/AP"] == 0.5


def test_voc_matches_an_object_once():
    detections = [make_detections("a", [BOX, NEAR, OTHER], [1, 1, 1], [0.9, 0.8, 0.7])]
    # True positive, duplicate, true positive.
    assert voc_ap([make_ground_truth("a", [BOX, OTHER], [1, 1])], detections) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_voc_matches_only_the_object_of_highest_iou():
    # Both detections have the highest IoU with the first object. The second detection also has an IoU above 0.5 with
    # the second object: COCO matches the two, VOC does not.
    ground_truth = [make_ground_truth("a", [[0, 0, 100, 100], [0, 0, 100, 80]], [1, 1])]
    detections = [make_detections("a", [[0, 0, 100, 100], [0, 0, 100, 95]], [1, 1], [0.9, 0.8])]
    metrics = assert_equals_devkit(ground_truth, detections, 1)
    assert metrics.scalars["voc/mAP"] == 0.5
    assert assert_equals_pycocotools(ground_truth, detections, 1).scalars["coco/AP50"] == pytest.approx(1)


def test_voc_iou_threshold_includes_one_half():
    ground_truth = [make_ground_truth("a", [[0, 0, 512, 512]], [1])]
    assert voc_ap(ground_truth, [make_detections("a", [[0, 0, 512, 256]], [1], [0.9])]) == 1
    assert voc_ap(ground_truth, [make_detections("a", [[0, 0, 512, 255]], [1], [0.9])]) == 0
