"""Whole runs: a resumed run equals an uninterrupted one bit for bit, and user errors are reported in one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import synthetic
from support.small_network import small_command, write_interpreter
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.core.records import Record

# The tests train; on a busy machine some took more than five minutes.
pytestmark = pytest.mark.timeout(1800)

QUIET = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
LAUNCHER = Path(__file__).parents[2] / "launch" / "train_multinode.sh"
SMALL = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "out"
    write_dataset(folder, load_small_config(folder.parent), {"train": 32, "val": 10, "empty": 16}, shards=4)
    return folder


def load_small_config(folder: Path, *overrides: str) -> Config:
    path = folder / "small.yaml"
    path.write_text("{}")
    return load_config(path, [*SMALL, *overrides])


def run_command(module: str, *flags: str, expect: int = 0) -> str:
    """Runs a command with the small network; checks the exit code, and that errors have no traceback.

    Returns:
      The output.
    """
    return run_program(small_command(f"ssd_dist.cli.{module}", *flags), expect)


def run_program(command: list[str], expect: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=QUIET)
    assert done.returncode == expect, done.stdout + done.stderr
    assert expect == 0 or "Traceback" not in done.stderr
    return done.stdout + done.stderr


def train_flags(data: Path, run: Path, *overrides: str) -> list[str]:
    sets = [f"--set={item}" for item in (*SMALL, f"data.dir={data}", *overrides)]
    return [f"--config={data.parent / 'small.yaml'}", f"--model_dir={run}", "--noreport", *sets]


def train_command(data: Path, run: Path, *overrides: str) -> list[str]:
    return small_command("ssd_dist.cli.train", *train_flags(data, run, *overrides))


def train(data: Path, run: Path, *overrides: str, expect: int = 0) -> str:
    return run_command("train", *train_flags(data, run, *overrides), expect=expect)


def read_rows(run: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def assert_layout(run: Path, workers: int, replicas: int) -> None:
    """Checks that environment.json records this many workers with this many replicas each."""
    environment = json.loads((run / "environment.json").read_text())
    counts = [environment[key] for key in ("workers", "replicas_per_worker", "replicas")]
    assert counts == [workers, replicas, workers * replicas]


def read_weights(run: Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(run / "checkpoints")))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "save_counter" not in name}


LONG = ["train.log_every=4", "train.steps_per_loop=3", "eval.every_steps=6", "train.epochs=3",
        "checkpoint.every_steps=5", "cluster.logical_cpus=2", "checkpoint.keep=9"]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(data: Path) -> Path:
    """Trains two replicas without interruption; returns the run folder."""
    train(data, data.parent / "uninterrupted", *LONG)
    assert_layout(data.parent / "uninterrupted", 1, 2)
    return data.parent / "uninterrupted"


def assert_equal_results(uninterrupted: Path, other: Path) -> None:
    """Checks that all weights, averages, slots, counters and metrics are equal bit for bit."""
    first, second = read_weights(uninterrupted), read_weights(other)
    assert first.keys() == second.keys()
    assert any("ema" in name for name in first)
    assert any("optimizer/slots" in name for name in first)
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name
    clock = ("images_per_second", "images_per_second_without_wait", "data_wait")
    for kind in ("train", "eval"):
        rows = [[{k: v for k, v in row.items() if k not in clock} for row in read_rows(run, kind)]
                for run in (uninterrupted, other)]  # fmt: skip
        assert rows[0] == rows[1]
    assert (uninterrupted / "best" / "best.json").read_text() == (other / "best" / "best.json").read_text()


@pytest.mark.slow
def test_a_run_resumed_mid_epoch_and_mid_report_ends_bit_equal(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    assert [row["step"] for row in read_rows(uninterrupted, "train")] == [4, 8, 12]
    assert [row["step"] for row in read_rows(uninterrupted, "eval")] == [6, 12]
    # The files after a crash after step 5, with a truncated newest checkpoint.
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "best")
    for file in (run / "checkpoints").glob("ckpt-12.*"):
        file.unlink()
    os.truncate(run / "checkpoints" / "ckpt-10.data-00000-of-00001", 1000)
    output = train(data, run, *LONG)
    assert "ckpt-10 is damaged" in output
    assert "resumes at step 5 of 12" in output
    assert_equal_results(uninterrupted, run)


@pytest.mark.slow
def test_computing_on_one_thread_does_not_count_as_waiting_for_data(data: Path, tmp_path: Path) -> None:
    flags = train_flags(data, tmp_path / "run", "train.steps=20", "train.log_every=10", "model.width=0.5",
                        "eval.every_epochs=0")  # fmt: skip
    command = [sys.executable, "-m", "ssd_dist.cli.train", *flags]
    subprocess.run(command, timeout=240, env=QUIET | {"TF_NUM_INTEROP_THREADS": "1"}, check=True, capture_output=True)
    # Eight images of 64 pixels are read much faster than trained on; a clock read too late measures 0.99.
    row = read_rows(tmp_path / "run", "train")[-1]
    assert row["data_wait"] < 0.5
    without_wait = row["images_per_second"] / (1 - row["data_wait"])
    assert row["images_per_second_without_wait"] == pytest.approx(without_wait, rel=1e-6)


def send_stop_signal(process: subprocess.Popen, _: Path) -> None:
    process.send_signal(signal.SIGTERM)


def replace_shard(_: subprocess.Popen, data: Path) -> None:
    """Replaces a shard by another one with as many records."""
    shard, other = (data / f"train/view00-0000{index}-of-00004.tfrecord" for index in (2, 1))
    shutil.copy(other, data / "copy")
    (data / "copy").rename(shard)


@pytest.mark.parametrize(
    ("stop", "code", "words"),
    [
        (send_stop_signal, 75, "stopped after step N of 12, saved; start again to resume"),
        (replace_shard, 3, "00002-of-00004.tfrecord changed during training: .*(stopped after step N of 12, saved)"),
    ],
)
@pytest.mark.slow
def test_a_run_that_was_stopped_ends_bit_equal(
    data: Path, uninterrupted: Path, tmp_path: Path, stop, code: int, words: str
) -> None:
    run = tmp_path / "run"
    copy = tmp_path / "data" / "out"
    shutil.copytree(data, copy)
    shutil.copy(data.parent / "small.yaml", copy.parent)
    command = train_command(copy, run, *LONG)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=QUIET)
    try:
        for line in process.stdout:
            if line.startswith("step 4/12"):
                stop(process, copy)
                break
        output = process.communicate(timeout=120)[0]
        assert process.returncode == code, output
    finally:
        process.kill()
    pattern = words.replace("(", r"\(").replace(")", r"\)").replace(" N ", r" (\d+) ")
    stopped = re.search(pattern, output)
    assert stopped, output
    assert 4 <= int(stopped[1]) < 12
    train(data, run, *LONG)
    assert_equal_results(uninterrupted, run)


@pytest.fixture
def write_changed_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns a function that writes a dataset in which record train13 is changed, and val may have no objects."""

    def write(change, val_objects: int | None = None) -> Path:
        draw = synthetic.draw_record

        def draw_changed(seed, name, config, objects=None):
            objects = 2 if name == "train13" else val_objects if name.startswith("val") else objects
            record = draw(seed, name, config, objects)
            return change(record) if name == "train13" else record

        monkeypatch.setattr(synthetic, "draw_record", draw_changed)
        folder = tmp_path / "changed" / "out"
        folder.parent.mkdir()
        write_dataset(folder, load_small_config(folder.parent), {"train": 32, "val": 10}, shards=4)
        return folder

    return write


