"""Tests which stages run and resume; the stages are replaced, or are small programs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ssd_dist
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config
from ssd_dist.core.errors import CheckpointError, DataError, NumericsError, RestartError, SsdDistError, UsageError
from ssd_dist.fitting import fit_dataset, stages
from ssd_dist.fitting.results_table import print_results, print_table, print_training_results
from ssd_dist.fitting.run_files import FitFiles, FitRequest


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the stages with replacements that write the result of each stage; returns the titles that ran."""
    files = FitFiles(tmp_path / "run")
    results = {
        "survey": files.survey, "choose": files.config, "prepare": files.manifest, "evaluate": files.metrics,
        "export to tflite": files.export("tflite"),
    }  # fmt: skip

    def run_all(request=FitRequest("/data"), fails_at=None):  # noqa: B008
        ran = []

        def run_stage(title, *arguments, **_):
            ran.append(title)
            run_all.arguments[title] = arguments
            if title == "train":
                # A folder with the config and the manifest is a run that ssd-train resumes.
                assert (files.folder / "dataset.json").read_bytes() == files.manifest.read_bytes()
            if title == fails_at:
                raise RestartError("interrupted")
            if title in results:
                results[title].parent.mkdir(parents=True, exist_ok=True)
                results[title].write_text("{}")

        monkeypatch.setattr(stages, "run_stage", run_stage)
        monkeypatch.setattr(stages, "pick_split", lambda _: "val")
        run_all.arguments = {}
        try:
            stages.run_stages(request, str(files.folder), ("tflite",))
        except RestartError:
            assert fails_at
        return ran

    return run_all


ALL = ["survey", "choose", "prepare", "train", "evaluate", "export to tflite"]


def test_every_stage_runs_once(run):
    assert run() == ALL
    assert run() == []


@pytest.mark.parametrize("stage", ALL)
def test_an_interrupted_run_resumes_with_the_stage_that_was_interrupted(run, stage):
    assert run(fails_at=stage) == ALL[: ALL.index(stage) + 1]
    # An interrupted evaluation starts the trainer again, which finds its last step done.
    assert run() == ALL[ALL.index("train" if stage == "evaluate" else stage) :]


def test_an_interrupted_prepare_keeps_its_finished_shards(run):
    run(fails_at="prepare")
    run()
    assert "--resume" in run.arguments["prepare"]


@pytest.mark.parametrize(("evaluates", "checkpoint"), [(True, "best"), (False, "last")])
def test_the_best_checkpoint_is_evaluated_and_exported_or_else_the_last_one(run, tmp_path, evaluates, checkpoint):
    if evaluates:
        (tmp_path / "run/best").mkdir(parents=True)
        (tmp_path / "run/best/best.json").write_text("{}")
    run()
    for title in ("evaluate", "export to tflite"):
        assert f"--checkpoint={checkpoint}" in run.arguments[title]


def test_a_corrected_command_can_use_the_folder_of_one_that_failed_before_the_choices(run, tmp_path):
    assert run(FitRequest("/wrong"), fails_at="choose") == ["survey", "choose"]
    # The survey is that of the other input.
    assert run(FitRequest("/data"), fails_at="choose") == ["survey", "choose"]
    assert run(FitRequest("/data", overrides=("train.seed=1",))) == ALL[1:]
    assert FitRequest.read(FitFiles(tmp_path / "run").request).input == "/data"


def test_another_request_is_refused_in_the_folder_of_a_run(run):
    run()
    for other, difference in (
        (FitRequest("/other"), "--input: /data, now it is /other"),
        (
            FitRequest("/data", overrides=("train.seed=1", "train.steps=2")),
            "--set: none, now it is train.seed=1, train.steps=2",
        ),
        (FitRequest("/data", minutes=3), "--minutes: none, now it is 3"),
    ):
        with pytest.raises(UsageError, match=f"was started with {difference};"):
            run(other)


@pytest.mark.parametrize(
    ("formats", "overrides", "word"),
    [(["onxx"], (), "--export=onxx"), ([], ("train.stepz=3",), "did you mean train.steps")],
)
def test_mistakes_are_reported_before_the_first_stage(tmp_path, formats, overrides, word):
    with pytest.raises(UsageError, match=word):
        stages.run_stages(FitRequest("/data", overrides=overrides), str(tmp_path / "run"), formats)
    assert not (tmp_path / "run").exists()


