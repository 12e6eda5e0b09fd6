"""Tests which settings and data a resumed run may change, and that files are written atomically."""

import json
from pathlib import Path

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


def start_run(tmp_path, config, manifest) -> str:
    """Opens a run folder and writes the checksum file of a finished checkpoint; returns the folder."""
    run = str(tmp_path / "run")
    open_run_folder(run, config, manifest)
    (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "run" / "checkpoints" / "ckpt-1.seal").write_text("{}")
    return run


@pytest.mark.parametrize(
    "override",
    [
        "eval.metric=coco/AP50", "eval.split=val", "eval.nms_iou=0.4", "eval.use_ema=false", "optimizer.lr=0.01",
        "train.seed=1",
    ],
)  # fmt: skip
def test_settings_that_change_the_model_or_the_best_checkpoint_are_rejected(manifest, tmp_path, override):
    run = start_run(tmp_path, changed(tmp_path), manifest)
    with pytest.raises(UsageError, match=override.split("=")[0]):
        open_run_folder(run, changed(tmp_path, override), manifest)


@pytest.mark.parametrize("override", ["eval.every_steps=7", "eval.batch_size=3", "train.epochs=9", "checkpoint.keep=1"])
def test_other_settings_may_change(manifest, tmp_path, override):
    run = start_run(tmp_path, changed(tmp_path), manifest)
    after = changed(tmp_path, override)
    open_run_folder(run, after, manifest)
    assert read_run_folder(run) == (after, manifest)


@pytest.mark.parametrize("leftover", [None, "ckpt-1.data-00000-of-00001"])
def test_a_run_that_never_saved_a_checkpoint_does_not_bind_its_folder(manifest, tmp_path, leftover):
    run = str(tmp_path / "run")
    open_run_folder(run, changed(tmp_path, "backbone.weights=/mistyped.h5"), manifest)
    if leftover:  # a checkpoint without a checksum file was never finished
        (tmp_path / "run" / "checkpoints").mkdir()
        (tmp_path / "run" / "checkpoints" / leftover).write_bytes(b"unfinished")
    after, other = changed(tmp_path, "backbone.weights=none", "optimizer.lr=0.01"), with_classes(manifest, "a", "b")
    open_run_folder(run, after, other)
    assert read_run_folder(run) == (after, other)


def test_a_run_whose_checkpoints_were_deleted_is_bound_by_its_best_model(manifest, tmp_path):
    open_run_folder(str(tmp_path / "run"), changed(tmp_path), manifest)
    (tmp_path / "run" / "best").mkdir()
    (tmp_path / "run" / "best" / "best.json").write_text('{"step": 1, "value": 0.5, "metric": "coco/AP"}')
    with pytest.raises(UsageError, match=r"optimizer\.lr"):
        open_run_folder(str(tmp_path / "run"), changed(tmp_path, "optimizer.lr=0.01"), manifest)


def with_classes(manifest, *classes):
    splits = {}
    for name, split in manifest.splits.items():
        views = tuple(view.model_copy(update={"images_per_class": dict.fromkeys(classes, 1)}) for view in split.views)
        splits[name] = split.model_copy(update={"views": views})
    return manifest.model_copy(update={"classes": classes, "splits": splits})


def with_other_records(manifest, split):
    """Returns a manifest in which one split has other records."""
    (view,) = manifest.splits[split].views
    shards = tuple(shard.model_copy(update={"sha256": "0" * 64}) for shard in view.shards)
    changed = manifest.splits[split].model_copy(update={"views": (view.model_copy(update={"shards": shards}),)})
    return manifest.model_copy(update={"splits": {**manifest.splits, split: changed}})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_is_resumed_on_other_data_only_if_that_is_allowed(manifest, tmp_path, split):
    config = changed(tmp_path, "data.dir=/other")
    run, other = start_run(tmp_path, config, manifest), with_other_records(manifest, split)
    with pytest.raises(UsageError, match=rf"split {split} of /other has other records.*--allow_new_data"):
        open_run_folder(run, config, other)
    assert read_run_folder(run)[1] == manifest
    open_run_folder(run, config, other, allow_new_data=True)
    # From now on the run is bound to the new data.
    open_run_folder(run, config, other)
    with pytest.raises(UsageError, match=f"split {split}"):
        open_run_folder(run, config, manifest)


