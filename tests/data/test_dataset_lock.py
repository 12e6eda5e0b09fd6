"""A dataset that a run reads cannot be prepared again, and one that is being prepared cannot be read."""

import fcntl

import pytest
from support import synthetic

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import LOCK_NAME
from ssd_dist.data.shard_files import hold_dataset
from ssd_dist.training import run as run_module

SMALL = {"model": {"input_size": 64}}


@pytest.fixture
def dataset(tmp_path):
    """A dataset with lock files, as prepare leaves them: its config and manifest."""
    config = Config.model_validate({**SMALL, "data": {"dir": str(tmp_path)}})
    manifest = synthetic.write_dataset(tmp_path, config, {"train": 4, "val": 2})
    for split in ("train", "val"):
        (tmp_path / split / ".parts").mkdir()
        (tmp_path / split / LOCK_NAME).touch()
    return config, manifest, tmp_path


def is_free(path) -> bool:
    """Returns whether prepare could lock the split."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_all_splits_are_held_and_then_released(dataset):
    config, manifest, folder = dataset
    with hold_dataset(config.data, manifest), hold_dataset(config.data, manifest):
        assert not is_free(folder / "train" / LOCK_NAME)
        assert not is_free(folder / "val" / LOCK_NAME)
    assert is_free(folder / "train" / LOCK_NAME)


def test_a_split_that_is_being_prepared_is_not_read(dataset):
    config, manifest, folder = dataset
    with (folder / "val" / LOCK_NAME).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="val: prepare is writing this split"), hold_dataset(config.data, manifest):
            pass


def test_a_dataset_of_an_earlier_version_has_no_locks(dataset):
    config, manifest, folder = dataset
    (folder / "val" / LOCK_NAME).unlink()
    with hold_dataset(config.data, manifest):
        assert not is_free(folder / "train" / LOCK_NAME)


def test_training_holds_the_dataset(dataset, monkeypatch):
    config, _, folder = dataset
    held = []
    monkeypatch.setattr(run_module, "_train", lambda *_: held.append(not is_free(folder / "train" / LOCK_NAME)))
    run_module.run_training(config, str(folder / "run"), stop=None)
    assert held == [True]
