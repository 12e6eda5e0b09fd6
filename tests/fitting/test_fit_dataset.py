"""Tests `ssd_dist.fit` and the table at the end of `ssd-fit`; the stages are replaced."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

import ssd_dist
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config
from ssd_dist.core.errors import UsageError
from ssd_dist.fitting import fit_dataset, stages
from ssd_dist.fitting.results_table import print_results, print_table, print_training_results
from ssd_dist.fitting.run_files import FitFiles


def test_keyword_arguments_are_the_values_of_the_flags(tmp_path, monkeypatch, capsys):
    requests = []

    def run_stages(request, output, formats):
        requests.append((request, tuple(formats)))
        return FitFiles(Path(output))

    monkeypatch.setattr(fit_dataset, "run_stages", run_stages)
    monkeypatch.setattr(fit_dataset, "pick_split", lambda _: "val")
    monkeypatch.setattr(fit_dataset, "print_results", lambda *_: None)
    config, sizes = tmp_path / "mine.yaml", [1, 2, 3, 4, 5, 6, 7]
    config.write_text("train: {seed: 5}")
    weights = tmp_path / "🐟.h5"
    folder = ssd_dist.fit(
        "data", tmp_path, config=config, minutes=3, export=["onnx"], train__steps=4, backbone__weights=weights,
        **{"anchors.sizes": sizes},
    )  # fmt: skip
    ((request, formats),) = requests
    assert (folder, formats, request.minutes) == (tmp_path, ("onnx",), 3)
    assert (request.input, request.config) == (os.path.abspath("data"), str(config))
    assert request.overrides == ("train.steps=4", f'backbone.weights="{weights}"', f"anchors.sizes={sizes}")
    fixed = {"train.seed": 5, "train.steps": 4, "backbone.weights": str(weights), "anchors.sizes": sizes}
    assert request.fixed == fixed
    assert "--minutes=3 does not limit the training, because train.steps is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"minutes": "3"}, "minutes='3': must be a number of at least 1; without a limit, omit it"),
        ({"minutes": 0.5}, "minutes=0.5: must be"),
        ({"minutes": float("nan")}, "minutes=nan: must be"),
        ({"minutes": float("inf")}, "minutes=inf: must be"),
        ({"minutes": True}, "minutes=True: must be"),
        ({"export": None}, "export=None: must be a list of formats, e.g. ['tflite']; [] for none"),
        ({"train__steps": {1}}, "train__steps: "),
        ({"export": "tflite"}, "export='tflite': must be a list of formats, e.g. ['tflite']"),
        ({"data__dir": "/big/disk"}, "--set data.dir: the shards are written to "),
        ({"export": ["tflight"]}, "--export=tflight: unknown format"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_stage(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        ssd_dist.fit("data", tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({}, ["--format=onnx"]),
        # Such a detector can only be exported in the arithmetic that it was trained for.
        ({"aware": True}, ["--format=tflite", "--quantize=int8", "--outputs=postprocess_op"]),
        (
            {"aware": True, "per_tensor": True},
            ["--format=tflite", "--quantize=int8", "--outputs=postprocess_op", "--per_tensor"],
        ),
    ],
)
def test_the_printed_commands_can_be_pasted_into_a_shell(tmp_path, capsys, quantization, expected):
    files = FitFiles(tmp_path / "my run")
    (files.folder / "best").mkdir(parents=True)
    (files.folder / "best/best.json").write_text("{}")
    config = Config.model_validate({"quantization": quantization, "model": {"init_from": "/a/run"}})
    files.config.write_text(dump_config(config))
    files.metrics.write_text(json.dumps({"coco/AP50": 0.5, "coco/AP": 0.3, "analysis": {"operating_points": {}}}))
    summary = files.export("tflite")
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"file": "model.tflite", "bytes": 10}))
    print_results(files, ("tflite",), "val")
    printed = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in printed if line.startswith("  ssd-predict")]
    models = [f"--model_dir={files.folder}", f"--export={summary.parent}"]
    assert [command[1:3] for command in commands] == [[model, f"--score_threshold={files.metrics}"] for model in models]
    (export,) = (shlex.split(line) for line in printed if line.startswith("  ssd-export"))
    assert export[1:-1] == [f"--model_dir={files.folder}", *expected]
    (files.folder / "best/best.json").unlink()
    print_results(files, ("tflite",), "val")
    printed = capsys.readouterr().out
    # The two commands that use the run.
    assert printed.count(f"--model_dir={files.folder}' --checkpoint=last ") == 2
    assert printed.count("--checkpoint") == 2


METRICS = {"coco/AP50": 0.51, "coco/AP": 0.32, "analysis": {"operating_points": {}}}


def test_the_table_compares_small_sets_of_one_class_with_one_constant_box(tmp_path, capsys):
    print_table(tmp_path, "val", METRICS | {"constant_box": {"coco/AP50": 0.41, "coco/AP": 0.22}}, [])
    assert re.search(r"the same box on every image +│ AP50 0.410, AP 0.220 ", capsys.readouterr().out)
    print_table(tmp_path, "val", METRICS | {"constant_box": None}, [])
    assert "same box" not in capsys.readouterr().out


@pytest.mark.parametrize(("evaluated", "checkpoint"), [(True, []), (False, ["--checkpoint=last"])])
def test_training_ends_with_its_metrics_its_files_and_commands(tmp_path, capsys, evaluated, checkpoint):
    files = FitFiles(tmp_path / "run")
    (files.folder / "best").mkdir(parents=True)
    files.config.write_text(dump_config(Config()))
    if evaluated:
        (files.folder / "best/best.json").write_text("{}")
    print_training_results(str(files.folder), "val", METRICS if evaluated else None)
    printed = capsys.readouterr().out
    assert bool(re.search(r"metrics on val +│ COCO AP50 +│ 0.510 ", printed)) == evaluated
    assert re.search(r"│ config.yaml +│ the config, with all choices ", printed)
    assert "checkpoints " not in printed
    predict, export = (shlex.split(line) for line in printed.splitlines() if line.startswith("  ssd-"))
    assert predict[:2] == ["ssd-predict", f"--model_dir={files.folder}"]
    assert export[:2] == ["ssd-export", f"--model_dir={files.folder}"]
    assert [predict[2:-2], export[2:-2]] == [checkpoint, checkpoint]


def test_the_table_cuts_no_name_off_in_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    name = "export/a_long_name_of_an_export/model.tflite"
    print_table(tmp_path, "val", None, [(name, "the export")])
    printed = capsys.readouterr().out
    cells = "".join(line.split("│")[2].strip() for line in printed.splitlines() if line.startswith("│"))
    assert cells == name


def test_a_partly_written_result_counts_as_missing(tmp_path):
    path = tmp_path / "metrics.json"
    assert stages.read_json(path) is None
    path.write_text('{"coco/AP": 0.')
    assert stages.read_json(path) is None
    path.write_text(json.dumps({"coco/AP": 0.5}))
    assert stages.read_json(path) == {"coco/AP": 0.5}
