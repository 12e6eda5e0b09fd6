"""Tests that images get consecutive indices and go to shards round-robin, for any order of the elements."""

import random

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from pipelines.annotations import (
    SUMMARY_KEY,
    Box,
    BoxGroup,
    Category,
    Image,
    Listing,
    Problem,
    SeparateBox,
    image_key,
    make_element,
    make_elements,
    unpack_boxes,
)
from pipelines.classes import ClassRules
from pipelines.runners import make_runner
from pipelines.shard_plan import (
    BUCKET_ROWS,
    GroupIntoShards,
    assemble_group,
    assemble_images,
    choose_shard_count,
    number_images,
)
from pipelines.shards import split_group


def image(image_id, file, row, **rest):
    return Image(str(image_id), file, row, f"list {file}", f"{image_id}.jpg", f"{image_id}.jpg", **rest)


def separate_box(image_id, file, row):
    return SeparateBox(str(image_id), file, row, f"list {file}", Box("cat", (0, 0, 1, 1), f"annotation {row}"))


def box_group(image_id, file, row):
    """Returns a separate box as it is sent between workers when no other box of its image is grouped with it."""
    return next(make_elements([separate_box(image_id, file, row)]))[1]


def group_by_key(pairs):
    groups = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return list(groups.items())


def assign_to_shards(elements, shards=0):
    """Does what GroupIntoShards does, without Beam."""
    buckets = [pair for group in group_by_key(elements) for pair in assemble_group(group, shards, ClassRules())]
    members = [pair for group in group_by_key(buckets) for pair in number_images(group)]
    return {shard: split_group(values) for shard, values in group_by_key(members)}


def make_dataset(sizes, seed=0):
    elements = [make_element(Category("cat", 0, "cat"))]
    for file, size in enumerate(sizes):
        elements += [make_element(image(f"{file}-{row}", file, row)) for row in range(size)]
        elements += [make_element(box_group(f"{file}-{row}", file, row)) for row in range(0, size, 3)]
        elements.append(make_element(Listing(file, size, f"list {file}")))
    random.Random(seed).shuffle(elements)
    return elements


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), requested=st.integers(0, 12), seed=st.integers(0, 9))
def test_images_are_assigned_round_robin_in_listing_order(sizes, requested, seed):
    order = [f"{file}-{row}" for file, size in enumerate(sizes) for row in range(size)]
    shards = assign_to_shards(make_dataset(sizes, seed), requested)
    count = choose_shard_count(len(order), requested)
    assert sorted(shards) == list(range(count))
    for shard, (members, plan) in shards.items():
        assert plan.shards == count
        assert [member.image.image_id for member in members] == order[shard::count]
        assert [member.place for member in members] == list(range(len(order)))[shard::count]
        assert all(len(member.image.boxes) == (member.image.row % 3 == 0) for member in members)


def test_listings_may_have_more_rows_than_a_bucket():
    sizes = [2 * BUCKET_ROWS + 5, 3, BUCKET_ROWS]
    shards = assign_to_shards(make_dataset(sizes), 4)
    indices = sorted(member.place for members, _ in shards.values() for member in members)
    assert indices == list(range(sum(sizes)))


def test_the_beam_transform_gives_the_same_shards():
    elements = make_dataset([7, 30, 1])
    expected = {shard: [m.place for m in members] for shard, (members, _) in assign_to_shards(elements, 3).items()}

    def check(groups):
        found = {shard: split_group(values) for shard, values in groups}
        found = {shard: [m.place for m in members] for shard, (members, plan) in found.items() if plan}
        assert found == expected

    with beam.Pipeline(runner=make_runner(beam.options.pipeline_options.PipelineOptions())) as pipeline:
        assert_that(pipeline | beam.Create(elements) | GroupIntoShards(3, ClassRules()), check)


@pytest.mark.parametrize(
    ("images", "requested", "shards"),
    [(0, 0, 1), (1, 0, 1), (31, 0, 1), (32, 0, 2), (205, 0, 8), (60_000, 0, 8), (10**6, 0, 128), (5, 8, 5), (50, 3, 3)],
)
def test_the_number_of_shards_avoids_empty_shards(images, requested, shards):
    assert choose_shard_count(images, requested) == shards


