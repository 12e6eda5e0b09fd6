"""Whole runs: a resumed run is the undisturbed one bit by bit, replicas do not change the loss, mistakes are told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config

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
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert expect == 0 or "Traceback" not in done.stderr
    return done.stdout + done.stderr


def train(data: Path, run: Path, *overrides: str, expect: int = 0) -> str:
    config = data.parent / "small.yaml"
    config.write_text(yaml.safe_dump({}))
    sets = [f"--set={item}" for item in (*SMALL, f"data.dir={data}", *overrides)]
    return run_command("train", f"--config={config}", f"--model_dir={run}", *sets, expect=expect)


def read_rows(run: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def read_weights(run: Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(run / "checkpoints")))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "save_counter" not in name}


@pytest.mark.slow
def test_a_run_resumed_mid_epoch_and_mid_report_ends_bit_equal(data: Path, tmp_path: Path) -> None:
    flags = ["train.log_every=4", "eval.every_steps=6", "train.epochs=3", "checkpoint.every_steps=5"]
    train(data, tmp_path / "whole", *flags)
    # The schedule looks at the end: an interrupted run has the same end in view, so it is stopped by its checkpoint.
    train(data, tmp_path / "parts", *flags)
    checkpoints = tmp_path / "parts" / "checkpoints"
    (checkpoints / "checkpoint").write_text('model_checkpoint_path: "ckpt-5"\nall_model_checkpoint_paths: "ckpt-5"\n')
    train(data, tmp_path / "parts", *flags)

    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert any("ema" in name for name in whole)
    assert any("optimizer/slots" in name for name in whole)
    for name, value in whole.items():
        assert np.array_equal(value, parts[name]), name
    clock = ("images_per_second", "data_wait")
    for kind in ("train", "eval"):
        rows = [[{k: v for k, v in row.items() if k not in clock} for row in read_rows(tmp_path / run, kind)]
                for run in ("whole", "parts")]  # fmt: skip
        assert rows[0] == rows[1]
    assert [row["step"] for row in read_rows(tmp_path / "whole", "train")] == [4, 8, 12]
    assert [row["step"] for row in read_rows(tmp_path / "whole", "eval")] == [6, 12]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["mining.scope=image"], ["mining.scope=global", "loss.normalizer=classified"]])
def test_replicas_do_not_change_the_loss(data: Path, tmp_path: Path, overrides: list[str]) -> None:
    losses = {}
    for replicas in (1, 2):
        run = tmp_path / str(replicas)
        flags = ["train.steps=3", "train.log_every=1", "eval.every_epochs=0", "train.sync_batch_norm=true"]
        train(
            data, run, *flags, *overrides, f"cluster.logical_cpus={replicas}", "optimizer.lr=1e-9", "schedule.min_lr=0"
        )
        losses[replicas] = [row["loss"] for row in read_rows(run, "train")]
        counts = [(row["positives"], row["negatives"]) for row in read_rows(run, "train")]
        assert all(negatives == 3 * positives > 0 for positives, negatives in counts)
    # Float32 sums over 2 x 4 instead of 8 images; weights stand still, so that only the loss itself is compared.
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-5)


@pytest.mark.slow
def test_best_model_is_evaluated_and_predicts(data: Path, tmp_path: Path) -> None:
    from PIL import Image

    run = tmp_path / "run"
    train(data, run, "train.steps=6", "eval.every_steps=3")
    best = json.loads((run / "best" / "best.json").read_text())
    rows = {row["step"]: row for row in read_rows(run, "eval")}
    assert best["value"] == max(row["coco/AP"] for row in rows.values())
    run_command("evaluate", f"--model_dir={run}", "--split=val", f"--output={tmp_path / 'm.json'}",
                f"--pictures={tmp_path / 'p.png'}")  # fmt: skip
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
