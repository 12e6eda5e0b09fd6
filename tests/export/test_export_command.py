"""The files, output and exit codes of `ssd-export`, and the order in which `ssd-evaluate` writes its files."""

import json
import os
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from support.random_detector import SETTINGS, randomize_weights
from support.small_backbone import build_few_blocks
from support.small_network import small_command, small_program
from support.synthetic import write_dataset
from support.untrained_run import write_untrained_run

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.export import exporter
from ssd_dist.export.export_options import KINDS, ExportOptions
from ssd_dist.export.exporter import read_images
from ssd_dist.model import detector

# Each export takes half a minute on an idle machine.
pytestmark = pytest.mark.timeout(1800)

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

# The evaluation, stopped while it draws the images.
STOPPED = """
from ssd_dist.evaluation import gallery
def stop(*_):
    raise KeyboardInterrupt
gallery.draw_gallery = stop
from ssd_dist.cli.evaluate import run_main
run_main()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        return write_untrained_run(tmp_path_factory.mktemp("command"), SETTINGS, randomize_weights)


def export(run, output, command: list[str]) -> subprocess.CompletedProcess:
    flags = [f"--model_dir={run}", "--format=tflite", f"--output={output}"]
    return subprocess.run(
        [*command, *flags], capture_output=True, text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_faithful_export_is_written_and_reported(run, tmp_path):
    done = export(run, tmp_path / "out", small_command("ssd_dist.cli.export"))
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


def test_an_image_that_cannot_be_decoded_is_reported_by_its_name(tmp_path):
    config = Config.model_validate(SETTINGS | {"data": {"dir": str(tmp_path)}})
    manifest = write_dataset(tmp_path, config, {"train": 1, "val": 2}, shards=1)
    (first, pixels), second = read_images(config.data, manifest, "val")
    assert pixels.shape == (64, 64, 3)
    assert first.source_id != second[0].source_id
    # The headers of the images state 64 x 64 pixels; a header that states more must not fill the memory.
    with pytest.raises(DataError, match=f"image {first.source_id} of split val cannot be decoded.*; prepare the data"):
        next(read_images(config.data, manifest.model_copy(update={"image_size": 32}), "val"))


@pytest.mark.slow
def test_an_export_that_differs_from_the_checkpoint_exits_with_4_and_a_summary(run, tmp_path):
    done = export(run, tmp_path / "out", small_program(SHIFTED))
    assert done.returncode == 4, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    missing = json.loads((tmp_path / "out" / "export.json").read_text())["parity"]["missing"]
    assert missing > 0
    assert f"lacks {missing} of the checkpoint's" in line
    assert "do not deploy it" in line
    assert "export.json" in line


def test_a_stopped_evaluation_leaves_no_metrics(run, tmp_path):
    # Complete metrics show `ssd-fit` that the evaluation is finished, so it would never draw the images.
    flags = [f"--model_dir={run}", "--split=val", f"--output={tmp_path}/m.json", f"--pictures={tmp_path}/p.png"]
    done = subprocess.run(
        small_program(STOPPED, *flags), capture_output=True, text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode not in (0, 1, 2), done.stderr
    assert "expected calibration error" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_export_leaves_no_summary_of_an_earlier_one(tmp_path, monkeypatch, kind):
    def fail(*_):
        raise OSError(28, "No space left on device")

    for name in ("write_saved_model", "build_tflite", "write_onnx", "write_openvino"):
        monkeypatch.setattr(exporter, name, fail)
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(UsageError, match=f"--output={tmp_path}: cannot write the export: .*No space left"):
        exporter.write_export(None, ExportOptions(kind, "raw"), [], tmp_path)
    assert not list(tmp_path.iterdir())
