"""Checkpoints: an incomplete or damaged checkpoint is not used; the run resumes from the one before it."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from chaos.disk_and_network import SmallDisk, can_create, run_command

from ssd_dist.core import storage
from ssd_dist.core.config import CheckpointConfig
from ssd_dist.core.errors import CheckpointError, RestartError
from ssd_dist.runs import checkpoint_writer, checkpoints
from ssd_dist.runs.checkpoints import (
    BestModel,
    CheckpointStore,
    complete_checkpoints,
    find_damage,
    latest_checkpoint,
    read_best,
)

CONFIG = CheckpointConfig(keep=2)


@pytest.fixture
def value():
    return tf.Variable(np.arange(5000, dtype=np.float32))


@pytest.fixture
def store(value, tmp_path):
    return CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path), CONFIG, is_chief=True)


def reopen(tmp_path):
    """Returns a new variable and a new store of the same run folder."""
    fresh = tf.Variable(np.zeros(5000, np.float32))
    return fresh, CheckpointStore(tf.train.Checkpoint(value=fresh), str(tmp_path), CONFIG, is_chief=True)


def save_steps(store, value, *steps):
    for step in steps:
        value.assign(tf.fill([5000], float(step)))
        store.save(step)


def test_the_newest_checkpoint_is_restored_and_the_oldest_are_removed(store, value, tmp_path):
    save_steps(store, value, 1, 2, 10)
    fresh, again = reopen(tmp_path)
    assert again.restore_latest() == str(tmp_path / "checkpoints" / "ckpt-10")
    assert (fresh.numpy() == 10).all()
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*.seal")) == ["ckpt-10.seal", "ckpt-2.seal"]
    # TensorFlow's own function finds it as well.
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")) == str(tmp_path / "checkpoints" / "ckpt-10")


def test_only_the_chief_saves(value, tmp_path):
    other = CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path), CONFIG, is_chief=False)
    save_steps(other, value, 1)
    assert not (tmp_path / "checkpoints").exists()


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert reopen(tmp_path)[1].restore_latest() is None


def flip_bit(path):
    data = bytearray(path.with_name("ckpt-2.data-00000-of-00001").read_bytes())
    data[len(data) // 2] ^= 1
    path.with_name("ckpt-2.data-00000-of-00001").write_bytes(data)


def truncate_data(path):
    os.truncate(path.with_name("ckpt-2.data-00000-of-00001"), 1000)


def truncate_index(path):
    os.truncate(path.with_name("ckpt-2.index"), 10)


def remove_data(path):
    path.with_name("ckpt-2.data-00000-of-00001").unlink()


def remove_checksums(path):
    path.with_name("ckpt-2.seal").unlink()


def corrupt_checksums(path):
    path.with_name("ckpt-2.seal").write_text("[1")


DAMAGES = [flip_bit, truncate_data, truncate_index, remove_data, remove_checksums, corrupt_checksums]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(store, value, tmp_path, damage, capfd):
    save_steps(store, value, 1, 2)
    damage(tmp_path / "checkpoints" / "ckpt-2")
    fresh, again = reopen(tmp_path)
    assert again.restore_latest().endswith("ckpt-1")
    assert (fresh.numpy() == 1).all()
    assert "ckpt-2" in capfd.readouterr().err
    # The resumed run saves the same step again; the new checkpoint is intact.
    save_steps(again, fresh, 2)
    assert find_damage(str(tmp_path / "checkpoints" / "ckpt-2")) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_with_only_damaged_checkpoints_does_not_start_from_zero(store, value, tmp_path, damage):
    save_steps(store, value, 2)
    damage(tmp_path / "checkpoints" / "ckpt-2")
    with pytest.raises(CheckpointError, match=r"ckpt-2.*delete them"):
        reopen(tmp_path)[1].restore_latest()


def test_a_run_killed_while_it_writes_its_first_checkpoint_starts_again(store, value, tmp_path, monkeypatch, capfd):
    def exit_before_the_checksums(*_):
        raise SystemExit(137)

    monkeypatch.setattr(checkpoint_writer, "write_text", exit_before_the_checksums)
    with pytest.raises(SystemExit):
        save_steps(store, value, 2)
    monkeypatch.undo()
    assert list((tmp_path / "checkpoints").glob("ckpt-2.*"))
    fresh, again = reopen(tmp_path)
    assert again.restore_latest() is None
    assert "ckpt-2" in (warning := capfd.readouterr().err)
    assert "a new run" in warning
    save_steps(again, fresh, 2)
    assert reopen(tmp_path)[1].restore_latest().endswith("ckpt-2")


def test_copies_of_a_checkpoint_under_other_names_are_ignored(store, value, tmp_path):
    save_steps(store, value, 1)
    for name in ("ckpt-1-copy", "ckpt-1 (copy)", "ckpt-x"):
        for file in (tmp_path / "checkpoints").glob("ckpt-1.*"):
            shutil.copy(file, file.with_name(f"{name}{file.suffix}"))
    _, again = reopen(tmp_path)
    assert again.restore_latest().endswith("/ckpt-1")
    assert len(complete_checkpoints(str(tmp_path / "checkpoints"))) == 1


def test_a_partly_written_checkpoint_is_ignored(store, value, tmp_path):
    save_steps(store, value, 1)
    partial = tmp_path / "checkpoints" / "partial"
    partial.mkdir()
    (partial / "ckpt-2.index").write_bytes(b"half")
    fresh, again = reopen(tmp_path)
    assert again.restore_latest().endswith("ckpt-1")
    save_steps(again, fresh, 2)
    assert not partial.exists()


def test_a_full_disk_is_reported_and_the_last_checkpoint_is_kept(store, value, tmp_path, monkeypatch):
    save_steps(store, value, 1)

    def fail(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "write", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_steps(store, value, 2)
    monkeypatch.undo()
    assert latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-1")


def unavailable(times, wrapped):
    """Returns `wrapped` with the first few calls raising an error of unavailable storage."""
    left = [times]

    def call(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise tf.errors.UnavailableError(None, None, "503: backend error")
        return wrapped(*arguments, **options)

    return call


def test_transient_storage_errors_are_retried(store, value, tmp_path, monkeypatch, capfd):
    pauses = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    save_steps(store, value, 1)
    monkeypatch.setattr(tf.train.Checkpoint, "write", unavailable(3, tf.train.Checkpoint.write))
    save_steps(store, value, 2)
    assert pauses == sorted(pauses)
    assert len(set(pauses)) == 3
    assert capfd.readouterr().err.count("503: backend error; retrying in") == 3
    assert latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-2")


def test_unavailable_storage_is_reported_and_is_not_taken_for_damage(store, value, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_PAUSES", (0.0, 0.0))
    save_steps(store, value, 1, 2)
    monkeypatch.setattr(tf.train.Checkpoint, "write", unavailable(99, tf.train.Checkpoint.write))
    with pytest.raises(RestartError, match=r"503.*kept"):
        save_steps(store, value, 3)
    assert latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-2")
    # If the checkpoints cannot be read at the moment, the run does not fall back to an older one.
    monkeypatch.setattr(tf.io.gfile, "stat", unavailable(99, tf.io.gfile.stat))
    with pytest.raises(RestartError, match="does not answer"):
        latest_checkpoint(str(tmp_path / "checkpoints"))


@pytest.fixture
def disk(tmp_path):
    if not can_create():
        pytest.skip("needs root, to mount a disk")
    with SmallDisk(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.parametrize("in_background", [False, True])
def test_checkpoints_survive_a_full_and_a_read_only_disk(value, disk, in_background):
    config = CheckpointConfig(keep=2, async_save=in_background)
    store = CheckpointStore(tf.train.Checkpoint(value=value), str(disk.folder), config, is_chief=True)

    def save(step):
        save_steps(store, value, step)
        store.wait()

    save(1)
    disk.fill()
    with pytest.raises(CheckpointError, match=r"No space left.*free space"):
        save(2)
    disk.free()
    run_command("mount", "-o", "remount,ro", str(disk.folder))
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(3)
    assert latest_checkpoint(str(disk.folder / "checkpoints")).endswith("ckpt-1")
    run_command("mount", "-o", "remount,rw", str(disk.folder))
    save(4)
    assert latest_checkpoint(str(disk.folder / "checkpoints")).endswith("ckpt-4")
    assert not (disk.folder / "checkpoints" / "partial").exists()


def test_the_last_intact_checkpoint_is_kept_if_the_disk_corrupts_the_newest(value, tmp_path, monkeypatch):
    config = CheckpointConfig(keep=1)
    store = CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path), config, is_chief=True)
    save_steps(store, value, 1)
    write = checkpoint_writer.write_text

    def write_and_corrupt(path, text):
        write(path, text)
        if path.endswith("ckpt-2.seal"):
            flip_bit(tmp_path / "checkpoints" / "ckpt-2")

    monkeypatch.setattr(checkpoint_writer, "write_text", write_and_corrupt)
    with pytest.raises(CheckpointError, match=r"ckpt-2.*check the disk"):
        save_steps(store, value, 2)
    assert latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-1")


def test_a_background_save_writes_the_same_files_as_a_synchronous_one(store, value, tmp_path, monkeypatch):
    config = CheckpointConfig(keep=2, async_save=True)
    later = CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path / "later"), config, is_chief=True)
    gate = threading.Event()
    copy = tf.io.gfile.copy

    def copy_after_the_gate_opens(*arguments, **options):
        assert gate.wait(30)
        return copy(*arguments, **options)

    monkeypatch.setattr(tf.io.gfile, "copy", copy_after_the_gate_opens)
    save_steps(store, value, 1)
    save_steps(later, value, 1)
    value.assign(tf.zeros([5000]))  # training continues while nothing is written yet
    assert latest_checkpoint(str(tmp_path / "later" / "checkpoints")) is None
    gate.set()
    save_steps(later, value, 2, 3)  # each waits for the one before
    later.wait()
    save_steps(store, value, 2, 3)
    for name in ("ckpt-2", "ckpt-3"):
        for suffix in (".index", ".data-00000-of-00001", ".seal"):
            files = [folder / "checkpoints" / (name + suffix) for folder in (tmp_path, tmp_path / "later")]
            assert files[0].read_bytes() == files[1].read_bytes(), name + suffix
    assert not (tmp_path / "later" / "checkpoints" / "ckpt-1.seal").exists()
    assert not tf.io.gfile.glob("ram://checkpoints/*/*")


def test_a_failed_background_save_is_reported_by_the_next_save(value, tmp_path, monkeypatch):
    config = CheckpointConfig(async_save=True)
    store = CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path), config, is_chief=True)

    def fail(*_, **__):
        raise tf.errors.PermissionDeniedError(None, None, "Read-only file system")

    monkeypatch.setattr(tf.io.gfile, "copy", fail)
    save_steps(store, value, 1)
    with pytest.raises(CheckpointError, match=r"ckpt-1.*Read-only"):
        save_steps(store, value, 2)


def test_a_saved_step_is_not_saved_again(store, value, tmp_path):
    save_steps(store, value, 3)
    before = (tmp_path / "checkpoints" / "ckpt-3.seal").stat().st_mtime_ns
    store.save(3)
    assert (tmp_path / "checkpoints" / "ckpt-3.seal").stat().st_mtime_ns == before


def test_an_outdated_checkpoint_is_written_again_unless_it_is_the_only_one(store, value, tmp_path):
    save_steps(store, value, 3)
    files = tmp_path / "checkpoints" / "ckpt-3.seal", tmp_path / "checkpoints" / "ckpt-4.seal"
    before = files[0].stat().st_mtime_ns
    store.mark_outdated(3)
    store.save(3)
    assert files[0].stat().st_mtime_ns == before, "while it is replaced, the run would have no checkpoint"
    save_steps(store, value, 4)
    before = files[1].stat().st_mtime_ns
    store.mark_outdated(4)
    store.save(4)
    assert files[1].stat().st_mtime_ns > before


@pytest.fixture
def model():
    return tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=[1])])


def list_kept_models(folder):
    return sorted(path.stem for path in (folder / "best").glob("*.seal"))


def test_the_best_model_is_kept_until_a_better_one(model, tmp_path):
    best = BestModel(model, str(tmp_path), "coco/AP", keep=1)
    assert [best.save_if_best(step, value) for step, value in [(1, 0.2), (2, 0.5), (3, 0.4), (4, 0.5)]] == [
        True,
        True,
        False,
        False,
    ]
    found = json.loads((tmp_path / "best" / "best.json").read_text())
    assert (found["step"], found["metric"], found["value"]) == (2, "coco/AP", 0.5)
    assert list_kept_models(tmp_path) == ["ckpt-2"]
    # A resumed run does not replace it by a worse model.
    again = BestModel(model, str(tmp_path), "coco/AP", keep=1)
    assert not again.save_if_best(5, 0.49)
    assert again.save_if_best(6, 0.51)
    assert list_kept_models(tmp_path) == ["ckpt-6"]


def test_the_two_best_models_are_kept(model, tmp_path):
    best = BestModel(model, str(tmp_path), "coco/AP", keep=2)
    assert [best.save_if_best(step, value) for step, value in [(1, 0.5), (2, 0.2), (3, 0.4), (4, 0.1)]] == [
        True,
        False,
        False,
        False,
    ]
    assert list_kept_models(tmp_path) == ["ckpt-1", "ckpt-3"]
    assert [entry["step"] for entry in best.best["kept"]] == [1, 3]


def test_three_keys_of_best_json_are_enough(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text('{"step": 7, "metric": "coco/AP", "value": 0.5}')
    best = read_best(str(tmp_path))
    assert best["checkpoint"] == "ckpt-7"
    assert best["kept"] == [{"step": 7, "value": 0.5, "checkpoint": "ckpt-7"}]


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"step": 7}'])
def test_an_invalid_best_json_is_reported(model, tmp_path, text):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json"):
        BestModel(model, str(tmp_path), "coco/AP", keep=1)


def test_transient_errors_while_writing_the_best_model_are_retried(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_PAUSES", (0.0, 0.0))
    model = tf_keras.Sequential([tf_keras.layers.Dense(1)])
    model.build([None, 1])
    best = BestModel(model, str(tmp_path), "coco/AP", keep=1)
    monkeypatch.setattr(checkpoints, "write_text", unavailable(2, checkpoints.write_text))
    assert best.save_if_best(1, 0.5)
    monkeypatch.setattr(checkpoints, "write_text", unavailable(99, checkpoints.write_text))
    with pytest.raises(RestartError, match=r"best\.json .*start again"):
        best.save_if_best(2, 0.6)
