"""Properties of the COCO and VOC metrics: order, image ids, missing values and output format."""

import contextlib
import gc
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_metrics import COCO_STATS, assert_equals_devkit, assert_equals_pycocotools
from scenes import (
    BOX,
    OTHER,
    SCENES,
    Scene,
    class_names,
    draw_scene,
    make_detections,
    make_ground_truth,
    make_no_detections,
)

from ssd_dist.core.errors import DataError
from ssd_dist.evaluation.detections import GroundTruth, align_detections, convert_to_coco_results
from ssd_dist.evaluation.metrics import Metrics, evaluate_detections


def test_perfect_detections_have_metrics_of_one():
    boxes = [[0, 0, 20, 20], [100, 100, 150, 150], [200, 500, 400, 900]]
    ground_truth = [make_ground_truth(str(i), boxes, [1, 2, 3]) for i in range(4)]
    detections = [make_detections(str(i), boxes, [1, 2, 3], [0.9, 0.8, 0.7]) for i in range(4)]
    metrics = assert_equals_pycocotools(ground_truth, detections, 3)
    assert all(value == pytest.approx(1) for value in metrics.scalars.values())
    for values in metrics.per_class.values():
        assert values == pytest.approx({"coco/AP": 1, "coco/AP50": 1, "voc07/AP": 1, "voc/AP": 1, "objects": 4})


def test_detections_of_another_class_do_not_match():
    ground_truth, detections = [make_ground_truth("a", [BOX], [1])], [make_detections("a", [BOX], [2], [0.9])]
    metrics = assert_equals_devkit(ground_truth, detections, 2)
    assert metrics.per_class["class 1"]["voc/AP"] == 0
    # Class 2 has no objects, so it has no AP and is not part of the mean, in both protocols.
    assert metrics.per_class["class 2"] == {
        "coco/AP": None, "coco/AP50": None, "voc07/AP": None, "voc/AP": None, "objects": 0,
    }  # fmt: skip
    assert metrics.scalars["voc/mAP"] == 0
    assert assert_equals_pycocotools(ground_truth, detections, 2).scalars["coco/AP"] == 0


