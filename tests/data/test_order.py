"""Tests that a step reads the same records for any number of workers and from any start."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.tfrecord_io import frame_record
from ssd_dist.data.order import EpochPlan, read_in_order

SIZES = (7, 6, 8, 6)
BATCH = 8
# floor(6 x 4 / 8) steps of 8 records.
STEPS = 3


def write_shards(folder: Path, sizes=SIZES, views: int = 1) -> tuple[tuple[str, ...], ...]:
    """Writes shards whose records contain `copy-shard-index`."""
    files = []
    for view in range(views):
        files.append([])
        for shard, size in enumerate(sizes):
            file = folder / f"view{view}-{shard}.tfrecord"
            file.write_bytes(b"".join(frame_record(f"{view}-{shard}-{i}".encode()) for i in range(size)))
            files[-1].append(str(file))
    return tuple(map(tuple, files))


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> EpochPlan:
    files = write_shards(tmp_path_factory.mktemp("shards"))
    return EpochPlan(files, min(SIZES), BATCH, seed=3)


def read_epochs(plan: EpochPlan, epochs: int) -> list[list[str]]:
    """Returns the records of each epoch."""
    names = [name for name, _, _ in read(plan, epochs * plan.steps_per_epoch)]
    return [names[start : start + STEPS * BATCH] for start in range(0, len(names), STEPS * BATCH)]


def read(plan: EpochPlan, steps: int, start_step: int = 0) -> list[tuple[str, int, int]]:
    """Returns (record, epoch, position) of the records that this worker reads in that many steps."""
    dataset = read_in_order(plan, start_step)
    records = islice(dataset.as_numpy_iterator(), steps * plan.global_batch_size // plan.workers)
    return [(record.decode(), int(epoch), int(position)) for record, epoch, position in records]


def test_an_epoch_has_as_many_steps_as_the_smallest_shards_have_full_batches(plan):
    assert plan.steps_per_epoch == STEPS
    epochs = [epoch for _, epoch, _ in read(plan, 3 * STEPS)]
    assert epochs == [0] * STEPS * BATCH + [1] * STEPS * BATCH + [2] * STEPS * BATCH


def test_no_record_is_repeated_within_an_epoch(plan):
    for names in read_epochs(plan, 4):
        assert len(set(names)) == STEPS * BATCH


def test_record_p_comes_from_shard_p_mod_s_of_the_epochs_permutation(plan):
    orders = set()
    for names in read_epochs(plan, 6):
        shards = [int(name.split("-")[1]) for name in names]
        assert sorted(shards[:4]) == [0, 1, 2, 3]
        assert shards == shards[:4] * (STEPS * BATCH // 4)
        orders.add(tuple(shards[:4]))
    assert len(orders) > 1


def test_records_are_shuffled_inside_each_shard_differently_in_each_epoch(plan):
    seen = {tuple(name for name in names if name.startswith("0-2-")) for names in read_epochs(plan, 4)}
    assert len(seen) == 4
    assert tuple(f"0-2-{i}" for i in range(6)) not in seen


def test_shards_of_equal_size_are_shuffled_differently(plan):
    orders = [[[n[4:] for n in names if n.startswith(f"0-{s}-")] for s in (1, 3)] for names in read_epochs(plan, 3)]
    assert any(first != second for first, second in orders)


def test_the_omitted_records_differ_between_epochs(plan):
    all_records = {f"0-{shard}-{i}" for shard, size in enumerate(SIZES) for i in range(size)}
    omitted = [all_records - set(names) for names in read_epochs(plan, 8)]
    assert {len(rest) for rest in omitted} == {sum(SIZES) - STEPS * BATCH}
    assert not set.intersection(*omitted)


def test_positions_count_through_the_global_batch(plan):
    assert [position for _, _, position in read(plan, 2)] == [*range(BATCH), *range(BATCH)]


@pytest.mark.parametrize("workers", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_workers(plan, workers):
    alone = read(plan, 2 * STEPS)
    own = BATCH // workers
    parts = [read(replace(plan, worker=w, workers=workers), 2 * STEPS) for w in range(workers)]
    for step in range(2 * STEPS):
        expected = sorted(alone[step * BATCH : (step + 1) * BATCH], key=lambda item: item[2])
        together = [item for part in parts for item in part[step * own : (step + 1) * own]]
        assert sorted(together, key=lambda item: item[2]) == expected
    for worker, part in enumerate(parts):
        assert {position % workers for _, _, position in part} == {worker}
        # Files are divided among the workers: no file is read by two of them.
        first_epoch = {name.split("-")[1] for name, epoch, _ in part if epoch == 0}
        assert len(first_epoch) == len(SIZES) // workers


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("start", [1, STEPS - 1, STEPS, 2 * STEPS + 1])
def test_resuming_at_a_step_equals_skipping_to_it(plan, workers, start):
    for worker in range(workers):
        mine = replace(plan, worker=worker, workers=workers)
        whole = read(mine, start + STEPS + 1)
        assert read(mine, STEPS + 1, start) == whole[start * BATCH // workers :]


def test_the_order_depends_only_on_the_seed(plan):
    tf.random.set_seed(1)
    first = read(plan, STEPS)
    tf.random.set_seed(2)
    assert read(plan, STEPS) == first
    assert read(replace(plan, seed=4), STEPS) != first


def test_epoch_e_reads_augmented_copy_e_mod_v(tmp_path):
    plan = EpochPlan(write_shards(tmp_path, (4, 4), views=3), 4, 4, seed=0)
    views = [int(name.split("-")[0]) for name, _, _ in read(plan, 5 * plan.steps_per_epoch)]
    assert views == list(np.repeat([0, 1, 2, 0, 1], 8))


def test_shards_larger_than_the_shuffle_memory_are_read_completely(tmp_path, monkeypatch):
    # Blocks have 16 records, so a shard of 50 is shuffled in four blocks.
    monkeypatch.setattr("ssd_dist.data.order.SHUFFLE_RECORDS", 1)
    plan = EpochPlan(write_shards(tmp_path, (50, 50)), 50, 10, seed=0)
    names = [name for name, _, _ in read(plan, 10)]
    assert set(names) == {f"0-{shard}-{i}" for shard in range(2) for i in range(50)}
    assert len(names) == 100


def test_the_omitted_records_of_large_shards_differ_between_epochs(tmp_path, monkeypatch):
    # Blocks have 16 records, so the last block of a shard of 33 has one. Some batches of 64 must contain it.
    monkeypatch.setattr("ssd_dist.data.order.SHUFFLE_RECORDS", 1)
    plan = EpochPlan(write_shards(tmp_path, (33, 33)), 33, 64, seed=0)
    names = [name for name, _, _ in read(plan, 12)]
    all_records = {f"0-{shard}-{i}" for shard in range(2) for i in range(33)}
    omitted = [all_records - set(names[epoch * 64 : (epoch + 1) * 64]) for epoch in range(12)]
    assert {len(rest) for rest in omitted} == {2}
    assert not set.intersection(*omitted)
    # Large shards start at random blocks, so a sorted dataset is not read in its order.
    firsts = {int(name.rsplit("-", 1)[1]) // 16 for epoch in range(12) for name in names[epoch * 64 : epoch * 64 + 2]}
    assert firsts >= {0, 1}


def test_a_large_shard_next_to_a_small_one_is_read_completely(tmp_path, monkeypatch):
    # The smallest shard fits into a block of 16 records, the largest does not.
    monkeypatch.setattr("ssd_dist.data.order.SHUFFLE_RECORDS", 1)
    for largest in (18, 50):
        plan = EpochPlan(write_shards(tmp_path, (10, largest)), 10, 20, seed=0, largest_shard=largest)
        assert {name for name, _, _ in read(plan, 60)} >= {f"0-1-{i}" for i in range(largest)}


def test_one_shard_with_one_record_per_step_is_read_completely(tmp_path):
    plan = EpochPlan(write_shards(tmp_path, (3,)), 3, 1, seed=0)
    assert sorted(name for name, _, _ in read(plan, 3)) == ["0-0-0", "0-0-1", "0-0-2"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"global_batch_size": 25}, DataError, ["24 records", "4 shards", "train.global_batch_size (25)"]),
        ({"shard_records": 0}, DataError, ["0 records"]),
        ({"workers": 3, "global_batch_size": 9}, UsageError, ["4 (shards)", "3 workers"]),
        ({"workers": 4, "global_batch_size": 6}, UsageError, ["6 (train.global_batch_size)", "4 workers"]),
    ],
)
def test_uneven_shards_or_batches_are_rejected(plan, changes, error, words):
    # The error is raised before step one.
    with pytest.raises(error) as caught:
        replace(plan, **changes)
    assert all(word in str(caught.value) for word in words)