def test_the_first_image_of_a_duplicate_id_is_kept_and_gets_the_separate_boxes():
    pairs = [
        make_element(image("a", 1, 0)),
        make_element(image("a", 0, 5)),
        make_element(box_group("a", 0, 2)),
        make_element(box_group("a", 0, 1)),
    ]
    listed = [value.image for _, values in group_by_key(pairs) for _, value in assemble_images(values)]
    first, second = listed
    assert (first.file, first.problem) == (0, None)
    assert [box.where for box in first.boxes] == ["annotation 1", "annotation 2"]
    assert (second.file, second.problem.reason, second.boxes) == (1, "duplicate_id", ())


@given(
    images=st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc")), min_size=1, max_size=6),
    boxes=st.lists(st.integers(0, 3), max_size=6),
)
def test_boxes_are_assigned_to_the_image_of_their_file(images, boxes):
    found = [image("x", file, row)._replace(path=path) for row, (file, path) in enumerate(images)]
    groups = [box_group("x", file, 10 + row) for row, file in enumerate(boxes)]
    listed = [value.image for _, value in assemble_images([*found, *groups])]
    assert sum(len(one.boxes) for one in listed) == len(boxes)
    files = {file for file, _ in images}
    first = min(files)
    for one in listed:
        own_rows = {
            row for row, file in enumerate(boxes) if file == one.file or (file not in files and one.file == first)
        }
        assert {int(box.where.split()[1]) - 10 for box in one.boxes} in (own_rows, set())
        if one.problem is None and one.boxes:
            assert len({path for file, path in images if file == one.file}) == 1
    assert sum(one.problem is None for one in listed) <= 1
    assert all(one.problem is None or one.problem.reason == "duplicate_id" for one in listed)


@given(order=st.lists(st.integers(0, 5), max_size=60), limit=st.integers(1, 9))
def test_grouping_keeps_every_box_and_its_order(order, limit):
    values = [separate_box(image_id, 0, row) for row, image_id in enumerate(order)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.annotations.BOX_BUFFER_SIZE", limit)
        groups = [
            value for _, value in make_elements([*values, Listing(0, 6, "list 0")]) if isinstance(value, BoxGroup)
        ]
    assert max((len(unpack_boxes(group.packed)) for group in groups), default=0) <= limit
    random.Random(0).shuffle(groups)
    images = [make_element(image(image_id, 0, image_id)) for image_id in range(6)]
    pairs = [*images, *map(make_element, groups)]
    for _, values in group_by_key(pairs):
        ((_, listed),) = assemble_images(values)
        rows = [row for row, image_id in enumerate(order) if str(image_id) == listed.image.image_id]
        assert [box.where for box in listed.image.boxes] == [f"annotation {row}" for row in rows]


def test_ids_that_share_a_hash_are_kept_apart():
    values = [image("a", 0, 0), image("b", 0, 1), box_group("b", 0, 0)]
    assert [(v.image.image_id, len(v.image.boxes)) for _, v in assemble_images(values)] == [("a", 0), ("b", 1)]


def test_boxes_without_an_image_are_orphans():
    elements = [*make_dataset([3]), make_element(box_group("ghost", 0, 0)), make_element(box_group("ghost", 0, 1))]
    members = [member for members, _ in assign_to_shards(elements).values() for member in members]
    (orphan,) = [member for member in members if member.orphan]
    assert orphan.image.problem.reason == "unknown_image"
    assert len(orphan.image.boxes) == 2
    assert len(members) == 4


def test_a_broken_listing_rejects_only_its_own_images():
    elements = [pair for pair in make_dataset([4, 4]) if not (isinstance(pair[1], Listing) and pair[1].file == 1)]
    elements.append(make_element(Listing(1, 4, "list 1", Problem("broken_annotation", "cut"))))
    members = [member for members, _ in assign_to_shards(elements).values() for member in members]
    assert {m.image.file for m in members if m.image.problem} == {1}
    assert {m.image.file for m in members if not m.image.problem} == {0}


def test_keys_are_stable_and_differ_from_the_summary_key():
    # Grouping must agree between processes, so the key may not depend on Python's hash seed.
    assert image_key("BloodImage_00001") == 884384386756322725
    assert all(0 <= image_key(str(number)) < 2**63 for number in range(1000))
    assert make_element(Category("a", 0, "a"))[0] == SUMMARY_KEY
