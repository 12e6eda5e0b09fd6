"""Tests that a shard that is replaced, cut or extended during training is noticed, and an equal copy is accepted."""

import os
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import tensorflow as tf

from ssd_dist.core.errors import DataError
from ssd_dist.core.tfrecord_io import frame_record
from ssd_dist.data.order import EpochPlan, read_in_order
from ssd_dist.data.shard_guard import ShardFile, ShardGuard, compute_checksum, read_identity

RECORDS = 20


@pytest.fixture(params=[1000, 16], ids=["one block", "two blocks"])
def plan(request, tmp_path, monkeypatch) -> EpochPlan:
    """Returns the plan of two shards, whose records are shuffled in one block or in two."""
    monkeypatch.setattr("ssd_dist.data.order.SHUFFLE_RECORDS", 2 * request.param)
    files = []
    for shard in range(2):
        path = tmp_path / f"{shard}.tfrecord"
        write(path, range(RECORDS))
        files.append(ShardFile(str(path), RECORDS, compute_checksum(str(path)), read_identity(str(path))))
    paths = (tuple(file.path for file in files),)
    return EpochPlan(paths, RECORDS, 4, seed=0, largest_shard=RECORDS, guard=ShardGuard(files))


def write(path: Path, records) -> None:
    path.write_bytes(b"".join(frame_record(f"{record:04}".encode()) for record in records))


def replace_by_others(path: Path) -> None:
    """Replaces the file by one of the same size and with the same number of records."""
    write(path.with_suffix(".new"), range(RECORDS, 2 * RECORDS))
    path.with_suffix(".new").rename(path)


def overwrite(path: Path) -> None:
    """Overwrites the file in place, and sets its time of modification back."""
    before = path.stat()
    write(path, range(RECORDS, 2 * RECORDS))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_records(path: Path) -> None:
    os.truncate(path, 15 * len(frame_record(b"0000")))


def append_record(path: Path) -> None:
    write(path, range(RECORDS + 1))


CHANGES = [replace_by_others, overwrite, cut_records, append_record, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_shard_is_named_at_its_next_opening(plan, change):
    per_epoch = 2 * RECORDS
    records = read_in_order(plan).as_numpy_iterator()
    list(islice(records, per_epoch - 4))
    path = plan.files[0][1]
    change(Path(path))
    # TensorFlow may have opened the shards of the next epoch already, but not those of the second next one.
    with pytest.raises(tf.errors.OpError, match=f"shard {path} (changed|was deleted) during training"):
        list(islice(records, 3 * per_epoch))
    assert path in plan.find_change()


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_shard_is_found_between_two_steps(plan, change):
    assert plan.find_change() is None
    change(Path(plan.files[0][0]))
    problem = plan.find_change()
    assert plan.files[0][0] in problem
    assert "prepare the data again" in problem
    # It stays a change, because records of the changed file may have been read.
    assert plan.find_change() == problem


def test_a_copy_with_equal_bytes_is_accepted(plan, monkeypatch):
    path = Path(plan.files[0][0])
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)
    os.link(path, path.with_suffix(".backup"))
    assert plan.find_change() is None
    # The new identity is remembered, so the checksum is not computed again.
    monkeypatch.setattr("ssd_dist.data.shard_guard.compute_checksum", lambda _: pytest.fail("computed again"))
    plan.guard.check(str(path))


def test_a_storage_that_does_not_answer_is_no_change(plan, monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ssd_dist.data.shard_guard.os.stat", fail)
    assert plan.find_change() is None


@pytest.mark.parametrize(("change", "words"), [(cut_records, "contained only 15"), (append_record, "at least 21")])
def test_the_records_are_counted_where_the_identity_hides_the_change(plan, monkeypatch, change, words):
    # Attributes of files on a network are cached, and may be older than the content.
    monkeypatch.setattr(ShardGuard, "check", lambda *_: None)
    change(Path(plan.files[0][0]))
    with pytest.raises(tf.errors.FailedPreconditionError, match=f"expected to contain 20 elements but {words}|{words}"):
        list(islice(read_in_order(plan), 2 * RECORDS))


def test_a_remote_shard_is_checked_only_when_it_is_opened(monkeypatch):
    guard = ShardGuard([ShardFile("gs://bucket/a", 1, "0" * 64, (10, 1))])
    monkeypatch.setattr("ssd_dist.data.shard_guard.read_identity", lambda _: (11, 1))
    assert guard.find_change() is None
    with pytest.raises(DataError, match="gs://bucket/a changed during training: it has 11 bytes instead of 10"):
        guard.check("gs://bucket/a")
    assert "gs://bucket/a" in guard.find_change()


def test_the_guard_changes_neither_records_nor_order(plan):
    expected = list(islice(read_in_order(replace(plan, guard=None)).as_numpy_iterator(), 5 * RECORDS))
    assert list(islice(read_in_order(plan).as_numpy_iterator(), 5 * RECORDS)) == expected
