"""Tests how boxes are packed for the exchange between workers."""

import math

from hypothesis import given
from hypothesis import strategies as st

from pipelines.annotations import Box, Problem, pack_boxes, unpack_boxes

numbers = st.floats(allow_nan=False)
boxes = st.builds(
    Box,
    category=st.text(),
    corners=st.tuples(numbers, numbers, numbers, numbers),
    where=st.text(),
    normalized=st.booleans(),
    difficult=st.booleans(),
    is_crowd=st.booleans(),
    area=st.none() | numbers,
    problem=st.none() | st.builds(Problem, st.text(), st.text()),
)


@given(originals=st.lists(boxes, max_size=5))
def test_unpacking_returns_the_packed_boxes(originals):
    found = unpack_boxes(pack_boxes(originals))
    assert found == tuple(originals)
    assert all(isinstance(box, Box) and isinstance(box.problem, Problem | None) for box in found)


@given(originals=st.lists(boxes, max_size=5))
def test_equal_boxes_are_packed_to_equal_bytes(originals):
    """Resume decides by these bytes whether a finished shard is up to date."""
    copies = unpack_boxes(pack_boxes(originals))
    assert pack_boxes(copies) == pack_boxes(originals)
    assert pack_boxes([box._replace(where=str.__add__(box.where, "")) for box in originals]) == pack_boxes(originals)


def test_non_finite_corners_are_kept_for_validation():
    ((category, corners, *_),) = unpack_boxes(pack_boxes([Box("cat", (math.nan, -math.inf, math.inf, -0.0), "here")]))
    assert category == "cat"
    assert math.isnan(corners[0])
    assert corners[1:3] == (-math.inf, math.inf)
    assert math.copysign(1, corners[3]) == -1
