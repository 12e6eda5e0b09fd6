"""Whole runs: a resumed run is the undisturbed one bit by bit, replicas do not change the loss, mistakes are told."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import synthetic
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.core.records import Record

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
    """Runs a command of ours; returns what it printed. A traceback is never an answer to a user."""
    command = [sys.executable, "-m", f"ssd_dist.cli.{module}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=QUIET)
    assert done.returncode == expect, done.stdout + done.stderr
    assert expect == 0 or "Traceback" not in done.stderr
    return done.stdout + done.stderr


def train_flags(data: Path, run: Path, *overrides: str) -> list[str]:
    sets = [f"--set={item}" for item in (*SMALL, f"data.dir={data}", *overrides)]
    return [f"--config={data.parent / 'small.yaml'}", f"--model_dir={run}", "--noreport", *sets]


def train_command(data: Path, run: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "ssd_dist.cli.train", *train_flags(data, run, *overrides)]


def train(data: Path, run: Path, *overrides: str, expect: int = 0) -> str:
    return run_command("train", *train_flags(data, run, *overrides), expect=expect)


def read_rows(run: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def read_weights(run: Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(run / "checkpoints")))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "save_counter" not in name}


LONG = ["train.log_every=4", "train.steps_per_loop=3", "eval.every_steps=6", "train.epochs=3",
        "checkpoint.every_steps=5", "cluster.logical_cpus=2", "checkpoint.keep=9"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """An undisturbed run of two replicas."""
    train(data, data.parent / "whole", *LONG)
    return data.parent / "whole"


def assert_same_end(whole: Path, other: Path) -> None:
    """All weights, averages, slots, counters and metrics are equal bit by bit."""
    first, second = read_weights(whole), read_weights(other)
    assert first.keys() == second.keys()
    assert any("ema" in name for name in first)
    assert any("optimizer/slots" in name for name in first)
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name
    clock = ("images_per_second", "images_per_second_without_wait", "data_wait")
    for kind in ("train", "eval"):
        rows = [[{k: v for k, v in row.items() if k not in clock} for row in read_rows(run, kind)]
                for run in (whole, other)]  # fmt: skip
        assert rows[0] == rows[1]
    assert (whole / "best" / "best.json").read_text() == (other / "best" / "best.json").read_text()


@pytest.mark.slow
def test_a_run_set_back_mid_epoch_and_mid_report_ends_bit_equal(data: Path, whole: Path, tmp_path: Path) -> None:
    assert [row["step"] for row in read_rows(whole, "train")] == [4, 8, 12]
    assert [row["step"] for row in read_rows(whole, "eval")] == [6, 12]
    # What a crash after step 5 leaves, and a newest checkpoint that was cut off.
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "best")
    for file in (run / "checkpoints").glob("ckpt-12.*"):
        file.unlink()
    os.truncate(run / "checkpoints" / "ckpt-10.data-00000-of-00001", 1000)
    said = train(data, run, *LONG)
    assert "ckpt-10 is damaged" in said
    assert "goes on from step 5 to 12" in said
    assert_same_end(whole, run)


@pytest.mark.slow
def test_computing_on_one_thread_is_not_taken_for_waiting(data: Path, tmp_path: Path) -> None:
    command = train_command(data, tmp_path / "run", "train.steps=20", "train.log_every=10", "model.width=0.5")
    subprocess.run(command, timeout=240, env=QUIET | {"TF_NUM_INTEROP_THREADS": "1"}, check=True, capture_output=True)
    # Eight images of 64 pixels are there long before they are learnt; read too late, the clock says 0.99.
    row = read_rows(tmp_path / "run", "train")[-1]
    assert row["data_wait"] < 0.5
    fed = row["images_per_second"] / (1 - row["data_wait"])
    assert row["images_per_second_without_wait"] == pytest.approx(fed, rel=1e-6)


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_ends_bit_equal(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = train_command(data, run, *LONG)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=QUIET)
    try:
        for line in process.stdout:
            if line.startswith("step 4/12"):
                process.send_signal(signal.SIGTERM)
                break
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 75, said
    finally:
        process.kill()
    assert "stopped and saved after step" in said
    stopped_at = int(said.split("saved after step ")[1].split(" ")[0])
    assert 4 <= stopped_at < 12
    train(data, run, *LONG)
    assert_same_end(whole, run)


@pytest.fixture
def with_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a data set in which record train13 has been changed before it was written."""

    def write(change) -> Path:
        draw = synthetic.draw_record

        def draw_changed(seed, name, config, objects=None):
            record = draw(seed, name, config, 2 if name == "train13" else objects)
            return change(record) if name == "train13" else record

        monkeypatch.setattr(synthetic, "draw_record", draw_changed)
        folder = tmp_path / "changed" / "out"
        folder.parent.mkdir()
        write_dataset(folder, load_small_config(folder.parent), {"train": 32, "val": 10}, shards=4)
        return folder

    return write