def test_a_second_command_in_the_folder_ends_at_once_and_changes_nothing(tmp_path, run):
    first = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ssd_dist.fitting.fit_lock import lock_fit_folder\n"
        "with lock_fit_folder(Path('run')):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    second = [sys.executable, "-m", "ssd_dist.cli.fit", "--input=data", "--output=run"]
    environment = os.environ | {"PYTHONPATH": str(Path(stages.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", first], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        done = subprocess.run(second, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
        with pytest.raises(UsageError, match="another ssd-fit works in this folder"):
            run()
        process.stdin.close()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --output=run: another ssd-fit works in this folder (host ")
    assert f"process {process.pid})" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run/fit/request.json").exists()
    # The lock ends with its process.
    assert run() == ALL


def test_a_failed_stage_gives_its_exit_code(tmp_path, monkeypatch):
    (tmp_path / "stage_3.py").write_text("raise SystemExit(3)")
    (tmp_path / "stage_75.py").write_text("raise SystemExit(75)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SsdDistError, match="prepare: failed") as error:
        stages.run_stage("prepare", "stage_3")
    assert error.value.exit_code == 3
    with pytest.raises(RestartError, match="run the same command again"):
        stages.run_stage("prepare", "stage_75")


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("kind", [UsageError, DataError, CheckpointError, NumericsError, RestartError])
def test_the_error_of_a_stage_is_raised_with_its_type_and_message_and_not_printed(
    tmp_path, monkeypatch, capfd, kind, stopped
):
    (tmp_path / "stage.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "from ssd_dist.core import errors\n"
        "def main():\n"
        "    assert 'SSD_DIST_ERROR_FILE' not in os.environ\n"
        f"    {'os.kill(os.getppid(), 15); import time; time.sleep(0.5)' * stopped or 'pass'}\n"
        # With a type of its own, as the error of an image has.
        f"    raise type('OwnError', (errors.{kind.__name__},), {{}})('no image\\nin /data')\n"
        "sys.exit(errors.exit_with_message(main))\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(stages.__file__).parents[2]}")
    with pytest.raises(SsdDistError) as error:
        stages.run_stage("prepare", "stage")
    assert type(error.value) is kind
    assert (str(error.value), error.value.exit_code) == ("prepare: no image in /data", kind.exit_code)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_arrives_once_in_the_stage_which_may_finish(tmp_path, number):
    (tmp_path / "stage.py").write_text(
        "import signal, sys, time\n"
        "got = []\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, lambda number, _: got.append(number))\n"
        "print('ready', flush=True)\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "print(got, flush=True)\n"
        "sys.exit(75)\n"
    )
    program = (
        "import sys\n"
        "from ssd_dist.core.errors import exit_with_message\n"
        "from ssd_dist.fitting.stages import run_stage\n"
        "sys.exit(exit_with_message(lambda: run_stage('train', 'stage')))"
    )
    root = Path(stages.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}
    # A session of its own, so that the signal goes to a whole process group, as Ctrl-C in a terminal does.
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["--- train\n", "ready\n"]
        os.killpg(process.pid, number)
        assert process.stdout.read() == f"[{int(number)}]\n"
        assert process.wait() == 75


def test_a_signal_between_two_stages_ends_the_command_with_the_restart_code(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "prepare_data", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RestartError, match="stopped by SIGTERM; run the same command again"):
        stages.run_stages(FitRequest("/data"), str(tmp_path / "run"), ())
    assert signal.getsignal(signal.SIGTERM) is before


def test_keyword_arguments_are_the_values_of_the_flags(tmp_path, monkeypatch):
    requests = []

    def run_stages(request, output, formats):
        requests.append((request, tuple(formats)))
        return FitFiles(Path(output))

    monkeypatch.setattr(fit_dataset, "run_stages", run_stages)
    monkeypatch.setattr(fit_dataset, "pick_split", lambda _: "val")
    monkeypatch.setattr(fit_dataset, "print_results", lambda *_: None)
    folder = ssd_dist.fit("data", tmp_path, minutes=3, export=["onnx"], train__steps=4, **{"anchors.sizes": [1, 2]})
    ((request, formats),) = requests
    assert (folder, formats, request.minutes) == (tmp_path, ("onnx",), 3)
    assert request.input == os.path.abspath("data")
    assert request.overrides == ("train.steps=4", "anchors.sizes=[1, 2]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"minutes": "3"}, "minutes='3': must be a number of at least 1, or None"),
        ({"minutes": 0.5}, "minutes=0.5: must be"),
        ({"minutes": float("nan")}, "minutes=nan: must be"),
        ({"minutes": True}, "minutes=True: must be"),
        ({"export": "tflite"}, "export='tflite': is one format; give a list: ['tflite']"),
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
    files.folder.mkdir()
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
