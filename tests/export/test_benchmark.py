"""`ssd-benchmark` measures each export in its own runtime and process, and reports its size, latency, memory and AP."""

import json
import subprocess
import sys

import numpy as np
import pytest
from support.random_detector import SETTINGS
from support.synthetic import CLASSES, write_dataset
from test_quantized import DECODER, build_served, draw_images

from ssd_dist.core.config import Config
from ssd_dist.core.errors import CheckpointError, DataError
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.export import export_benchmark
from ssd_dist.export.export_options import ExportOptions
from ssd_dist.export.export_summary import describe_export
from ssd_dist.export.exported_detector import evaluate_export
from ssd_dist.export.exporter import write_export
from ssd_dist.export.runtimes import list_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns RUN/export with one export per format, without the ones whose packages are missing."""
    folder, served = tmp_path_factory.mktemp("run") / "export", build_served()
    options = [ExportOptions("saved_model", "raw"), ExportOptions("tflite", "postprocess_op")]
    options += [ExportOptions(kind, "raw") for kind in ("onnx", "openvino")]
    for option in options:
        for package in {"onnx": ["tf2onnx"], "openvino": ["openvino"]}.get(option.kind, ()):
            pytest.importorskip(package)
        write_export(served, option, draw_images(range(1)), folder / option.kind)
        summary = describe_export(option, DECODER, 64) | {"classes": CLASSES}
        (folder / option.kind / "export.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, Config.model_validate(SETTINGS), {"train": 1, "val": 6}, shards=1, objects=2)
    return folder


def run(*arguments):
    command = [sys.executable, "-m", "ssd_dist.cli.benchmark", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_export_is_measured_in_its_own_runtime(folder, data, tmp_path):
    output = tmp_path / "benchmark.json"
    done = run(f"--model_dir={folder.parent}", f"--data={data}", f"--output={output}", "--runs=8", "--threads=1")
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    rows = {row["format"]: row for row in results["exports"]}
    assert (results["threads"], results["runs"], len(results["machine"])) == (1, 8, 3)
    runtimes = {kind: row["runtime"] for kind, row in rows.items()}
    assert runtimes == {
        "saved_model": "tensorflow", "tflite": "ai-edge-litert", "onnx": "onnxruntime", "openvino": "openvino"
    }  # fmt: skip
    for row in rows.values():
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"│ {row['format']} "))
        ap = f"{row['coco/AP']:.3f}"
        times = [f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms")]
        figures = [f"{row['bytes'] / 1e6:.1f}", *times, f"{row['peak_mib']:.0f}"]
        assert line.strip("│ ").split()[-9::2] == [*figures, ap]
    # Only the SavedModel needs TensorFlow, which takes hundreds of MiB.
    assert max(rows[kind]["peak_mib"] for kind in ("tflite", "onnx")) < 0.6 * rows["saved_model"]["peak_mib"]
    parts = [folder / "openvino" / name for name in ("model.xml", "model.bin")]
    assert rows["openvino"]["bytes"] == sum(part.stat().st_size for part in parts)
    assert rows["tflite"]["bytes"] == (folder / "tflite/model.tflite").stat().st_size
    _, manifest, ground_truths, found = evaluate_export(str(folder / "onnx"), "", "val", [f"data.dir={data}"])
    expected = evaluate_detections(ground_truths, found, manifest.classes).as_dict()
    assert rows["onnx"]["coco/AP"] == expected["coco/AP"]


def test_the_size_of_a_saved_model_excludes_exports_inside_its_folder(tmp_path):
    files = ["saved_model.pb", "fingerprint.pb", "variables/variables.index", "assets/names.txt"]
    others = ["export.json", "anchors.npy", "int8/model.tflite", "old/saved_model.pb", "old/variables/variables.index"]
    for name in (*files, *others):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234567")
    assert list_files(tmp_path) == sorted(tmp_path / name for name in files)


@pytest.mark.slow
def test_an_export_that_cannot_be_run_is_reported(folder, tmp_path):
    for name, content in (("export.json", (folder / "tflite/export.json").read_bytes()), ("model.tflite", b"damaged")):
        (tmp_path / name).write_bytes(content)
    done = run(f"--export={tmp_path}", "--runs=1")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 4
    assert f"{tmp_path}: cannot be run: " in line


def test_data_of_another_size_is_rejected_before_anything_is_measured(folder, tmp_path):
    write_dataset(tmp_path, Config.model_validate(SETTINGS | {"model": {"input_size": 96}}), {"val": 1}, shards=1)
    with pytest.raises(DataError, match=r"prepared with image_size 96, but .*tflite takes 64"):
        export_benchmark.benchmark_exports([folder / "tflite"], 1, 1, str(tmp_path), "val")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --model_dir=RUN"),
        (["--model_dir=a", "--export=b"], "give either --model_dir=RUN"),
        (["--export=a", "--split=val"], "--split has no effect without --data"),
    ],
)
def test_contradictory_flags_are_rejected(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_exports_are_found_at_any_depth_and_once(tmp_path):
    for name in ("tflite/int8", "onnx"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "export.json").write_text("{}")
    expected = [tmp_path / "onnx", tmp_path / "tflite/int8"]
    assert export_benchmark.find_exports([str(tmp_path), str(tmp_path / "onnx")]) == expected
    assert export_benchmark.find_exports([str(tmp_path / "onnx/export.json")]) == [tmp_path / "onnx"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: contains no export; create one with ssd-export"):
        export_benchmark.find_exports([str(tmp_path / "empty")])
    with pytest.raises(CheckpointError, match="onnx: the export is damaged"):
        export_benchmark.benchmark_exports(expected, 1, 1, None, "val")


def test_absolute_and_relative_paths_can_be_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = {
        "runtime": "onnxruntime", "quantize": "none", "outputs": "raw", "bytes": 1, "p50_ms": 1.0, "p95_ms": 1.0,
        "peak_mib": 1.0,
    }  # fmt: skip
    exports = [{"export": str(tmp_path / "one"), **row}, {"export": "two", **row}]
    export_benchmark.print_benchmark({"machine": {"processor": "x"}, "threads": 1, "runs": 1, "exports": exports})
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if "onnxruntime" in line] == ["one", "two"]


def test_noise_is_the_same_for_every_export():
    first, second = (export_benchmark._draw_noise(16, 3) for _ in range(2))
    assert (first.shape, first.dtype) == ((3, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(first, second)
