"""Tests that each box becomes an object inside the image or a rejection with the right reason."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.annotations import Box, Category, Image, Problem, pack_boxes
from pipelines.classes import ClassRules, build_class_tables
from pipelines.validate import check_boxes, check_size, reject_image

HEIGHT, WIDTH = 100, 200
TABLE = build_class_tables([Category("cat", 0, "cat"), Category("dog", 0, "dog")], [0], ClassRules(exclude=("dog",)))[0]


def image_of(*boxes, size=None):
    return Image("id", 0, 0, "a.xml", "a.jpg", "a.jpg", size=size, packed=pack_boxes(boxes))


def check(*boxes):
    return check_boxes(image_of(*boxes), HEIGHT, WIDTH, TABLE)


def box(ymin, xmin, ymax, xmax, category="cat", **rest):
    return Box(category, (ymin, xmin, ymax, xmax), "object 0", **rest)


sides = st.floats(-300, 300) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 100.0, 200.0, 1e300, -1e-300])
any_box = st.builds(
    Box,
    category=st.sampled_from(["cat", "dog", "cow"]),
    corners=st.tuples(sides, sides, sides, sides),
    where=st.just("object 0"),
    normalized=st.booleans(),
    area=st.none() | st.floats(),
    problem=st.none() | st.just(Problem("broken_box", "cannot be parsed")),
)


@settings(deadline=None, max_examples=300)
@given(boxes=st.lists(any_box, max_size=6))
def test_every_box_is_an_object_or_a_rejection(boxes):
    checked = check(*boxes)
    objects = checked.objects
    assert len(objects.labels) + len(checked.rejected) == len(boxes)
    assert objects.boxes.dtype == np.float32
    assert (objects.boxes >= 0).all()
    assert (objects.boxes <= 1).all()
    assert (objects.boxes[:, 2:] > objects.boxes[:, :2]).all()
    assert np.isfinite(objects.area).all()
    assert (objects.area >= 0).all()
    assert set(objects.names) <= {"cat"}
    assert all(line.reason and line.detail for line in checked.rejected)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (box(10, 10, 10, 50), "zero_area"),
        (box(10, 10, 50, 10), "zero_area"),
        (box(50, 10, 10, 50), "reversed"),
        (box(10, 50, 50, 10), "reversed"),
        (box(math.nan, 0, 10, 10), "not_finite"),
        (box(0, 0, math.inf, 10), "not_finite"),
        (box(100, 0, 110, 10), "outside"),  # touches the border from outside
        (box(-20, 0, 0, 10), "outside"),
        (box(0, 200, 10, 210), "outside"),
        (box(0.1, -0.5, 0.2, 0, normalized=True), "outside"),
        # Pixels: x, y, width and height of 10, 12, 40 and 48, and a box whose center is the upper left pixel.
        (box(-12, -10, 36, 30, normalized=True), "outside"),
        (box(-1.5, -1.5, 1.5, 1.5, normalized=True), "outside"),
        (box(0, 0, 10, 10, "cow"), "unknown_class"),
        (box(0, 0, 10, 10, "dog"), "excluded_class"),
        (box(50, 50, 50 + 1e-7, 60), "zero_area"),  # vanishes in float32
        (box(0, 0, 10, 10, problem=Problem("broken_box", "x")), "broken_box"),
    ],
)
def test_invalid_boxes_are_rejected_with_their_reason(bad, reason):
    good = box(0, 0, 10, 10)
    checked = check(good, bad)
    assert [line.reason for line in checked.rejected] == [reason]
    assert len(checked.objects.labels) == 1
    assert (checked.rejected[0].source, checked.rejected[0].image) == ("a.xml", "a.jpg")


def test_boxes_partly_outside_are_clipped_and_counted():
    checked = check(box(-50, -100, 50, 100), box(0, 0, 100, 200), box(-1e-4, 0, 50, 200.0001))
    assert checked.clipped == 1  # the third overshoots by rounding only
    np.testing.assert_allclose(checked.objects.boxes[0], [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(checked.objects.area, [50 * 100, 100 * 200, 50 * 200])


def test_units_and_flags_are_kept():
    checked = check(
        box(25, 50, 75, 100, difficult=True, area=7.0), box(0.25, 0.25, 0.75, 0.5, normalized=True, is_crowd=True)
    )
    np.testing.assert_array_equal(checked.objects.boxes[0], checked.objects.boxes[1])
    assert checked.objects.difficult.tolist() == [True, False]
    assert checked.objects.is_crowd.tolist() == [False, True]
    np.testing.assert_allclose(checked.objects.area, [7, 50 * 50])


def test_no_boxes_give_empty_arrays_of_the_right_shape():
    objects = check().objects
    assert objects.boxes.shape == (0, 4)
    assert objects.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("claimed", "fits"), [(None, True), ((100, 200), True), ((200, 100), False), ((99, 200), False)]
)
def test_the_size_in_the_annotation_must_match_the_image(claimed, fits):
    problem = check_size(image_of(size=claimed), 100, 200)
    assert (problem is None) == fits
    assert problem is None or problem.reason == "size_mismatch"


def test_rejecting_an_image_rejects_its_boxes():
    lines = reject_image(image_of(box(0, 0, 1, 1), box(0, 0, 2, 2)), Problem("truncated", "cut"))
    assert [(line.reason, line.where) for line in lines] == [
        ("truncated", ""), ("image_rejected", "object 0"), ("image_rejected", "object 0"),
    ]  # fmt: skip
