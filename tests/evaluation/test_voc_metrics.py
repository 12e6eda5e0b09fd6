"""VOC metrics are the devkit's."""

import numpy as np
import pytest
from hypothesis import given, settings
from oracles import assert_equals_devkit, assert_equals_pycocotools
from scenes import BOX, NEAR, OTHER, SCENES, draw_scene, found, truth


@settings(deadline=None, max_examples=150)
@given(SCENES)
def test_voc_equals_the_devkits_loop(scene):
    assert_equals_devkit(*draw_scene(scene), scene.classes)


def test_voc_by_hand():
    # Hit, miss, hit on two objects: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    truths = [truth("a", [[0, 0, 100, 100], [200, 200, 300, 300]], [1, 1])]
    detections = [
        found("a", [[0, 0, 100, 100], [400, 400, 500, 500], [200, 200, 300, 300]], [1, 1, 1], [0.9, 0.8, 0.7])
    ]
    values = assert_equals_devkit(truths, detections, 1).per_class["class 1"]
    # Recalls 0 to 0.5 are reached at precision 1, 0.6 to 1.0 at 2/3.
    assert values["voc07/AP"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert values["voc/AP"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert values["objects"] == 2


@pytest.mark.parametrize("objects", range(1, 12))
def test_voc_eleven_points_with_any_number_of_objects(objects):
    # All but one object found, no misses: the points up to recall (n - 1) / n count, however n divides ten.
    boxes = [[0, 40 * n, 30, 40 * n + 30] for n in range(objects)]
    truths = [truth("a", boxes, [1] * objects)]
    detections = [found("a", boxes[1:], [1] * (objects - 1), np.linspace(0.9, 0.5, objects - 1))]
    points = sum(tenth * objects <= 10 * (objects - 1) for tenth in range(11)) if objects > 1 else 0
    values = assert_equals_devkit(truths, detections, 1).per_class["class 1"]
    assert values["voc07/AP"] == pytest.approx(points / 11)


def voc_ap(truths, detections) -> float | None:
    return assert_equals_devkit(truths, detections, 1).per_class["class 1"]["voc/AP"]


def test_voc_a_difficult_object_is_neither_hit_nor_miss():
    plain = [truth("a", [BOX], [1])]
    with_difficult = [truth("a", [OTHER, BOX], [1, 1], difficult=[True, False])]
    # Not found, found once and found twice: always as if it were not there.
    for extra, scores in (([], []), ([OTHER], [0.9]), ([OTHER, OTHER], [0.9, 0.8])):
        detections = [found("a", [*extra, BOX], [1] * (len(extra) + 1), [*scores, 0.5])]
        assert voc_ap(with_difficult, detections) == 1
    # Without the flag the unfound one costs half.
    assert voc_ap([truth("a", [OTHER, BOX], [1, 1])], [found("a", [BOX], [1], [0.5])]) == 0.5
    # And what is near no object is a miss as ever.
    strange = [found("a", [[400, 400, 500, 500], BOX], [1, 1], [0.9, 0.5])]
    assert voc_ap(with_difficult, strange) == voc_ap(plain, strange) == 0.5


def test_voc_an_object_is_found_once():
    detections = [found("a", [BOX, NEAR, OTHER], [1, 1, 1], [0.9, 0.8, 0.7])]
    # Hit, duplicate, hit.
    assert voc_ap([truth("a", [BOX, OTHER], [1, 1])], detections) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_voc_looks_only_at_the_object_of_highest_iou():
    # Both detections overlap the first object most; the second detection also reaches 0.5 with the other object, which
    # VOC leaves unfound and COCO gives to it.
    truths = [truth("a", [[0, 0, 100, 100], [0, 0, 100, 80]], [1, 1])]
    detections = [found("a", [[0, 0, 100, 100], [0, 0, 100, 95]], [1, 1], [0.9, 0.8])]
    metrics = assert_equals_devkit(truths, detections, 1)
    assert metrics.scalars["voc/mAP"] == 0.5
    assert assert_equals_pycocotools(truths, detections, 1).scalars["coco/AP50"] == pytest.approx(1)


def test_voc_reaches_an_iou_of_exactly_one_half():
    truths = [truth("a", [[0, 0, 512, 512]], [1])]
    assert voc_ap(truths, [found("a", [[0, 0, 512, 256]], [1], [0.9])]) == 1
    assert voc_ap(truths, [found("a", [[0, 0, 512, 255]], [1], [0.9])]) == 0
