"""Checkpoints: what is on disk is whole or is not used, and the one before it is."""

import json
import os
import threading

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from chaos.world import SmallDisk, can_make_worlds, run_command

from ssd_dist.core.config import CheckpointConfig
from ssd_dist.core.errors import CheckpointError, RestartError
from ssd_dist.runs import checkpoint_writer, checkpoints, gfile_storage
from ssd_dist.runs.checkpoints import BestModel, CheckpointStore, find_damage, latest_checkpoint, read_best

CONFIG = CheckpointConfig(keep=2)


@pytest.fixture
def value():
    return tf.Variable(np.arange(5000, dtype=np.float32))


@pytest.fixture
def store(value, tmp_path):
    return CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path), CONFIG, is_chief=True)


def reopened(tmp_path):
    fresh = tf.Variable(np.zeros(5000, np.float32))
    return fresh, CheckpointStore(tf.train.Checkpoint(value=fresh), str(tmp_path), CONFIG, is_chief=True)


def save_steps(store, value, *steps):
    for step in steps:
        value.assign(tf.fill([5000], float(step)))
        store.save(step)


def test_the_newest_is_restored_and_the_oldest_are_taken_away(store, value, tmp_path):
    save_steps(store, value, 1, 2, 10)
    fresh, again = reopened(tmp_path)
    assert again.restore_latest() == str(tmp_path / "checkpoints" / "ckpt-10")
    assert (fresh.numpy() == 10).all()
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*.seal")) == ["ckpt-10.seal", "ckpt-2.seal"]
    # TensorFlow's own tools find it too.
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")) == str(tmp_path / "checkpoints" / "ckpt-10")


def test_only_the_chief_saves(value, tmp_path):
    other = CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path), CONFIG, is_chief=False)
    save_steps(other, value, 1)
    assert not (tmp_path / "checkpoints").exists()


def test_a_new_run_has_none(tmp_path):
    assert reopened(tmp_path)[1].restore_latest() is None


