"""COCO metrics are pycocotools' to 1e-6, VOC metrics the devkit's, and None stands for what does not exist."""

import contextlib
import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import VocImage, voc_ap_reference

from ssd_dist.core.errors import DataError
from ssd_dist.core.records import Objects
from ssd_dist.evaluation.detections import Detections, GroundTruth, align_detections, coco_results
from ssd_dist.evaluation.metrics import Metrics, evaluate_detections

COCO_STATS = (
    "coco/AP", "coco/AP50", "coco/AP75", "coco/AP_small", "coco/AP_medium", "coco/AP_large",
    "coco/AR1", "coco/AR10", "coco/AR100", "coco/AR_small", "coco/AR_medium", "coco/AR_large",
)  # fmt: skip
# Powers of two: pixel coordinates survive normalisation exactly, so boundary cases are on the boundary.
HEIGHT, WIDTH = 512, 1024


def truth(name, boxes, labels, difficult=None, crowd=None, area=None) -> GroundTruth:
    """Ground truth from boxes in pixels."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    count = len(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    objects = Objects(
        boxes=(boxes / [HEIGHT, WIDTH, HEIGHT, WIDTH]).astype(np.float32),
        labels=np.asarray(labels, np.int64).reshape(count),
        names=("",) * count,
        difficult=np.zeros(count, bool) if difficult is None else np.asarray(difficult, bool),
        is_crowd=np.zeros(count, bool) if crowd is None else np.asarray(crowd, bool),
        area=(sides[:, 0] * sides[:, 1] if area is None else np.asarray(area)).astype(np.float32),
    )
    return GroundTruth(name, HEIGHT, WIDTH, objects)


def found(name, boxes, labels, scores) -> Detections:
    """Detections from boxes in pixels."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return Detections(
        name,
        (boxes / [HEIGHT, WIDTH, HEIGHT, WIDTH]).astype(np.float32),
        np.asarray(labels, np.int64).reshape(-1),
        np.asarray(scores, np.float32).reshape(-1),
    )


def nothing(name) -> Detections:
    return found(name, [], [], [])


@dataclass(frozen=True)
class Scene:
    """How a random evaluation is drawn."""

    seed: int
    images: int = 6
    classes: int = 3
    objects: int = 6
    detections: int = 20
    crowd: float = 0.15
    difficult: float = 0.2
    score_levels: int = 0  # 0: distinct scores
    on_grid: bool = False


def draw_scene(scene: Scene) -> tuple[list[GroundTruth], list[Detections]]:
    rng = np.random.default_rng(scene.seed)

    def boxes(count):
        sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
        corners = rng.uniform(0, 1, (count, 2)) * ([HEIGHT, WIDTH] - sides)
        drawn = np.concatenate([corners, corners + sides], axis=1)
        if scene.on_grid:
            drawn = np.round(drawn / 32) * 32
            drawn[:, 2:] = np.maximum(drawn[:, 2:], drawn[:, :2] + 32)
        return drawn

    truths, detections = [], []
    total = scene.images * scene.detections
    scores = rng.permutation(np.linspace(0.02, 0.99, total))
    if scene.score_levels:
        scores = np.ceil(scores * scene.score_levels) / scene.score_levels
    for image in range(scene.images):
        count = int(rng.integers(0, scene.objects + 1))
        objects, labels = boxes(count), rng.integers(1, scene.classes + 1, count)
        area = (objects[:, 2] - objects[:, 0]) * (objects[:, 3] - objects[:, 1]) * rng.uniform(0.5, 1, count)
        truths.append(
            truth(
                f"image {image}",
                objects,
                labels,
                rng.random(count) < scene.difficult,
                rng.random(count) < scene.crowd,
                area,
            )
        )
        guesses, guessed = boxes(scene.detections), rng.integers(1, scene.classes + 1, scene.detections)
        # Most detections lie near an object, at IoUs over the whole range of thresholds.
        for d in range(scene.detections if count else 0):
            if rng.random() < 0.8:
                n = rng.integers(count)
                sides = objects[n, 2:] - objects[n, :2]
                guesses[d] = objects[n] + np.tile(sides, 2) * rng.normal(0, rng.choice([0, 0.02, 0.1, 0.2]), 4)
                guesses[d, 2:] = np.maximum(guesses[d, 2:], guesses[d, :2] + 1)
                guessed[d] = labels[n] if rng.random() < 0.9 else guessed[d]
        image_scores = scores[image * scene.detections : (image + 1) * scene.detections]
        detections.append(found(f"image {image}", guesses, guessed, image_scores))
    return truths, detections


def class_names(count: int) -> list[str]:
    return [f"class {k}" for k in range(1, count + 1)]


# --- COCO ----------------------------------------------------------------------------------------------------------


