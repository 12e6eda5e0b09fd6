"""Bounds of shapes: values that are known from geometry."""

import math

import pytest

from pipelines.readers.shapes import bound_ellipse, bound_points, bound_rotated_box


def test_points_are_bounded():
    assert bound_points([(3, 9), (1, 4), (2, 7)]) == (4, 1, 9, 3)


def test_one_point_is_refused():
    with pytest.raises(ValueError, match="at least two points, got 1"):
        bound_points([(3, 9)])


def test_a_box_is_rotated_clockwise_on_the_screen():
    # A quarter turn around the top left corner (10, 20) moves the top right corner below it and the box to the left.
    assert bound_rotated_box((20, 10, 24, 40), math.pi / 2, (10, 20)) == pytest.approx((20, 6, 50, 10))


def test_a_square_that_is_rotated_by_45_degrees_grows_by_sqrt_2():
    half = 5 * math.sqrt(2)
    rotated = bound_rotated_box((0, 0, 10, 10), math.pi / 4, (5, 5))
    assert rotated == pytest.approx((5 - half, 5 - half, 5 + half, 5 + half))


def test_a_rotated_ellipse_equals_the_bounds_of_its_outline():
    angle, x, y, radius_x, radius_y = 0.7, 30, 40, 20, 5
    outline = []
    for step in range(20_000):
        t = step * math.tau / 20_000
        dx, dy = radius_x * math.cos(t), radius_y * math.sin(t)
        outline.append(
            (x + dx * math.cos(angle) - dy * math.sin(angle), y + dx * math.sin(angle) + dy * math.cos(angle))
        )
    assert bound_ellipse((x, y), radius_x, radius_y, angle) == pytest.approx(bound_points(outline), abs=1e-5)


def test_an_upright_ellipse_has_its_radii_as_half_sides():
    assert bound_ellipse((30, 40), 20, 5) == (35, 10, 45, 50)
