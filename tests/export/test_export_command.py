"""The command `ssd-export`: what it writes and says, and how it ends where the export is not the checkpoint."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from support.synthetic import write_dataset
from test_exporter import SETTINGS, give_character

from ssd_dist.core.config import Config
from ssd_dist.model.detector import build_detector
from ssd_dist.runs.checkpoints import BestModel
from ssd_dist.runs.run_folder import open_run_folder

# The same command, with an export whose boxes are a hundredth of the image off.
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
    """A run whose model nobody trained, with six images to be judged on."""
    folder = tmp_path_factory.mktemp("command")
    config = Config.model_validate(SETTINGS | {"data": {"dir": str(folder / "data")}})
    manifest = write_dataset(folder / "data", config, {"train": 2, "val": 6}, shards=1, objects=2)
    model = build_detector(config, len(manifest.classes))
    give_character(model)
    open_run_folder(str(folder / "run"), config, manifest)
    BestModel(model, str(folder / "run"), "coco/AP", 1).offer(5, 0.5)
    return folder / "run"


def export(run, output, *program: str) -> subprocess.CompletedProcess:
    flags = [f"--model_dir={run}", "--format=tflite", f"--output={output}"]
    return subprocess.run(
        [sys.executable, *program, *flags], capture_output=True, text=True, timeout=280,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_good_export_is_written_and_told(run, tmp_path):
    done = export(run, tmp_path / "out", "-m", "ssd_dist.cli.export")
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "out" / "export.json").read_text())
    file = tmp_path / "out" / "model.tflite"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "model.tflite"]
    assert card["bytes"] == file.stat().st_size
    assert card["parity"]["detections"] > 0
    assert f"{file}: {card['bytes'] / 1e6:.1f} MB" in done.stdout
    assert f"of {card['parity']['detections']} detections on 6 images 0 differ" in done.stdout
    details = tf.lite.Interpreter(str(file)).get_input_details()[0]
    assert (details["shape"].tolist(), details["dtype"]) == ([1, 64, 64, 3], np.uint8)


@pytest.mark.slow
def test_an_export_that_is_not_the_checkpoint_ends_with_4_and_its_card(run, tmp_path):
    done = export(run, tmp_path / "out", "-c", SHIFTED)
    assert done.returncode == 4, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    missing = json.loads((tmp_path / "out" / "export.json").read_text())["parity"]["missing"]
    assert missing > 0
    assert f"misses {missing} of the checkpoint's" in line
    assert "do not ship it" in line
    assert "export.json" in line
