"""The command `ssd-export`: its files, its output, and its exit code if the export differs from the checkpoint."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from support.random_detector import SETTINGS, randomize_weights
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.model.detector import build_detector
from ssd_dist.runs.checkpoints import BestModel
from ssd_dist.runs.run_folder import open_run_folder

# The same command, with an export whose boxes are shifted by 1 % of the image.
SHIFTED = """
from ssd_dist.export import exporter
real = exporter.open_export
def open_shifted(kind, path):
    run = real(kind, path)
    return lambda images: {name: value + 0.01 * (name == "boxes") for name, value in run(images).items()}
exporter.open_export = open_shifted
from ssd_dist.cli.export import run_main
run_main()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Creates a run with an untrained model and six validation images; returns its folder."""
    folder = tmp_path_factory.mktemp("command")
    config = Config.model_validate(SETTINGS | {"data": {"dir": str(folder / "data")}})
    manifest = write_dataset(folder / "data", config, {"train": 2, "val": 6}, shards=1, objects=2)
    model = build_detector(config.model, config.backbone, config.anchors, len(manifest.classes))
    randomize_weights(model)
    open_run_folder(str(folder / "run"), config, manifest)
    BestModel(model, str(folder / "run"), "coco/AP", 1).save_if_best(5, 0.5)
    return folder / "run"


def export(run, output, *program: str) -> subprocess.CompletedProcess:
    flags = [f"--model_dir={run}", "--format=tflite", f"--output={output}"]
    return subprocess.run(
        [sys.executable, *program, *flags], capture_output=True, text=True, timeout=280,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_faithful_export_is_written_and_reported(run, tmp_path):
    done = export(run, tmp_path / "out", "-m", "ssd_dist.cli.export")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "export.json").read_text())
    file = tmp_path / "out" / "model.tflite"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "model.tflite"]
    assert summary["bytes"] == file.stat().st_size
    assert summary["parity"]["detections"] > 0
    assert f"{file}: {summary['bytes'] / 1e6:.1f} MB" in done.stdout
    assert f"0 of {summary['parity']['detections']} detections on 6 images are missing" in done.stdout
    details = tf.lite.Interpreter(str(file)).get_input_details()[0]
    assert (details["shape"].tolist(), details["dtype"]) == ([1, 64, 64, 3], np.uint8)


@pytest.mark.slow
def test_an_export_that_differs_from_the_checkpoint_exits_with_4_and_a_summary(run, tmp_path):
    done = export(run, tmp_path / "out", "-c", SHIFTED)
    assert done.returncode == 4, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    missing = json.loads((tmp_path / "out" / "export.json").read_text())["parity"]["missing"]
    assert missing > 0
    assert f"lacks {missing} of the checkpoint's" in line
    assert "do not deploy it" in line
    assert "export.json" in line
