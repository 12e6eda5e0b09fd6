"""Checkpoints: what is on disk is whole or is not used, and the one before it is."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import CheckpointConfig
from ssd_dist.core.errors import CheckpointError
from ssd_dist.training.checkpoints import BestModel, CheckpointStore, find_damage, latest_checkpoint

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


def test_a_save_that_is_done_is_not_repeated(store, value, tmp_path):
    save_steps(store, value, 3)
    before = (tmp_path / "checkpoints" / "ckpt-3.seal").stat().st_mtime_ns
    store.save(3)
    assert (tmp_path / "checkpoints" / "ckpt-3.seal").stat().st_mtime_ns == before


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


def test_a_broken_best_json_is_told(model, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json"):
        BestModel(model, str(tmp_path), "coco/AP", keep=1)