def poison(record: Record) -> Record:
    """The record with a loss that is not a number."""
    return replace(record, targets=replace(record.targets, offsets=np.full_like(record.targets.offsets, np.nan)))


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_the_run_or_is_left_out_for_good(with_record, tmp_path: Path) -> None:
    data = with_record(poison)
    flags = ["train.log_every=3", "train.steps_per_loop=3", "eval.every_steps=6", "train.epochs=3",
             "checkpoint.every_steps=2"]  # fmt: skip
    run = tmp_path / "run"
    # The record is in one batch of each of the three epochs of four steps.
    said = train(data, run, *flags, "train.recover_from_blowup=1", expect=2)
    rows = [json.loads(line) for line in (run / "blowups.jsonl").read_text().splitlines()]
    assert [(row["step"] - 1) // 4 for row in rows] == [0, 1]
    assert all("train13" in row["source_ids"] and len(row["source_ids"]) == 8 for row in rows)
    first, second = rows
    assert first["skipped"] == [(first["step"] - 1) // 2 * 2 + 1, first["step"]]
    assert second["skipped"] is None
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    assert f"step {second['step']}" in error
    assert second["checkpoint"] in error
    assert "train.recover_from_blowup: 2" in error
    # What it left out before it stopped is remembered: it ends as a run that was never stopped.
    said = train(data, run, *flags, "train.recover_from_blowup=3")
    assert "(3 of train.recover_from_blowup: 3)" in said
    # Nor does it matter that a clock makes it pause after each step.
    train(data, tmp_path / "whole", *flags, "train.recover_from_blowup=3", "preemption.grace_seconds=0.1")
    assert_same_end(tmp_path / "whole", run)
    values = [np.asarray(value) for value in read_weights(run).values()]
    assert all(np.isfinite(value).all() for value in values if value.dtype.kind == "f")


@pytest.mark.slow
def test_two_workers_leave_out_what_one_does(with_record, tmp_path: Path) -> None:
    data = with_record(poison)
    flags = ["train.log_every=3", "train.steps_per_loop=3", "train.epochs=2", "checkpoint.every_steps=2",
             "eval.every_epochs=0", "train.recover_from_blowup=2"]  # fmt: skip
    train(data, tmp_path / "one", *flags)
    gang = [str(LAUNCHER), "--local=2", "--max_restarts=0", f"--python={sys.executable}"]
    command = [*gang, "--", *train_flags(data, tmp_path / "two", *flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=QUIET)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = ((tmp_path / name / "blowups.jsonl").read_text() for name in ("one", "two"))
    assert one.count("\n") == 2
    assert two.replace("/two/", "/one/") == one
    assert read_weights(tmp_path / "two").keys() == read_weights(tmp_path / "one").keys()
    assert all(np.isfinite(row["loss"]) for row in read_rows(tmp_path / "two", "train"))


@pytest.mark.slow
def test_a_record_that_cannot_be_decoded_is_named_or_done_without(with_record, tmp_path: Path) -> None:
    data = with_record(lambda record: replace(record, encoded=b"no JPEG"))
    # Record 13 of four shards: the fourth of the second. The manifest knows no better: it is found while training.
    said = train(data, tmp_path / "run", "train.epochs=1", expect=3)
    assert "train/view00-00001-of-00004.tfrecord, record 3" in said
    said = train(data, tmp_path / "run", "train.epochs=1", "data.on_corrupt=skip")
    assert "1 corrupt" in said
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "skipped_records.jsonl").read_text().splitlines()]
    assert (row["shard"], row["record"]) == ("train/view00-00001-of-00004.tfrecord", 3)


@pytest.mark.slow
def test_best_model_is_evaluated_and_predicts(data: Path, tmp_path: Path) -> None:
    from PIL import Image

    run = tmp_path / "run"
    flags = train_flags(data, run, "train.steps=6", "eval.every_steps=3", "cluster.logical_cpus=2")
    run_command("train", *flags, "--report")
    assert "COCO AP50" in (run / "report.html").read_text()
    best = json.loads((run / "best" / "best.json").read_text())
    rows = {row["step"]: row for row in read_rows(run, "eval")}
    assert best["value"] == max(row["coco/AP"] for row in rows.values())
    # Also of a run that many hosts have trained.
    run_command("evaluate", f"--model_dir={run}", "--split=val", f"--output={tmp_path / 'm.json'}",
                f"--pictures={tmp_path / 'p.png'}", "--set=cluster.strategy=multi_worker")  # fmt: skip
    # The best weights on the same split by another process: the same metrics to the last bit.
    assert json.loads((tmp_path / "m.json").read_text())["coco/AP"] == rows[best["step"]]["coco/AP"]
    assert Image.open(tmp_path / "p.png").size[0] > 300

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (90, 60), "gray").save(pictures / "a.jpg")
    (pictures / "b.jpg").write_bytes(b"no image")
    said = run_command("predict", f"--model_dir={run}", f"--images={pictures}", f"--output={tmp_path / 'out'}")
    assert Image.open(tmp_path / "out" / "a.jpg").size == (90, 60)
    assert "skipped" in said
    assert "b.jpg" in said


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["train.epoch=3"], 2, ["train.epoch", "train.epochs"]),
        (["data.dir=/nowhere"], 3, ["/nowhere", "prepare"]),
        (["matching.positive_iou=0.7"], 3, ["positive_iou", "online"]),  # not what the shards were made for
        (["data.views=2"], 3, ["data.views", "prepare"]),
        (["train.global_batch_size=512"], 3, ["global_batch_size"]),  # an epoch has fewer records
        (["eval.split=nosuch"], 3, ["nosuch", "val"]),
        (["backbone.weights=/nowhere.h5"], 4, ["/nowhere.h5"]),
        (["cluster.logical_cpus=3"], 2, ["global_batch_size", "3 replicas"]),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_one_line_and_an_exit_code(
    data: Path, tmp_path: Path, overrides: list[str], code: int, words: list[str]
) -> None:
    said = train(data, tmp_path / "run", *overrides, expect=code)
    line = next(line for line in said.splitlines() if line.startswith("error: "))
    assert all(word in line for word in words), line


@pytest.mark.slow
def test_a_run_of_another_model_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(data, run, "train.steps=1", "eval.every_epochs=0")
    said = train(data, run, "train.steps=2", "model.head=ssd", expect=2)
    assert "model.head" in said
    said = run_command("evaluate", f"--model_dir={run}", "--split=val", expect=4)
    assert "--checkpoint=last" in said
    checkpoint = next((run / "checkpoints").glob("ckpt-1.data*"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    said = run_command("evaluate", f"--model_dir={run}", "--checkpoint=last", "--split=val", expect=4)
    assert "ckpt-1" in said