def damage_by_flip(path):
    data = bytearray(path.with_name("ckpt-2.data-00000-of-00001").read_bytes())
    data[len(data) // 2] ^= 1
    path.with_name("ckpt-2.data-00000-of-00001").write_bytes(data)


def damage_by_cut(path):
    os.truncate(path.with_name("ckpt-2.data-00000-of-00001"), 1000)


def damage_index(path):
    os.truncate(path.with_name("ckpt-2.index"), 10)


def lose_data(path):
    path.with_name("ckpt-2.data-00000-of-00001").unlink()


def lose_seal(path):
    path.with_name("ckpt-2.seal").unlink()


def garble_seal(path):
    path.with_name("ckpt-2.seal").write_text("[1")


DAMAGES = [damage_by_flip, damage_by_cut, damage_index, lose_data, lose_seal, garble_seal]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_it_used(store, value, tmp_path, damage, capfd):
    save_steps(store, value, 1, 2)
    damage(tmp_path / "checkpoints" / "ckpt-2")
    fresh, again = reopened(tmp_path)
    assert again.restore_latest().endswith("ckpt-1")
    assert (fresh.numpy() == 1).all()
    assert "ckpt-2" in capfd.readouterr().err
    # Going on from there, the same step is saved anew and is whole.
    save_steps(again, fresh, 2)
    assert find_damage(str(tmp_path / "checkpoints" / "ckpt-2")) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_sound_is_no_reason_to_start_from_zero(store, value, tmp_path, damage):
    save_steps(store, value, 2)
    damage(tmp_path / "checkpoints" / "ckpt-2")
    with pytest.raises(CheckpointError, match=r"ckpt-2.*take them away"):
        reopened(tmp_path)[1].restore_latest()


def test_a_kill_while_the_first_one_is_written_loses_no_run(store, value, tmp_path, monkeypatch, capfd):
    def end_before_the_seal(*_):
        raise SystemExit(137)

    monkeypatch.setattr(checkpoint_writer, "write_text", end_before_the_seal)
    with pytest.raises(SystemExit):
        save_steps(store, value, 2)
    monkeypatch.undo()
    assert list((tmp_path / "checkpoints").glob("ckpt-2.*"))
    fresh, again = reopened(tmp_path)
    assert again.restore_latest() is None
    assert "ckpt-2" in (said := capfd.readouterr().err)
    assert "a new run" in said
    save_steps(again, fresh, 2)
    assert reopened(tmp_path)[1].restore_latest().endswith("ckpt-2")


def test_a_half_written_one_is_invisible(store, value, tmp_path):
    save_steps(store, value, 1)
    partial = tmp_path / "checkpoints" / "partial"
    partial.mkdir()
    (partial / "ckpt-2.index").write_bytes(b"half")
    fresh, again = reopened(tmp_path)
    assert again.restore_latest().endswith("ckpt-1")
    save_steps(again, fresh, 2)
    assert not partial.exists()


def test_a_failing_disk_is_told_and_the_last_one_kept(store, value, tmp_path, monkeypatch):
    save_steps(store, value, 1)

    def fail(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "write", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_steps(store, value, 2)
    monkeypatch.undo()
    assert latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-1")


def unavailable(times, wrapped):
    """`wrapped`, which says that the storage is away for the first few calls."""
    left = [times]

    def call(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise tf.errors.UnavailableError(None, None, "503: backend error")
        return wrapped(*arguments, **options)

    return call


def test_storage_that_hesitates_is_asked_again(store, value, tmp_path, monkeypatch, capfd):
    pauses = []
    monkeypatch.setattr(gfile_storage.time, "sleep", pauses.append)
    save_steps(store, value, 1)
    monkeypatch.setattr(tf.train.Checkpoint, "write", unavailable(3, tf.train.Checkpoint.write))
    save_steps(store, value, 2)
    assert pauses == sorted(pauses)
    assert len(set(pauses)) == 3
    assert capfd.readouterr().err.count("503: backend error; again in") == 3
    assert latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-2")


def test_storage_that_stays_away_is_told_and_is_no_damage(store, value, tmp_path, monkeypatch):
    monkeypatch.setattr(gfile_storage, "RETRY_PAUSES", (0.0, 0.0))
    save_steps(store, value, 1, 2)
    monkeypatch.setattr(tf.train.Checkpoint, "write", unavailable(99, tf.train.Checkpoint.write))
    with pytest.raises(RestartError, match=r"503.*kept"):
        save_steps(store, value, 3)
    assert latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-2")
    # Where the checkpoints cannot be read for now, the run does not go back to an older one.
    monkeypatch.setattr(tf.io.gfile, "stat", unavailable(99, tf.io.gfile.stat))
    with pytest.raises(RestartError, match="does not answer"):
        latest_checkpoint(str(tmp_path / "checkpoints"))


@pytest.fixture
def disk(tmp_path):
    if not can_make_worlds():
        pytest.skip("only root makes disks")
    with SmallDisk(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_and_a_closed_disk_lose_nothing(value, disk, in_background):
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


def test_the_last_good_one_is_not_given_up_for_one_that_the_disk_did_not_keep(value, tmp_path, monkeypatch):
    config = CheckpointConfig(keep=1)
    store = CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path), config, is_chief=True)
    save_steps(store, value, 1)
    write = checkpoint_writer.write_text

    def write_and_lose(path, text):
        write(path, text)
        if path.endswith("ckpt-2.seal"):
            damage_by_flip(tmp_path / "checkpoints" / "ckpt-2")

    monkeypatch.setattr(checkpoint_writer, "write_text", write_and_lose)
    with pytest.raises(CheckpointError, match=r"ckpt-2.*the disk fails"):
        save_steps(store, value, 2)
    assert latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-1")


def test_a_save_in_the_background_is_of_its_moment_and_the_same_file(store, value, tmp_path, monkeypatch):
    config = CheckpointConfig(keep=2, async_save=True)
    later = CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path / "later"), config, is_chief=True)
    gate = threading.Event()
    copy = tf.io.gfile.copy

    def copy_when_told(*arguments, **options):
        assert gate.wait(30)
        return copy(*arguments, **options)

    monkeypatch.setattr(tf.io.gfile, "copy", copy_when_told)
    save_steps(store, value, 1)
    save_steps(later, value, 1)
    value.assign(tf.zeros([5000]))  # training goes on while the storage has not taken a byte
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