def set_offsets_to_nan(record: Record) -> Record:
    """Changes a record so that its loss is NaN."""
    return replace(record, targets=replace(record.targets, offsets=np.full_like(record.targets.offsets, np.nan)))


@pytest.mark.slow
def test_a_nan_loss_stops_the_run_or_its_steps_are_skipped(write_changed_data, tmp_path: Path) -> None:
    data = write_changed_data(set_offsets_to_nan)
    flags = ["train.log_every=3", "train.steps_per_loop=3", "eval.every_steps=6", "train.epochs=3",
             "checkpoint.every_steps=2"]  # fmt: skip
    run = tmp_path / "run"
    # The record is in one batch of each of the three epochs of four steps.
    output = train(data, run, *flags, "train.recover_from_blowup=1", expect=2)
    rows = [json.loads(line) for line in (run / "blowups.jsonl").read_text().splitlines()]
    assert [(row["step"] - 1) // 4 for row in rows] == [0, 1]
    assert all("train13" in row["source_ids"] and len(row["source_ids"]) == 8 for row in rows)
    first, second = rows
    assert first["skipped"] == [(first["step"] - 1) // 2 * 2 + 1, first["step"]]
    assert second["skipped"] is None
    error = next(line for line in output.splitlines() if line.startswith("error: "))
    assert f"step {second['step']}" in error
    assert second["checkpoint"] in error
    assert "train.recover_from_blowup: 2" in error
    # The steps skipped before the stop stay skipped: the run ends like one that was never stopped.
    output = train(data, run, *flags, "train.recover_from_blowup=3")
    assert "(recovery 3 of train.recover_from_blowup: 3)" in output
    # A clock that makes the run pause after every step changes nothing.
    train(data, tmp_path / "uninterrupted", *flags, "train.recover_from_blowup=3", "preemption.grace_seconds=0.1")
    assert_equal_results(tmp_path / "uninterrupted", run)
    values = [np.asarray(value) for value in read_weights(run).values()]
    assert all(np.isfinite(value).all() for value in values if value.dtype.kind == "f")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_with_two_replicas_skip_the_same_steps_as_one(write_changed_data, tmp_path: Path) -> None:
    data = write_changed_data(set_offsets_to_nan, val_objects=0)
    # Without objects every evaluation is undefined, so early stopping ends both runs after two of the three epochs.
    flags = ["train.log_every=3", "train.steps_per_loop=3", "train.epochs=3", "checkpoint.every_steps=2",
             "eval.every_epochs=1", "train.early_stopping=2", "train.recover_from_blowup=2",
             "model.batch_norm_group=2"]  # fmt: skip
    train(data, tmp_path / "one", *flags)
    launch = [str(LAUNCHER), "--local=2", "--max_restarts=0", f"--python={write_interpreter(tmp_path)}"]
    command = [*launch, "--", *train_flags(data, tmp_path / "two", *flags, "cluster.logical_cpus=2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=QUIET)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_layout(tmp_path / "one", 1, 1)
    assert_layout(tmp_path / "two", 2, 2)
    one, two = ((tmp_path / name / "blowups.jsonl").read_text() for name in ("one", "two"))
    assert one.count("\n") == 2
    for name in ("one", "two"):
        assert [row["step"] for row in read_rows(tmp_path / name, "eval")][-1] == 8
        assert '"ckpt-8"\n' in (tmp_path / name / "checkpoints" / "checkpoint").read_text().splitlines(True)[0]
    assert two.replace("/two/", "/one/") == one
    assert read_weights(tmp_path / "two").keys() == read_weights(tmp_path / "one").keys()
    assert all(np.isfinite(row["loss"]) for row in read_rows(tmp_path / "two", "train"))


@pytest.mark.slow
def test_a_record_that_cannot_be_decoded_is_reported_or_skipped(write_changed_data, tmp_path: Path) -> None:
    data = write_changed_data(lambda record: replace(record, encoded=b"no JPEG"))
    # Record 13 of four shards is the fourth of the second. Its checksum is valid, so training finds it.
    output = train(data, tmp_path / "run", "train.epochs=1", expect=3)
    assert "train/view00-00001-of-00004.tfrecord, record 3" in output
    output = train(data, tmp_path / "run", "train.epochs=1", "data.on_corrupt=skip")
    assert "1 corrupt records were replaced by valid ones" in output
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "skipped_records.jsonl").read_text().splitlines()]
    assert (row["shard"], row["record"]) == ("train/view00-00001-of-00004.tfrecord", 3)


@pytest.mark.slow
def test_best_model_is_evaluated_and_predicts(data: Path, tmp_path: Path) -> None:
    from PIL import Image

    run = tmp_path / "run"
    flags = train_flags(data, run, "train.steps=6", "eval.every_steps=3", "cluster.logical_cpus=2")
    run_command("train", *flags, "--report")
    assert "COCO AP50" in (run / "report.html").read_text()
    assert_layout(run, 1, 2)
    best = json.loads((run / "best" / "best.json").read_text())
    rows = {row["step"]: row for row in read_rows(run, "eval")}
    assert best["value"] == max(row["coco/AP"] for row in rows.values())
    # This also works for a run that several hosts trained.
    run_command("evaluate", f"--model_dir={run}", "--split=val", f"--output={tmp_path / 'm.json'}",
                f"--pictures={tmp_path / 'p.png'}", "--set=cluster.strategy=multi_worker")  # fmt: skip
    # The best weights evaluated on the same split by another process: equal metrics, bit for bit.
    assert json.loads((tmp_path / "m.json").read_text())["coco/AP"] == rows[best["step"]]["coco/AP"]
    with Image.open(tmp_path / "p.png") as image:
        assert image.size[0] > 300

    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (90, 60), "gray").save(images / "a.jpg")
    (images / "b.jpg").write_bytes(b"no image")
    output = run_command("predict", f"--model_dir={run}", f"--images={images}", f"--output={tmp_path / 'out'}")
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.size == (90, 60)
    assert "skipped" in output
    assert "b.jpg" in output
    flags = [f"--model_dir={run}", f"--images={images / 'a.jpg'}", "--nopictures", "--tiles=2"]
    run_command("predict", *flags, f"--output={tmp_path / 'tiled'}")
    whole, tiled = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("out", "tiled"))
    assert [row["score"] for row in whole] != [row["score"] for row in tiled]


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["train.epoch=3"], 2, ["train.epoch", "train.epochs"]),
        (["data.dir=/nowhere"], 3, ["/nowhere", "prepare"]),
        (["matching.positive_iou=0.7"], 3, ["positive_iou", "online"]),  # the shards were made for another value
        (["data.views=2"], 3, ["data.views", "prepare"]),
        (["train.global_batch_size=512"], 3, ["global_batch_size"]),  # an epoch has fewer records
        (["eval.split=nosuch"], 3, ["nosuch", "val"]),
        (["backbone.weights=/nowhere.h5"], 4, ["/nowhere.h5"]),
        (["cluster.logical_cpus=3"], 2, ["global_batch_size", "3 replicas"]),
        (["cluster.logical_cpus=4", "model.batch_norm_group=4"], 2, ["model.batch_norm_group: 4", "use 1, 2, 8"]),
        (["cluster.logical_cpus=2", "cluster.strategy=one_device"], 2, ["logical_cpus: 2", "one_device"]),
    ],
)
@pytest.mark.slow
def test_a_user_error_is_reported_in_one_line_with_its_exit_code(
    data: Path, tmp_path: Path, overrides: list[str], code: int, words: list[str]
) -> None:
    # The whole network, because some of the errors are those of its weights.
    flags = train_flags(data, tmp_path / "run", *overrides)
    output = run_program([sys.executable, "-m", "ssd_dist.cli.train", *flags], expect=code)
    line = next(line for line in output.splitlines() if line.startswith("error: "))
    assert all(word in line for word in words), line


@pytest.mark.slow
def test_a_run_of_another_model_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["eval.every_epochs=0", "train.log_every=1", "schedule.warmup_steps=0"]
    train(data, run, "train.steps=1", *flags)
    output = train(data, run, "train.steps=2", "model.head=ssd", *flags, expect=2)
    assert "model.head" in output
    # The finished run continues, with the learning rates of a cosine over three steps: cos(2/3 pi) is -1/2.
    output = train(data, run, "train.steps=3", *flags)
    assert "resumes at step 1 of 3" in output
    assert [row["lr"] for row in read_rows(run, "train")] == pytest.approx([1e-5, 1e-5 + 0.25 * 99e-5, 1e-5])
    output = run_command("evaluate", f"--model_dir={run}", "--split=val", expect=4)
    assert "--checkpoint=last" in output
    for checkpoint in (run / "checkpoints").glob("ckpt-*.data*"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    output = run_command("evaluate", f"--model_dir={run}", "--checkpoint=last", "--split=val", expect=4)
    assert "ckpt-3 is damaged" in output