@pytest.mark.parametrize(("split", "name"), [("train", "best"), ("val", "best_on_earlier_data")])
def test_the_best_model_by_the_metric_on_other_records_is_set_aside(manifest, tmp_path, split, name):
    run = Path(start_run(tmp_path, changed(tmp_path), manifest))
    (run / "best").mkdir(exist_ok=True)
    (run / "best/best.json").write_text(json.dumps({"step": 3, "value": 0.8, "metric": "coco/AP"}))
    open_run_folder(str(run), changed(tmp_path), with_other_records(manifest, split), allow_new_data=True)
    assert [path.name for path in run.glob("best*")] == [name]
    assert (run / name / "best.json").exists()


def test_every_best_model_that_is_set_aside_is_kept(manifest, tmp_path):
    run = Path(start_run(tmp_path, changed(tmp_path), manifest))
    for data, step in ((with_other_records(manifest, "val"), 3), (manifest, 5)):
        (run / "best").mkdir()
        (run / "best/best.json").write_text(json.dumps({"step": step, "value": 0.8, "metric": "coco/AP"}))
        open_run_folder(str(run), changed(tmp_path), data, allow_new_data=True)
    kept = {path.name: json.loads((path / "best.json").read_text())["step"] for path in run.glob("best*")}
    assert kept == {"best_on_earlier_data": 3, "best_on_earlier_data_2": 5}


@pytest.mark.parametrize("damaged", [b"{", b"\xff"])
def test_a_damaged_manifest_of_a_run_is_replaced_by_that_of_the_data(manifest, tmp_path, damaged):
    config = changed(tmp_path, "data.dir=/shards")
    run = Path(start_run(tmp_path, config, manifest))
    (run / "dataset.json").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"run/dataset.json .*; replace it by /shards/dataset.json"):
        open_run_folder(str(run), config, manifest)
    # Without a checkpoint, nothing depends on it.
    (run / "checkpoints/ckpt-1.seal").unlink()
    open_run_folder(str(run), config, manifest)
    assert read_run_folder(str(run))[1] == manifest


def test_a_folder_that_cannot_be_read_is_reported(tmp_path):
    with pytest.raises(UsageError, match=r"--model_dir=.* cannot be read: .*File name too long"):
        read_run_folder(str(tmp_path / ("x" * 300)))


def test_the_best_model_by_the_metric_on_another_split_is_set_aside(tmp_path):
    """`eval.split: auto` selects test, and val as soon as there is one."""
    config = Config.model_validate(SMALL)
    before = write_dataset(tmp_path / "before", config, {"train": 1, "test": 1}, shards=1)
    added = write_dataset(tmp_path / "added", config, {"train": 1, "val": 1}, shards=1)
    after = before.model_copy(update={"splits": {**before.splits, "val": added.splits["val"]}})
    run = Path(start_run(tmp_path, changed(tmp_path), before))
    (run / "best").mkdir()
    with pytest.raises(UsageError, match=r"evaluated on split test; .* now has split val, which eval.split: auto"):
        open_run_folder(str(run), changed(tmp_path), after)
    assert (run / "best").exists()
    open_run_folder(str(run), changed(tmp_path), after, allow_new_data=True)
    assert [path.name for path in run.glob("best*")] == ["best_on_earlier_data"]
    # From now on the run is evaluated on val.
    open_run_folder(str(run), changed(tmp_path), after)


def test_a_run_without_evaluation_may_get_a_split_for_it(tmp_path):
    config = Config.model_validate(SMALL)
    before = write_dataset(tmp_path / "before", config, {"train": 1}, shards=1)
    added = write_dataset(tmp_path / "added", config, {"train": 1, "val": 1}, shards=1)
    run = start_run(tmp_path, changed(tmp_path), before)
    open_run_folder(run, changed(tmp_path), before.model_copy(update={"splits": {**before.splits, **added.splits}}))