def test_a_save_that_failed_in_the_background_is_told_by_the_next(value, tmp_path, monkeypatch):
    config = CheckpointConfig(async_save=True)
    store = CheckpointStore(tf.train.Checkpoint(value=value), str(tmp_path), config, is_chief=True)

    def fail(*_, **__):
        raise tf.errors.PermissionDeniedError(None, None, "Read-only file system")

    monkeypatch.setattr(tf.io.gfile, "copy", fail)
    save_steps(store, value, 1)
    with pytest.raises(CheckpointError, match=r"ckpt-1.*Read-only"):
        save_steps(store, value, 2)


def test_a_save_that_is_done_is_not_repeated(store, value, tmp_path):
    save_steps(store, value, 3)
    before = (tmp_path / "checkpoints" / "ckpt-3.seal").stat().st_mtime_ns
    store.save(3)
    assert (tmp_path / "checkpoints" / "ckpt-3.seal").stat().st_mtime_ns == before


def test_the_only_one_is_not_written_anew(store, value, tmp_path):
    save_steps(store, value, 3)
    seals = tmp_path / "checkpoints" / "ckpt-3.seal", tmp_path / "checkpoints" / "ckpt-4.seal"
    before = seals[0].stat().st_mtime_ns
    store.outdate(3)
    store.save(3)
    assert seals[0].stat().st_mtime_ns == before, "while it is written anew there would be none"
    save_steps(store, value, 4)
    before = seals[1].stat().st_mtime_ns
    store.outdate(4)
    store.save(4)
    assert seals[1].stat().st_mtime_ns > before


@pytest.fixture
def model():
    return tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=[1])])


def kept(folder):
    return sorted(path.stem for path in (folder / "best").glob("*.seal"))


def test_the_best_is_kept_whatever_comes_later(model, tmp_path):
    best = BestModel(model, str(tmp_path), "coco/AP", keep=1)
    assert [best.offer(step, value) for step, value in [(1, 0.2), (2, 0.5), (3, 0.4), (4, 0.5)]] == [
        True,
        True,
        False,
        False,
    ]
    found = json.loads((tmp_path / "best" / "best.json").read_text())
    assert (found["step"], found["metric"], found["value"]) == (2, "coco/AP", 0.5)
    assert kept(tmp_path) == ["ckpt-2"]
    # A run that goes on does not replace it by a worse one.
    again = BestModel(model, str(tmp_path), "coco/AP", keep=1)
    assert not again.offer(5, 0.49)
    assert again.offer(6, 0.51)
    assert kept(tmp_path) == ["ckpt-6"]


def test_the_best_few_are_kept(model, tmp_path):
    best = BestModel(model, str(tmp_path), "coco/AP", keep=2)
    assert [best.offer(step, value) for step, value in [(1, 0.5), (2, 0.2), (3, 0.4), (4, 0.1)]] == [
        True,
        False,
        False,
        False,
    ]
    assert kept(tmp_path) == ["ckpt-1", "ckpt-3"]
    assert [entry["step"] for entry in best.best["kept"]] == [1, 3]


def test_a_best_json_of_three_keys_says_enough(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text('{"step": 7, "metric": "coco/AP", "value": 0.5}')
    best = read_best(str(tmp_path))
    assert best["checkpoint"] == "ckpt-7"
    assert best["kept"] == [{"step": 7, "value": 0.5, "checkpoint": "ckpt-7"}]


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"step": 7}'])
def test_a_broken_best_json_is_told(model, tmp_path, text):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json"):
        BestModel(model, str(tmp_path), "coco/AP", keep=1)


def test_a_best_model_survives_storage_that_hesitates(tmp_path, monkeypatch):
    monkeypatch.setattr(gfile_storage, "RETRY_PAUSES", (0.0, 0.0))
    model = tf_keras.Sequential([tf_keras.layers.Dense(1)])
    model.build([None, 1])
    best = BestModel(model, str(tmp_path), "coco/AP", keep=1)
    monkeypatch.setattr(checkpoints, "write_text", unavailable(2, checkpoints.write_text))
    assert best.offer(1, 0.5)
    monkeypatch.setattr(checkpoints, "write_text", unavailable(99, checkpoints.write_text))
    with pytest.raises(RestartError, match=r"best\.json .*start again"):
        best.offer(2, 0.6)