def pycocotools_reference(truths, detections, classes: int) -> tuple[list[float], list[list[float]]]:
    """COCO's twelve numbers, and (AP, AP50) of each class; -1 for what does not exist."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def pixels(box):
        ymin, xmin, ymax, xmax = (float(v) for v in box)
        return [xmin * WIDTH, ymin * HEIGHT, (xmax - xmin) * WIDTH, (ymax - ymin) * HEIGHT]

    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(len(truths))]
    categories = [{"id": k, "name": str(k)} for k in range(1, classes + 1)]
    annotations, results = [], []
    for i, image in enumerate(truths):
        for n, box in enumerate(image.objects.boxes):
            annotations.append(
                {
                    # pycocotools takes a match with id 0 for none.
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(image.objects.labels[n]),
                    "bbox": pixels(box),
                    "area": float(image.objects.area[n]),
                    "iscrowd": int(image.objects.is_crowd[n]),
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
        evaluation = COCOeval(*sides, "bbox")
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


def assert_equals_pycocotools(truths, detections, classes: int) -> Metrics:
    metrics = evaluate_detections(truths, detections, class_names(classes))
    stats, per_class = pycocotools_reference(truths, detections, classes)
    for name, expected in zip(COCO_STATS, stats, strict=True):
        assert_equal_numbers(metrics.scalars[name], expected, name)
    for name, (ap, ap50) in zip(class_names(classes), per_class, strict=True):
        assert_equal_numbers(metrics.per_class[name]["coco/AP"], ap, name)
        assert_equal_numbers(metrics.per_class[name]["coco/AP50"], ap50, name)
    return metrics


SCENES = st.builds(
    Scene,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 6),
    classes=st.integers(1, 4),
    objects=st.integers(0, 8),
    detections=st.integers(0, 30),
    crowd=st.sampled_from([0.0, 0.2, 0.7]),
    difficult=st.sampled_from([0.0, 0.3]),
    score_levels=st.sampled_from([0, 1, 3]),
    on_grid=st.booleans(),
)


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


def test_coco_at_the_iou_thresholds():
    # A box of 512 x 512; the detection covers k / 512 of it: IoU k / 512 exactly, 256 / 512 being the first threshold.
    for covered in (255, 256, 257, 384, 486, 512):
        truths, detections = [truth("a", [[0, 0, 512, 512]], [1])], [found("a", [[0, 0, 512, covered]], [1], [0.5])]
        metrics = assert_equals_pycocotools(truths, detections, 1)
        thresholds_met = sum(covered / 512 >= t / 100 for t in range(50, 100, 5))
        assert metrics.scalars["coco/AP"] == pytest.approx(thresholds_met / 10, abs=1e-9)


def test_a_perfect_detector_has_one_everywhere():
    boxes = [[0, 0, 20, 20], [100, 100, 150, 150], [200, 500, 400, 900]]
    truths = [truth(str(i), boxes, [1, 2, 3]) for i in range(4)]
    detections = [found(str(i), boxes, [1, 2, 3], [0.9, 0.8, 0.7]) for i in range(4)]
    metrics = assert_equals_pycocotools(truths, detections, 3)
    assert all(value == pytest.approx(1) for value in metrics.scalars.values())
    for values in metrics.per_class.values():
        assert values == pytest.approx({"coco/AP": 1, "coco/AP50": 1, "voc07/AP": 1, "voc/AP": 1, "objects": 4})


# --- VOC -----------------------------------------------------------------------------------------------------------


def voc_reference(truths, detections, label: int) -> tuple[float, float] | None:
    images = []
    for image, guesses in zip(truths, detections, strict=True):
        mine, theirs = image.objects.labels == label, guesses.labels == label
        # A crowd is, like a difficult object, neither to be found nor wrong to find.
        flags = (image.objects.difficult | image.objects.is_crowd)[mine]
        images.append(VocImage(image.objects.boxes[mine], flags, guesses.boxes[theirs], guesses.scores[theirs]))
    return voc_ap_reference(images)


def assert_equals_devkit(truths, detections, classes: int) -> Metrics:
    metrics = evaluate_detections(truths, detections, class_names(classes))
    expected = [voc_reference(truths, detections, label) for label in range(1, classes + 1)]
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


BOX, OTHER, NEAR = [0, 0, 100, 100], [200, 200, 300, 300], [0, 0, 100, 90]


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


def test_a_detection_of_another_class_is_another_matter():
    truths, detections = [truth("a", [BOX], [1])], [found("a", [BOX], [2], [0.9])]
    metrics = assert_equals_devkit(truths, detections, 2)
    assert metrics.per_class["class 1"]["voc/AP"] == 0
    # Class 2 has no objects: it has no AP and does not enter the mean, in neither protocol.
    assert metrics.per_class["class 2"] == {
        "coco/AP": None, "coco/AP50": None, "voc07/AP": None, "voc/AP": None, "objects": 0,
    }  # fmt: skip
    assert metrics.scalars["voc/mAP"] == 0
    assert assert_equals_pycocotools(truths, detections, 2).scalars["coco/AP"] == 0


# --- Both ----------------------------------------------------------------------------------------------------------


def assert_same(one: Metrics, other: Metrics) -> None:
    assert one.scalars == pytest.approx(other.scalars, abs=1e-12)
    for name, values in one.per_class.items():
        assert values == pytest.approx(other.per_class[name], abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(SCENES.map(lambda scene: Scene(**{**vars(scene), "score_levels": 0})), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(scene, random):
    truths, detections = draw_scene(scene)
    metrics = evaluate_detections(truths, detections, class_names(scene.classes))
    random.shuffle(truths)
    random.shuffle(detections)
    assert_same(evaluate_detections(truths, detections, class_names(scene.classes)), metrics)


@settings(deadline=None, max_examples=25)
@given(SCENES)
def test_the_size_of_the_pixels_does_not_matter_to_voc(scene):
    truths, detections = draw_scene(scene)
    larger = [GroundTruth(t.source_id, t.height * 3, t.width * 2, t.objects) for t in truths]
    names = class_names(scene.classes)
    for name in ("voc07/mAP", "voc/mAP"):
        assert (
            evaluate_detections(larger, detections, names).scalars[name]
            == (evaluate_detections(truths, detections, names).scalars[name])
        )


@settings(deadline=None, max_examples=40)
@given(SCENES)
def test_metrics_are_json_with_null_for_what_does_not_exist(scene):
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


def test_no_images_give_no_numbers():
    metrics = evaluate_detections([], [], class_names(2))
    assert set(metrics.scalars.values()) == {None}


def test_detections_without_objects_are_no_reason_to_fail():
    metrics = evaluate_detections([truth("a", [], [])], [found("a", [BOX], [1], [0.5])], class_names(1))
    assert set(metrics.scalars.values()) == {None}


def test_nothing_found_is_zero_and_not_null():
    metrics = evaluate_detections([truth("a", [BOX], [1])], [nothing("a")], class_names(1))
    assert metrics.scalars["coco/AP"] == metrics.scalars["voc07/mAP"] == metrics.scalars["voc/mAP"] == 0
    assert metrics.scalars["coco/AP_small"] is None


def test_evaluation_prints_nothing(capfd, caplog):
    caplog.set_level("INFO")
    evaluate_detections(*draw_scene(Scene(0)), class_names(3))
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.text) == ("", "", "")


# --- Which image is which ------------------------------------------------------------------------------------------


def test_a_repeated_image_counts_once():
    # Trap 8: padding repeats images; the repetition must not count as more detections.
    truths, detections = draw_scene(Scene(3))
    metrics = evaluate_detections(truths, detections, class_names(3))
    padded = [*detections, detections[0], detections[0]]
    assert_same(evaluate_detections(truths, padded, class_names(3)), metrics)
    assert [d.source_id for d in align_detections(truths, padded)] == [t.source_id for t in truths]


def test_images_are_paired_by_id():
    truths = [truth("a", [BOX], [1]), truth("b", [OTHER], [1])]
    detections = [found("b", [OTHER], [1], [0.9]), found("a", [BOX], [1], [0.8])]
    assert evaluate_detections(truths, detections, class_names(1)).scalars["voc/mAP"] == 1


@pytest.mark.parametrize(
    ("truth_names", "found_names", "words"),
    [
        ("ab", "a", ["saw 1 images, the split has 2", "1 were not seen", "'b'"]),
        ("a", "ab", ["saw 2 images, the split has 1", "1 are not of the split", "'b'"]),
        ("ab", "ac", ["1 were not seen", "1 are not of the split", "'b'"]),
        ("aa", "aa", ["1 images to evaluate share their id"]),
        ("a", "", ["saw 0 images"]),
    ],
)
def test_other_images_than_the_splits_are_refused(truth_names, found_names, words):
    truths = [truth(name, [BOX], [1]) for name in truth_names]
    with pytest.raises(DataError) as caught:
        evaluate_detections(truths, [nothing(name) for name in found_names], class_names(1))
    assert all(word in str(caught.value) for word in words), caught.value


def test_coco_results_are_in_original_pixels_under_the_given_ids():
    results = coco_results(
        [found("a", [[16, 32, 80, 160]], [2], [0.5]), nothing("b")],
        [truth("a", [], []), truth("b", [], [])],
        image_ids=[42, 43],
        category_ids=[1, 90],
    )
    assert results == [{"image_id": 42, "category_id": 90, "bbox": [32.0, 16.0, 128.0, 64.0], "score": 0.5}]
    assert math.isfinite(json.loads(json.dumps(results))[0]["score"])


def test_metrics_need_no_tensorflow():
    program = "import sys, ssd_dist.evaluation.metrics; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
