"""Shards that are not what prepare wrote: named before step one, or done without, every other record in its place."""

import hashlib
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from support.synthetic import draw_record, write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import Manifest, Shard, Split
from ssd_dist.core.tfrecord_io import frame_record, read_records
from ssd_dist.data import corrupt_records
from ssd_dist.data.corrupt_records import explain_failure, verify_plan
from ssd_dist.data.order import read_in_order
from ssd_dist.data.pipeline import plan_training
from ssd_dist.data.shard_files import open_shard, read_split

SIZE, SHARDS, IN_A_SHARD = 64, 2, 6


@pytest.fixture(autouse=True)
def notes(tmp_path, monkeypatch):
    """Where the machine keeps its notes: in this test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "ssd_dist" / "sound_shards.json"


@pytest.fixture
def data(tmp_path) -> tuple[Config, Manifest, Path]:
    """A data set of two shards of six records, and the path of the second."""
    config = Config.model_validate(
        {
            "data": {"dir": str(tmp_path / "out")},
            "model": {"input_size": SIZE},
            "train": {"global_batch_size": 4, "seed": 5},
        }
    )
    manifest = write_dataset(tmp_path / "out", config, {"train": SHARDS * IN_A_SHARD}, shards=SHARDS)
    return config, manifest, tmp_path / "out" / manifest.splits["train"].views[0].shards[1].file


def verify_split(config: Config, split: Split, **changes):
    """Plans the split and verifies its shards, with changes to the section `data`."""
    data = config.data.model_copy(update=changes)
    return verify_plan(plan_training(data, config.train, split), split, config.model.input_size, data)


def verify(config: Config, manifest: Manifest, **changes):
    return verify_split(config, manifest.splits["train"], **changes)


def offsets_of(path: Path) -> list[tuple[int, int]]:
    """First byte and length of each record's data."""
    content, found, at = path.read_bytes(), [], 0
    while at < len(content):
        length = struct.unpack("<Q", content[at : at + 8])[0]
        found.append((at + 12, length))
        at += 12 + length + 4
    return found


def flip_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, records: list[bytes]) -> None:
    path.write_bytes(b"".join(frame_record(record) for record in records))


