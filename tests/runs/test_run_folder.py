"""Tests which settings a resumed run may change, and that files are written atomically."""

import pytest
import tensorflow as tf
import yaml
from support.synthetic import write_dataset

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.core import storage
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import CheckpointError, UsageError
from ssd_dist.core.folder_names import check_folder_name
from ssd_dist.runs.run_folder import open_run_folder, read_run_folder
from ssd_dist.training.run_checks import check_steps_left

SMALL = {"model": {"input_size": 64, "width": 0.1}, "backbone": {"weights": "none"}}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_dataset(
        tmp_path_factory.mktemp("data"), Config.model_validate(SMALL), {"train": 1, "val": 1}, shards=1
    )


def changed(tmp_path, *overrides):
    (tmp_path / "small.yaml").write_text("model: {input_size: 64, width: 0.1}\nbackbone: {weights: none}\n")
    return load_config(tmp_path / "small.yaml", overrides)


@pytest.mark.parametrize(
    "override",
    [
        "eval.metric=coco/AP50", "eval.split=val", "eval.nms_iou=0.4", "eval.use_ema=false", "optimizer.lr=0.01",
        "train.seed=1",
    ],
)  # fmt: skip
def test_settings_that_change_the_model_or_the_best_checkpoint_are_rejected(manifest, tmp_path, override):
    open_run_folder(str(tmp_path / "run"), changed(tmp_path), manifest)
    with pytest.raises(UsageError, match=override.split("=")[0]):
        open_run_folder(str(tmp_path / "run"), changed(tmp_path, override), manifest)


@pytest.mark.parametrize("override", ["eval.every_steps=7", "eval.batch_size=3", "train.epochs=9", "checkpoint.keep=1"])
def test_other_settings_may_change(manifest, tmp_path, override):
    open_run_folder(str(tmp_path / "run"), changed(tmp_path), manifest)
    after = changed(tmp_path, override)
    open_run_folder(str(tmp_path / "run"), after, manifest)
    assert read_run_folder(str(tmp_path / "run")) == (after, manifest)


def test_a_run_of_an_earlier_version_is_resumed_with_its_groups(manifest, tmp_path):
    run = tmp_path / "run"
    open_run_folder(str(run), changed(tmp_path), manifest)
    stored = yaml.safe_load((run / "config.yaml").read_text())
    del stored["model"]["batch_norm_group"]
    stored["train"]["sync_batch_norm"] = True
    (run / "config.yaml").write_text(yaml.dump(stored))
    with pytest.raises(UsageError, match=r"has a run with model\.batch_norm_group: 16, this config has 4"):
        open_run_folder(str(run), changed(tmp_path), manifest)
    same = changed(tmp_path, "model.batch_norm_group=16")
    open_run_folder(str(run), same, manifest)
    assert read_run_folder(str(run)) == (same, manifest)
    assert "sync_batch_norm" not in (run / "config.yaml").read_text()


def test_a_write_error_keeps_the_previous_files(manifest, tmp_path, monkeypatch):
    run = tmp_path / "run"
    open_run_folder(str(run), changed(tmp_path), manifest)
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "flush_to_disk", fail)
    with pytest.raises(CheckpointError, match="the disk is full"):
        open_run_folder(str(run), changed(tmp_path, "train.epochs=9"), manifest)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    # Unchanged files are not written, so a run can resume on a full disk.
    open_run_folder(str(run), changed(tmp_path), manifest)


def test_invalid_folder_names_are_rejected():
    with pytest.raises(UsageError, match=r"gs://B/run is on an object store.*mount"):
        check_folder_name("gs://B/run")
    for name in ("runs/a[1]", "run*", "run?"):
        with pytest.raises(UsageError, match="wildcard"):
            check_folder_name(name)
    check_folder_name("/gcs/B/run (1) {a}")


def test_a_run_beyond_its_last_step_is_rejected():
    check_steps_left(300, 300, "RUN")
    with pytest.raises(UsageError, match=r"at step 500, but train.epochs or train.steps end it at 300"):
        check_steps_left(500, 300, "RUN")


def test_running_out_of_memory_reports_the_keys_to_lower():
    message = r"out of memory \(OOM when allocating.*train.global_batch_size"
    with pytest.raises(UsageError, match=message), explain_out_of_memory():
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9,9]")
    # TensorFlow raises the same error for a full disk.
    with pytest.raises(tf.errors.ResourceExhaustedError), explain_out_of_memory():
        raise tf.errors.ResourceExhaustedError(None, None, "events.out; No space left on device")
