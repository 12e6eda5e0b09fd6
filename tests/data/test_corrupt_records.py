"""Tests that damaged shards are reported before step one, or that only their corrupt records are replaced."""

import hashlib
import json
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
from ssd_dist.data.corrupt_records import explain_failure, verify_plan, verify_shards
from ssd_dist.data.order import read_in_order
from ssd_dist.data.pipeline import plan_training
from ssd_dist.data.shard_files import open_shard, read_split

SIZE, SHARDS, RECORDS_PER_SHARD = 64, 2, 6


@pytest.fixture(autouse=True)
def notes_file(tmp_path, monkeypatch):
    """Returns the file that lists the verified shards, in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "ssd_dist" / "sound_shards.json"


@pytest.fixture
def data(tmp_path) -> tuple[Config, Manifest, Path]:
    """Writes a dataset of two shards of six records; returns config, manifest and the path of the second shard."""
    config = Config.model_validate(
        {
            "data": {"dir": str(tmp_path / "out")},
            "model": {"input_size": SIZE},
            "train": {"global_batch_size": 4, "seed": 5},
        }
    )
    manifest = write_dataset(tmp_path / "out", config, {"train": SHARDS * RECORDS_PER_SHARD}, shards=SHARDS)
    return config, manifest, tmp_path / "out" / manifest.splits["train"].views[0].shards[1].file


def verify_split(config: Config, split: Split, **changes):
    """Plans the split and verifies its shards, with changes to the section `data`."""
    data = config.data.model_copy(update=changes)
    return verify_plan(plan_training(data, config.train, split), split, config.model.input_size, data)


def verify(config: Config, manifest: Manifest, **changes):
    return verify_split(config, manifest.splits["train"], **changes)


def offsets_of(path: Path) -> list[tuple[int, int]]:
    """Returns the first byte and the length of the data of each record."""
    content, found, position = path.read_bytes(), [], 0
    while position < len(content):
        length = struct.unpack("<Q", content[position : position + 8])[0]
        found.append((position + 12, length))
        position += 12 + length + 4
    return found


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
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


def truncate(path):
    os.truncate(path, offsets_of(path)[3][0] + 50)


def break_image(path):
    records = records_of(path)
    record = replace(draw_record(1, "broken", Config.model_validate({"model": {"input_size": SIZE}})), encoded=b"none")
    rewrite(path, [*records[:3], record.to_bytes(), *records[4:]])


def break_schema(path):
    records = records_of(path)
    rewrite(path, [*records[:3], b"\x0a\x00", *records[4:]])


# Functions that damage a shard, and the number of records that become corrupt.
DAMAGES = [(flip_data, 1), (break_length, 3), (truncate, 3), (break_image, 1), (break_schema, 1)]


def test_valid_shards_are_read_unchanged_and_noted(data, notes_file):
    config, manifest, path = data
    plan, replaced = verify(config, manifest)
    assert plan == plan_training(config.data, config.train, manifest.splits["train"])
    assert not replaced
    assert str(path) in notes_file.read_text()


@pytest.mark.parametrize("text", ["null", "5", "[1]", '{"a": 1}', "{", ""])
def test_a_damaged_list_of_verified_files_counts_as_empty(data, notes_file, text):
    config, manifest, path = data
    notes_file.parent.mkdir(parents=True)
    notes_file.write_text(text)
    verify(config, manifest)
    assert str(path) in json.loads(notes_file.read_text())


@pytest.mark.parametrize("end", ["damage", "kill"])
def test_shards_verified_before_an_interruption_are_noted(data, notes_file, monkeypatch, end):
    config, manifest, path = data
    first = manifest.splits["train"].views[0].shards[0].file
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    if end == "damage":
        flip_byte(path, offsets_of(path)[3][0] + 20)
        with pytest.raises(DataError):
            verify(config, manifest)
    else:
        monkeypatch.setattr(corrupt_records, "_SAVE_SECONDS", 0.0)
        checksum, notes_exist = corrupt_records.compute_checksum, []

        def record_and_compute(path):
            notes_exist.append(notes_file.exists())
            return checksum(path)

        monkeypatch.setattr(corrupt_records, "compute_checksum", record_and_compute)
        verify(config, manifest)
        assert notes_exist == [False, True]
    assert first in notes_file.read_text()


@pytest.mark.parametrize(("damage", "_corrupt_count"), DAMAGES)
def test_a_damaged_shard_is_reported_with_the_record(data, damage, _corrupt_count):
    config, manifest, path = data
    verify(config, manifest)  # the file was valid when it was first verified, and is damaged now
    damage(path)
    # A wrong size is reported before any record is read.
    words = "bytes, but the manifest states" if damage in (truncate, break_image, break_schema) else "record 3"
    with pytest.raises(DataError, match=words) as error:
        verify(config, manifest)
    assert path.name in str(error.value)


@pytest.mark.parametrize(("damage", "corrupt_count"), DAMAGES)
def test_a_valid_record_replaces_each_corrupt_one_and_the_others_keep_their_positions(data, damage, corrupt_count):
    config, manifest, path = data
    before, _ = verify(config, manifest)
    originals = [record.numpy() for record, _, _ in islice(read_in_order(before), 24)]  # two epochs
    valid = records_of(path)
    damage(path)
    plan, replaced = verify(config, manifest, on_corrupt="skip")
    shard = manifest.splits["train"].views[0].shards[1]
    assert [(one.shard, one.record) for one in replaced] == [(shard.file, 3 + index) for index in range(corrupt_count)]
    assert all(one.reason for one in replaced)
    # The valid record before the first corrupt one replaces all corrupt ones.
    replacements = {valid[3 + index]: valid[2] for index in range(corrupt_count)}
    found = [record.numpy() for record, _, _ in islice(read_in_order(plan), 24)]
    assert found == [replacements.get(record, record) for record in originals]
    # Another worker and the next start get the same result.
    again, replaced_again = verify(config, manifest, on_corrupt="skip")
    assert (again, replaced_again) == (plan, replaced)


def test_corrupt_records_at_the_start_are_replaced_by_the_next_valid_one(data):
    config, manifest, path = data
    valid = records_of(path)
    for index in (0, 1):
        flip_byte(path, offsets_of(path)[index][0] + 20)
    plan, replaced = verify(config, manifest, on_corrupt="skip")
    assert [one.record for one in replaced] == [0, 1]
    assert records_of(Path(plan.files[0][1])) == [valid[2], valid[2], *valid[2:]]


@pytest.mark.parametrize("on_corrupt", ["fail", "skip"])
def test_no_record_of_an_evaluation_shard_is_replaced(data, on_corrupt):
    config, manifest, path = data
    flip_data(path)
    options = config.data.model_copy(update={"on_corrupt": on_corrupt})
    with pytest.raises(DataError, match=r"record \d+: .*; prepare the data again$"):
        verify_shards(manifest.splits["train"].views[0].shards, config.model.input_size, options, evaluates=True)


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
    rewrite(path, records[::-1])  # the size is right and every record is valid
    with pytest.raises(DataError, match="differs from the manifest"):
        verify(config, manifest, on_corrupt=on_corrupt)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        verify(config, manifest, on_corrupt=on_corrupt)


def test_a_record_that_was_corrupt_before_writing_is_found_by_verifying_every_record(data):
    config, manifest, path = data
    break_image(path)
    content = path.read_bytes()
    split = manifest.splits["train"]
    old = split.views[0].shards
    checksum = hashlib.sha256(content).hexdigest()
    new = Shard(file=old[1].file, examples=RECORDS_PER_SHARD, bytes=len(content), sha256=checksum)
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
    assert len(records_of(Path(again.files[0][1]))) == RECORDS_PER_SHARD


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
    (tmp_path / "shard").mkdir()  # a folder cannot be read as a file, not even by root
    with pytest.raises(DataError, match=r"shard .*/shard cannot be read"), open_shard(str(tmp_path / "shard")) as file:
        file.read(1)
