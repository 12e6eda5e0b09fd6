"""The records that travel between workers."""

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


@given(some=st.lists(boxes, max_size=5))
def test_packed_boxes_come_back_as_they_were(some):
    found = unpack_boxes(pack_boxes(some))
    assert found == tuple(some)
    assert all(isinstance(box, Box) and isinstance(box.problem, Problem | None) for box in found)


@given(some=st.lists(boxes, max_size=5))
def test_equal_boxes_are_equal_bytes_wherever_their_strings_came_from(some):
    """A later run tells by them whether a finished shard is still the same."""
    copies = unpack_boxes(pack_boxes(some))
    assert pack_boxes(copies) == pack_boxes(some)
    assert pack_boxes([box._replace(where=str.__add__(box.where, "")) for box in some]) == pack_boxes(some)


def test_what_is_not_finite_is_kept_for_the_one_who_rejects_it():
    ((category, corners, *_),) = unpack_boxes(pack_boxes([Box("cat", (math.nan, -math.inf, math.inf, -0.0), "here")]))
    assert category == "cat"
    assert math.isnan(corners[0])
    assert corners[1:3] == (-math.inf, math.inf)
    assert math.copysign(1, corners[3]) == -1