@pytest.mark.parametrize(
    ("saved", "changes", "kept"), [(False, True, False), (False, False, True), (True, False, True)]
)
def test_the_files_of_a_run_that_never_saved_do_not_belong_to_the_next_one(manifest, tmp_path, saved, changes, kept):
    run = tmp_path / "run"
    open_run_folder(str(run), changed(tmp_path), manifest)
    if saved:
        start_run(tmp_path, changed(tmp_path), manifest)
    for name in ("mlflow_run_id", "wandb_run_id", "blowups.jsonl"):
        (run / name).write_text("x")
    (run / "tensorboard").mkdir()
    open_run_folder(str(run), changed(tmp_path, *["optimizer.lr=0.01"] * changes), manifest)
    names = {"mlflow_run_id", "wandb_run_id", "blowups.jsonl", "tensorboard"}
    assert {path.name for path in run.iterdir()} & names == (names if kept else set())


def test_data_that_the_run_does_not_read_may_change(manifest, tmp_path):
    config = changed(tmp_path)
    run = start_run(tmp_path, config, manifest)
    # A split that was prepared later, and the same data in another folder.
    folder = tmp_path / "more"
    more = write_dataset(folder, Config.model_validate(SMALL), {"train": 1, "val": 1, "test": 1}, shards=1)
    open_run_folder(run, changed(tmp_path, "data.dir=/moved"), more)
    open_run_folder(run, config, with_other_records(more, "test"))


def test_other_classes_are_never_allowed(manifest, tmp_path):
    run = start_run(tmp_path, changed(tmp_path), manifest)
    with pytest.raises(CheckpointError, match="the data has a, b"):
        open_run_folder(run, changed(tmp_path), with_classes(manifest, "a", "b"), allow_new_data=True)


def test_relative_paths_of_the_data_are_stored_as_absolute_ones(manifest, tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    open_run_folder(str(tmp_path / "run"), changed(tmp_path, "data.dir=../out", "data.cache_dir=cache"), manifest)
    monkeypatch.chdir("/")
    data = read_run_folder(str(tmp_path / "run"))[0].data
    assert (data.dir, data.cache_dir) == (str(tmp_path / "out"), str(tmp_path / "start" / "cache"))
    open_run_folder(str(tmp_path / "run"), changed(tmp_path, "data.dir=gs://bucket/out"), manifest)
    assert read_run_folder(str(tmp_path / "run"))[0].data.dir == "gs://bucket/out"


def test_environment_variables_in_a_stored_config_are_plain_text(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_TEST_DATA", "/data/${SSD_TEST_NONE}")
    config = changed(tmp_path, "data.dir=${SSD_TEST_DATA}")
    open_run_folder(str(tmp_path / "run"), config, manifest)
    assert read_run_folder(str(tmp_path / "run"))[0].data.dir == "/data/${SSD_TEST_NONE}"
    # The value of a flag is not stored.
    assert read_run_folder(str(tmp_path / "run"), ["data.dir=${HOME}/x"])[0].data.dir == f"{Path.home()}/x"


def test_a_run_of_an_earlier_version_is_resumed_with_its_groups(manifest, tmp_path):
    run = Path(start_run(tmp_path, changed(tmp_path), manifest))
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


def test_a_start_that_fails_between_its_files_leaves_no_config(manifest, tmp_path, monkeypatch):
    # A folder with a config is a run, so the config must be the last file.
    run = tmp_path / "run"

    def fail_after_the_first_file(_):
        if any((run / name).exists() for name in ("dataset.json", "config.yaml")):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "flush_to_disk", fail_after_the_first_file)
    with pytest.raises(CheckpointError, match="the disk is full"):
        open_run_folder(str(run), changed(tmp_path), manifest)
    assert not (run / "config.yaml").exists()


def test_invalid_folder_names_are_rejected():
    with pytest.raises(UsageError, match=r"gs://B/run is on an object store.*mount"):
        check_folder_name("gs://B/run")
    for name in ("runs/a[1]", "run*", "run?"):
        with pytest.raises(UsageError, match="wildcard"):
            check_folder_name(name)
    for name in ("a\nb", "a\x1b", "a\udcff"):
        with pytest.raises(UsageError, match="line break, another control character or invalid UTF-8"):
            check_folder_name(name)
    check_folder_name("/gcs/B/run (1) {a}")
    check_folder_name("\N{CJK UNIFIED IDEOGRAPH-4E00}\N{IDEOGRAPHIC SPACE}\N{FAMILY}")


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