def records_of(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return list(read_records(file, str(path)))


def flip_data(path):
    start, length = offsets_of(path)[3]
    flip_byte(path, start + length // 2)


def break_length(path):
    flip_byte(path, offsets_of(path)[3][0] - 12)


def cut(path):
    os.truncate(path, offsets_of(path)[3][0] + 50)


def break_image(path):
    records = records_of(path)
    record = replace(draw_record(1, "broken", Config.model_validate({"model": {"input_size": SIZE}})), encoded=b"none")
    rewrite(path, [*records[:3], record.to_bytes(), *records[4:]])


def break_schema(path):
    records = records_of(path)
    rewrite(path, [*records[:3], b"\x0a\x00", *records[4:]])


# How a shard is damaged, and how many records that costs.
DAMAGES = [(flip_data, 1), (break_length, 3), (cut, 3), (break_image, 1), (break_schema, 1)]


def test_sound_shards_are_read_as_they_are_and_noted(data, notes):
    config, manifest, path = data
    plan, replaced = verify(config, manifest)
    assert plan == plan_training(config.data, config.train, manifest.splits["train"])
    assert not replaced
    assert str(path) in notes.read_text()


@pytest.mark.parametrize("end", ["damage", "kill"])
def test_what_was_found_sound_before_the_end_is_noted(data, notes, monkeypatch, end):
    config, manifest, path = data
    first = manifest.splits["train"].views[0].shards[0].file
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    if end == "damage":
        flip_byte(path, offsets_of(path)[3][0] + 20)
        with pytest.raises(DataError):
            verify(config, manifest)
    else:
        monkeypatch.setattr(corrupt_records, "_SAVE_SECONDS", 0.0)
        checksum, seen = corrupt_records._checksum, []
        monkeypatch.setattr(corrupt_records, "_checksum", lambda path: seen.append(notes.exists()) or checksum(path))
        verify(config, manifest)
        assert seen == [False, True]
    assert first in notes.read_text()


@pytest.mark.parametrize(("damage", "_lost"), DAMAGES)
def test_a_damaged_shard_is_named_with_its_record(data, damage, _lost):
    config, manifest, path = data
    verify(config, manifest)  # the file was valid when it was first verified, and is damaged now
    damage(path)
    # A size that is wrong is told before any record is looked at.
    words = "bytes, but the manifest states" if damage in (cut, break_image, break_schema) else "record 3"
    with pytest.raises(DataError, match=words) as error:
        verify(config, manifest)
    assert path.name in str(error.value)


@pytest.mark.parametrize(("damage", "lost"), DAMAGES)
def test_a_good_record_stands_in_and_all_others_keep_their_place(data, damage, lost):
    config, manifest, path = data
    before, _ = verify(config, manifest)
    whole = [record.numpy() for record, _, _ in islice(read_in_order(before), 24)]  # two epochs
    good = records_of(path)
    damage(path)
    plan, replaced = verify(config, manifest, on_corrupt="skip")
    shard = manifest.splits["train"].views[0].shards[1]
    assert [(one.shard, one.record) for one in replaced] == [(shard.file, 3 + index) for index in range(lost)]
    assert all(one.reason for one in replaced)
    # The record before the first bad one is the nearest good one for all of them.
    stands_in = {good[3 + index]: good[2] for index in range(lost)}
    found = [record.numpy() for record, _, _ in islice(read_in_order(plan), 24)]
    assert found == [stands_in.get(record, record) for record in whole]
    # Another worker, and the next start, come to the same.
    again, replaced_again = verify(config, manifest, on_corrupt="skip")
    assert (again, replaced_again) == (plan, replaced)


def test_the_first_record_has_the_next_good_one_for_its_stand_in(data):
    config, manifest, path = data
    good = records_of(path)
    for index in (0, 1):
        flip_byte(path, offsets_of(path)[index][0] + 20)
    plan, replaced = verify(config, manifest, on_corrupt="skip")
    assert [one.record for one in replaced] == [0, 1]
    assert records_of(Path(plan.files[0][1])) == [good[2], good[2], *good[2:]]


def test_a_shard_without_a_valid_record_is_rejected(data):
    config, manifest, path = data
    for start, _ in offsets_of(path):
        flip_byte(path, start + 20)
    with pytest.raises(DataError, match="has no valid record"):
        verify(config, manifest, on_corrupt="skip")


@pytest.mark.parametrize("on_corrupt", ["fail", "skip"])
def test_a_shard_of_another_dataset_is_always_rejected(data, on_corrupt):
    config, manifest, path = data
    records = records_of(path)
    rewrite(path, records[::-1])  # of the right size, and every record sound
    with pytest.raises(DataError, match="differs from the manifest"):
        verify(config, manifest, on_corrupt=on_corrupt)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        verify(config, manifest, on_corrupt=on_corrupt)


def test_a_record_that_was_corrupt_before_writing_is_found_when_every_record_is_verified(data):
    config, manifest, path = data
    break_image(path)
    content = path.read_bytes()
    split = manifest.splits["train"]
    old = split.views[0].shards
    new = Shard(file=old[1].file, examples=IN_A_SHARD, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    view = split.views[0].model_copy(update={"shards": (old[0], new)})
    split = split.model_copy(update={"views": (view,)})
    plan, _ = verify_split(config, split)  # the checksum is right
    assert "record 3" in explain_failure(plan, split, config.model.input_size, config.data)
    # After a failed read, the next start verifies every record.
    with pytest.raises(DataError, match="record 3"):
        verify_split(config, split)
    _, replaced = verify_split(config, split, on_corrupt="skip")
    assert [one.record for one in replaced] == [3]


def test_a_damaged_copy_in_the_cache_is_replaced(data, tmp_path):
    config, manifest, _ = data
    plan, _ = verify(config, manifest, cache_dir=str(tmp_path / "cache"))
    flip_data(Path(plan.files[0][1]))
    again, replaced = verify(config, manifest, cache_dir=str(tmp_path / "cache"))
    assert not replaced
    assert len(records_of(Path(again.files[0][1]))) == IN_A_SHARD


def test_workers_that_share_a_cache_repair_shards_concurrently(data, tmp_path):
    config, manifest, path = data
    flip_data(path)
    # A cached file always exists while it is replaced, because another worker may be reading it.
    with ThreadPoolExecutor(4) as pool:
        changes = {"on_corrupt": "skip", "cache_dir": str(tmp_path / "cache")}
        starts = [pool.submit(verify, config, manifest, **changes) for _ in range(12)]
        found = [start.result() for start in starts]
    assert {replaced for _, replaced in found} == {found[0][1]}
    assert len(found[0][1]) == 1
    assert {plan.files for plan, _ in found} == {found[0][0].files}
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


def test_reading_ground_truth_reports_shard_and_record(data):
    config, manifest, path = data
    flip_data(path)
    with pytest.raises(DataError, match=rf"{path.name}: record 3"):
        list(read_split(config.data, manifest.splits["train"]))


def test_an_unreadable_shard_is_reported(tmp_path):
    (tmp_path / "shard").mkdir()  # there, and not to be read, for root as well
    with pytest.raises(DataError, match=r"shard .*/shard cannot be read"), open_shard(str(tmp_path / "shard")) as file:
        file.read(1)
