"""Error types, thresholds, confusion matrix and calibration of small scenes, calculated by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_dist.core.records import Objects
from ssd_dist.evaluation.analysis import analyse_detections
from ssd_dist.evaluation.confidence import find_operating_point, measure_calibration
from ssd_dist.evaluation.detection_matching import match_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.error_types import KINDS, classify_detections, find_missed, report_errors
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.evaluation.voc_metrics import trace_curve

CLASSES = ("cat", "dog")
CAT, DOG = 1, 2
SIDE = 128
# An object of 32 x 32 pixels. Shifted by 8 pixels, the IoU is 24 / 40 = 0.6; by 16 pixels, 16 / 48 = 1 / 3.
BOX = (16, 16, 48, 48)


def shift_box(pixels):
    return (16, 16 + pixels, 48, 48 + pixels)


def make_ground_truth(name, *rows, difficult=()):
    """Builds the ground truth of one image from rows (box in pixels, label)."""
    count = len(rows)
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4) / SIDE
    flags = np.isin(np.arange(count), difficult)
    objects = Objects(
        boxes=boxes,
        labels=np.array([label for _, label in rows], np.int64),
        names=("",) * count,
        difficult=flags,
        is_crowd=np.zeros(count, bool),
        area=np.full(count, 1024.0, np.float32),
    )
    return GroundTruth(name, SIDE, SIDE, objects)


def make_detections(name, *rows):
    """Builds the detections on one image from rows (box in pixels, label, score)."""
    return Detections(
        name,
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4) / SIDE,
        np.array([label for _, label, _ in rows], np.int64),
        np.array([score for _, _, score in rows], np.float32),
    )


def classify(objects, detections, **options):
    matches = match_detections(
        [make_ground_truth("a", *objects, **options)], [make_detections("a", *detections)], CLASSES
    )
    return classify_detections(matches).tolist()


@pytest.mark.parametrize(
    ("detection", "kind"),
    [
        ((BOX, CAT, 0.9), "true positive"),
        ((shift_box(8), CAT, 0.9), "true positive"),
        ((shift_box(16), CAT, 0.9), "localisation"),
        ((BOX, DOG, 0.9), "class"),
        ((shift_box(16), DOG, 0.9), "both"),
        # An IoU of 2 / 62 is below the lower bound of 0.1.
        ((shift_box(30), CAT, 0.9), "background"),
        (((80, 80, 120, 120), DOG, 0.9), "background"),
    ],
)
def test_each_error_type_with_one_object(detection, kind):
    assert classify([(BOX, CAT)], [detection]) == [kind]


def test_second_detection_is_a_duplicate_and_is_ignored_on_difficult_objects():
    twice = [(BOX, CAT, 0.9), (shift_box(8), CAT, 0.8)]
    assert classify([(BOX, CAT)], twice) == ["true positive", "duplicate"]
    assert classify([(BOX, CAT)], twice, difficult=[0]) == ["ignored", "ignored"]
    # Near a difficult object with an IoU below 0.5: difficult objects do not count, so this is no localization error.
    assert classify([(BOX, CAT)], [(shift_box(16), CAT, 0.9)], difficult=[0]) == ["background"]


def test_object_is_missed_unless_only_class_or_box_is_wrong():
    far = ((80, 80, 112, 112), CAT)

    def missed(*detections):
        matches = match_detections(
            [make_ground_truth("a", (BOX, CAT), far)], [make_detections("a", *detections)], CLASSES
        )
        return find_missed(matches, classify_detections(matches)).tolist()

    assert missed() == [True, True]
    assert missed((BOX, CAT, 0.9)) == [False, True]
    assert missed((shift_box(16), CAT, 0.9)) == [False, True]
    assert missed((BOX, DOG, 0.9)) == [False, True]
    assert missed((shift_box(16), DOG, 0.9)) == [True, True]


def report_errors_of(objects, detections, thresholds=(0.0, 0.0)):
    matches = match_detections([make_ground_truth("a", *objects)], [make_detections("a", *detections)], CLASSES)
    report = report_errors(matches, np.array(thresholds))
    return {kind: gain for kind, gain in report.gains.items() if gain > 1e-12}, report.counts


def test_gains_by_hand():
    # One cat, detected, and a false positive with a higher score: precision 1/2 at recall 1, mAP 1/2. Without the
    # false positive, mAP is 1.
    false_positive = ((80, 80, 112, 112), CAT, 0.95)
    assert report_errors_of([(BOX, CAT)], [false_positive, (BOX, CAT, 0.9)])[0] == {"background": 0.5}
    # A cat and a dog, each detected as the other: mAP 0, with correct classes 1. No object is missed.
    dog = ((80, 80, 112, 112), DOG)
    swapped = [(BOX, DOG, 0.9), ((80, 80, 112, 112), CAT, 0.8)]
    assert report_errors_of([(BOX, CAT), dog], swapped)[0] == {"class": 1.0}
    # Two cats, one detected: 1/2. With the missed cat removed from the ground truth: 1.
    assert report_errors_of([(BOX, CAT), ((80, 80, 112, 112), CAT)], [(BOX, CAT, 0.9)])[0] == {"missed": 0.5}
    # A shifted box with a higher score than the correct one: the oracle corrects it and deletes the other.
    gains, counts = report_errors_of([(BOX, CAT)], [(shift_box(16), CAT, 0.9), (BOX, CAT, 0.8)])
    assert gains == {"localisation": 0.5}
    assert counts == dict.fromkeys(KINDS, 0) | {"localisation": 1}


def test_error_counts_include_only_detections_above_the_thresholds():
    _, counts = report_errors_of([(BOX, CAT)], [(BOX, CAT, 0.4), ((80, 80, 112, 112), DOG, 0.9)], thresholds=(0.5, 0.5))
    assert counts == dict.fromkeys(KINDS, 0) | {"background": 1, "missed": 1}


def test_detections_without_objects():
    gains, counts = report_errors_of([], [(BOX, CAT, 0.9)])
    assert gains == {}
    assert counts["background"] == 1


@pytest.mark.parametrize(
    ("scores", "outcomes", "objects", "expected"),
    [
        # Precision 1, 1, 2/3, 3/4 at recall 1/4, 1/2, 1/2, 3/4: F1 0.4, 0.667, 0.571, 0.75.
        ([0.9, 0.8, 0.7, 0.6], [1, 1, -1, 1], 4, (0.6, 0.75, 0.75, 0.75)),
        # No threshold lies between equal scores.
        ([0.9, 0.5, 0.5], [1, 1, -1], 2, (0.5, 0.8, 2 / 3, 1.0)),
        ([0.9, 0.5, 0.5], [1, -1, -1], 1, (0.9, 1.0, 1.0, 1.0)),
        ([0.9], [-1], 1, (0.5, None, None, None)),
        ([], [], 3, (0.5, None, None, None)),
        ([0.9], [-1], 0, (0.5, None, None, None)),
    ],
)
def test_operating_point_has_the_best_f1(scores, outcomes, objects, expected):
    point = find_operating_point(trace_curve(np.array(scores), np.array(outcomes, np.int8), objects))
    assert (point.threshold, point.f1, point.precision, point.recall) == pytest.approx(expected)


def test_confusion_by_hand():
    """A dog detected as cat, a cat detected, a cat missed, a false dog; equal classes are paired first."""
    ground_truth = [
        make_ground_truth("a", (BOX, CAT), ((80, 80, 112, 112), DOG)),
        make_ground_truth("b", (BOX, CAT)),
    ]
    detections = [
        # The cat is paired with the detection of its class, although the one of the other class has a higher IoU.
        make_detections("a", (shift_box(8), CAT, 0.9), (BOX, DOG, 0.8), ((80, 80, 112, 112), CAT, 0.9)),
        make_detections("b"),
    ]
    analysis = analyse_detections(ground_truth, detections, CLASSES)
    matrix = analysis.confusion
    # The best F1 of cat is at 0.9; dog has no true positive, so its threshold is 0.5.
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert matrix[:2].sum() == 3, "every object is counted once"


def test_calibration_by_hand():
    """Scores 0.95, 0.95, 0.15: one of the two confident detections is correct, and so is the other one."""
    ground_truth = [make_ground_truth("a", (BOX, CAT), ((80, 80, 112, 112), DOG))]
    detections = [
        make_detections("a", (BOX, CAT, 0.95), ((0, 90, 20, 110), CAT, 0.95), ((80, 80, 112, 112), DOG, 0.15))
    ]
    calibration = measure_calibration(match_detections(ground_truth, detections, CLASSES))
    assert calibration.counts.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert calibration.precisions[[1, 9]].tolist() == [1.0, 0.5]
    assert calibration.error == pytest.approx((2 * 0.45 + 0.85) / 3, abs=1e-6)


def test_images_are_ranked_by_detections_above_the_thresholds():
    ground_truth = [make_ground_truth(name, (BOX, CAT)) for name in "abc"] + [make_ground_truth("d")]
    detections = [
        make_detections("a", (BOX, CAT, 0.9)),
        make_detections("b"),
        make_detections("c", (BOX, CAT, 0.8), ((80, 80, 112, 112), CAT, 0.85)),
        make_detections("d"),
    ]
    ranked = analyse_detections(ground_truth, detections, CLASSES).ranked
    assert ranked.best == [0, 2, 1]
    assert ranked.worst == [1, 2, 0]
    assert ranked.confusing == [2]


@st.composite
def scenes(draw):
    """Draws up to 4 images with boxes on a coarse grid, so that overlaps, ties and duplicates are frequent."""
    box = st.builds(
        lambda y, x, h, w: (y, x, y + h, x + w), *[st.sampled_from([0, 16, 32])] * 2, *[st.sampled_from([24, 32])] * 2
    )
    label, score = st.sampled_from([CAT, DOG]), st.sampled_from([0.2, 0.5, 0.9])
    ground_truth, detections = [], []
    for name in "abcd"[: draw(st.integers(1, 4))]:
        objects = draw(st.lists(st.tuples(box, label), max_size=4))
        difficult = draw(st.sets(st.integers(0, 3), max_size=1))
        ground_truth.append(make_ground_truth(name, *objects, difficult=list(difficult)))
        detections.append(make_detections(name, *draw(st.lists(st.tuples(box, label, score), max_size=6))))
    return ground_truth, detections


@settings(deadline=None)
@given(scenes())
def test_invariants_of_any_scene(scene):
    ground_truth, detections = scene
    analysis = analyse_detections(ground_truth, detections, CLASSES)
    metrics = evaluate_detections(ground_truth, detections, CLASSES)
    aps = [curve.ap for curve in analysis.curves]
    assert aps == [metrics.per_class[name]["voc/AP"] for name in CLASSES], "the curves must be those of the metric"
    shown = analysis.matches.above_thresholds(analysis.thresholds)
    kinds = classify_detections(shown).tolist()
    assert sum(analysis.errors.counts.values()) - analysis.errors.counts["missed"] + kinds.count(
        "true positive"
    ) + kinds.count("ignored") == len(kinds)
    objects = int(analysis.matches.count_objects().sum())
    assert analysis.confusion[:-1].sum() == objects
    assert analysis.confusion[:, :-1].sum() == len(kinds) - kinds.count("ignored")
    mean = metrics.scalars["voc/mAP"] or 0.0
    for kind, gain in analysis.errors.gains.items():
        assert mean + gain <= 1 + 1e-9, kind
    for kind in ("both", "duplicate", "background", "missed"):
        assert analysis.errors.gains[kind] >= -1e-9, kind
    json.dumps(analysis.as_dict(), allow_nan=False)
