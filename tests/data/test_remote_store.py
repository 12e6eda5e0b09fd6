"""Tests reading from an object store through `data.cache_dir`: equal records, one copy, and error messages."""

from pathlib import Path

import fsspec
import pytest
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest
from ssd_dist.data.corrupt_records import verify_plan
from ssd_dist.data.pipeline import plan_training
from ssd_dist.data.shard_files import load_manifest, locate_shard, read_split

SMALL = {"model": {"input_size": 64}, "train": {"global_batch_size": 4}}
STORE = "memory://bucket/out"


@pytest.fixture
def local(tmp_path) -> tuple[Config, Manifest]:
    """Writes a dataset of two shards to a folder and copies it to the store."""
    config = Config.model_validate(SMALL | {"data": {"dir": str(tmp_path / "out")}})
    manifest = write_dataset(tmp_path / "out", config, {"train": 8}, shards=2)
    store = fsspec.filesystem("memory")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            store.pipe(f"{STORE}/{path.relative_to(tmp_path / 'out')}", path.read_bytes())
    yield config, manifest
    store.rm("/bucket", recursive=True)


@pytest.fixture
def config(local, tmp_path) -> Config:
    """Returns the config that reads from the store."""
    return Config.model_validate(SMALL | {"data": {"dir": STORE, "cache_dir": str(tmp_path / "cache")}})


def test_records_from_a_store_equal_those_from_a_folder(local, config):
    here, manifest = local
    assert load_manifest(config.data) == manifest
    split = manifest.splits["train"]
    expected = [record.to_bytes() for record in read_split(here.data, split)]
    assert [record.to_bytes() for record in read_split(config.data, split)] == expected
    # The shards are copied once; then the store is not needed.
    fsspec.filesystem("memory").rm("/bucket/out/train", recursive=True)
    assert [record.to_bytes() for record in read_split(config.data, split)] == expected
    plan = plan_training(config.data, config.train, split)
    plan, replaced = verify_plan(plan, split, config.model.input_size, config.data)
    assert not replaced
    assert {Path(file).parent for files in plan.files for file in files} == {Path(config.data.cache_dir)}
    assert len(list(Path(config.data.cache_dir).glob("*.tfrecord"))) == 2


def test_a_missing_manifest_is_reported(local, config):
    fsspec.filesystem("memory").rm(f"/bucket/out/{MANIFEST_NAME}")
    with pytest.raises(DataError, match=rf"{STORE}/{MANIFEST_NAME} does not exist: prepare the data first"):
        load_manifest(config.data)


def test_a_missing_shard_is_reported(local, config):
    split = local[1].splits["train"]
    lost = split.views[0].shards[1].file
    fsspec.filesystem("memory").rm(f"/bucket/out/{lost}")
    with pytest.raises(DataError, match=rf"{STORE}/{lost} cannot be copied into data.cache_dir .*FileNotFoundError"):
        list(read_split(config.data, split))


def test_a_shard_with_another_checksum_is_reported_and_not_cached(local, config):
    here, manifest = local
    split = manifest.splits["train"]
    first, other = split.views[0].shards
    content = bytearray(Path(here.data.dir, other.file).read_bytes())
    content[len(content) // 2] ^= 1
    fsspec.filesystem("memory").pipe(f"{STORE}/{other.file}", bytes(content))
    with pytest.raises(DataError, match=rf"{STORE}/{other.file} does not have the manifest's checksum"):
        list(read_split(config.data, split))
    assert [path.stem for path in Path(config.data.cache_dir).iterdir()] == [first.sha256]


def test_a_manifest_that_names_files_outside_its_folder_writes_nothing(local, config, tmp_path):
    _, manifest = local
    shard = manifest.splits["train"].views[0].shards[0]
    before = sorted(tmp_path.rglob("*"))
    for change in ({"sha256": "../../evil"}, {"sha256": f"{tmp_path}/evil"}, {"file": "../../evil.tfrecord"}):
        hostile = manifest.to_json().replace(getattr(shard, *change), *change.values())
        fsspec.filesystem("memory").pipe(f"{STORE}/{MANIFEST_NAME}", hostile.encode())
        with pytest.raises(DataError, match=rf"{STORE}/{MANIFEST_NAME}: splits\.train\.views\.0\.shards\.0\."):
            load_manifest(config.data)
        if "sha256" in change:
            # Not even for a shard that was never checked.
            with pytest.raises(DataError, match=r"the checksum '.*evil' is not a SHA-256"):
                locate_shard(shard.model_copy(update=change), config.data)
    assert sorted(tmp_path.rglob("*")) == before