def assert_same(one: Metrics, other: Metrics) -> None:
    assert one.scalars == pytest.approx(other.scalars, abs=1e-12)
    for name, values in one.per_class.items():
        assert values == pytest.approx(other.per_class[name], abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(SCENES.map(lambda scene: Scene(**{**vars(scene), "score_levels": 0})), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(scene, random):
    ground_truth, detections = draw_scene(scene)
    metrics = evaluate_detections(ground_truth, detections, class_names(scene.classes))
    random.shuffle(ground_truth)
    random.shuffle(detections)
    assert_same(evaluate_detections(ground_truth, detections, class_names(scene.classes)), metrics)


@settings(deadline=None, max_examples=25)
@given(SCENES)
def test_voc_metrics_do_not_depend_on_the_image_size(scene):
    ground_truth, detections = draw_scene(scene)
    larger = [GroundTruth(t.source_id, t.height * 3, t.width * 2, t.objects) for t in ground_truth]
    names = class_names(scene.classes)
    for name in ("voc07/mAP", "voc/mAP"):
        assert (
            evaluate_detections(larger, detections, names).scalars[name]
            == (evaluate_detections(ground_truth, detections, names).scalars[name])
        )


@settings(deadline=None, max_examples=40)
@given(SCENES)
def test_metrics_are_json_with_null_for_undefined_values(scene):
    names = class_names(scene.classes)
    metrics = evaluate_detections(*draw_scene(scene), names).as_dict()
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert set(metrics) == {*COCO_STATS, "voc07/mAP", "voc/mAP", "per_class"}
    assert list(metrics["per_class"]) == names
    numbers = [value for name, value in metrics.items() if name != "per_class"]
    for values in metrics["per_class"].values():
        assert set(values) == {"coco/AP", "coco/AP50", "voc07/AP", "voc/AP", "objects"}
        assert type(values["objects"]) is int
        numbers += [values[name] for name in values if name != "objects"]
    assert all(number is None or (type(number) is float and 0 <= number <= 1 + 1e-9) for number in numbers)


def test_metrics_without_images_are_none():
    metrics = evaluate_detections([], [], class_names(2))
    assert set(metrics.scalars.values()) == {None}


def test_metrics_without_objects_are_none():
    metrics = evaluate_detections(
        [make_ground_truth("a", [], [])], [make_detections("a", [BOX], [1], [0.5])], class_names(1)
    )
    assert set(metrics.scalars.values()) == {None}


def test_metrics_without_detections_are_zero():
    metrics = evaluate_detections([make_ground_truth("a", [BOX], [1])], [make_no_detections("a")], class_names(1))
    assert metrics.scalars["coco/AP"] == metrics.scalars["voc07/mAP"] == metrics.scalars["voc/mAP"] == 0
    assert metrics.scalars["coco/AP_small"] is None


def test_evaluation_prints_nothing(capfd, caplog):
    caplog.set_level("INFO")
    evaluate_detections(*draw_scene(Scene(0)), class_names(3))
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.text) == ("", "", "")


@pytest.mark.parametrize("names", [["class 1"], []], ids=["evaluated", "failed"])
def test_garbage_collector_state_is_restored(names):
    for collecting in (False, True):
        (gc.enable if collecting else gc.disable)()
        try:
            # A label without a name raises an error while the metrics are computed.
            with contextlib.nullcontext() if names else pytest.raises(IndexError):
                evaluate_detections(
                    [make_ground_truth("a", [BOX], [1])], [make_detections("a", [BOX], [1], [0.9])], names
                )
            assert gc.isenabled() == collecting
        finally:
            gc.enable()


def test_repeated_images_count_once():
    # Padding repeats images; a repeated image must not count as further detections.
    ground_truth, detections = draw_scene(Scene(3))
    metrics = evaluate_detections(ground_truth, detections, class_names(3))
    padded = [*detections, detections[0], detections[0]]
    assert_same(evaluate_detections(ground_truth, padded, class_names(3)), metrics)
    assert [d.source_id for d in align_detections(ground_truth, padded)] == [t.source_id for t in ground_truth]


def test_images_are_paired_by_id():
    ground_truth = [make_ground_truth("a", [BOX], [1]), make_ground_truth("b", [OTHER], [1])]
    detections = [make_detections("b", [OTHER], [1], [0.9]), make_detections("a", [BOX], [1], [0.8])]
    assert evaluate_detections(ground_truth, detections, class_names(1)).scalars["voc/mAP"] == 1


@pytest.mark.parametrize(
    ("annotated", "detected", "words"),
    [
        ("ab", "a", ["1 images were evaluated, the split has 2", "1 are missing", "'b'"]),
        ("a", "ab", ["2 images were evaluated, the split has 1", "1 do not belong to the split", "'b'"]),
        ("ab", "ac", ["1 are missing", "1 do not belong to the split", "'b'"]),
        ("aa", "aa", ["1 images have the id of another image"]),
        ("a", "", ["0 images were evaluated"]),
    ],
)
def test_images_that_differ_from_the_split_raise_an_error(annotated, detected, words):
    ground_truth = [make_ground_truth(name, [BOX], [1]) for name in annotated]
    with pytest.raises(DataError) as caught:
        evaluate_detections(ground_truth, [make_no_detections(name) for name in detected], class_names(1))
    assert all(word in str(caught.value) for word in words), caught.value


def test_coco_results_use_original_pixels_and_the_given_ids():
    results = convert_to_coco_results(
        [make_detections("a", [[16, 32, 80, 160]], [2], [0.5]), make_no_detections("b")],
        [make_ground_truth("a", [], []), make_ground_truth("b", [], [])],
        image_ids=[42, 43],
        category_ids=[1, 90],
    )
    assert results == [{"image_id": 42, "category_id": 90, "bbox": [32.0, 16.0, 128.0, 64.0], "score": 0.5}]
    assert math.isfinite(json.loads(json.dumps(results))[0]["score"])


def test_metrics_do_not_import_tensorflow():
    program = "import sys, ssd_dist.evaluation.metrics; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
