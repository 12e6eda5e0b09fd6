"""Tests which stages run and resume; the stages are replaced, or are small programs."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssd_dist.core.errors import CheckpointError, DataError, NumericsError, RestartError, SsdDistError, UsageError
from ssd_dist.fitting import stages
from ssd_dist.fitting.run_files import FitFiles, FitRequest


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the stages with replacements that write the result of each stage; returns the titles that ran."""
    files = FitFiles(tmp_path / "run")
    results = {
        "survey": files.survey, "choose": files.config, "prepare": files.manifest, "evaluate": files.metrics,
        "export to tflite": files.export("tflite"),
    }  # fmt: skip

    def run_all(request=FitRequest("/data"), fails_at=None, error=RestartError):  # noqa: B008
        ran = []

        def run_stage(title, *arguments, **_):
            ran.append(title)
            run_all.arguments[title] = arguments
            if title == "train":
                # A folder with the config and the manifest is a run that ssd-train resumes.
                assert (files.folder / "dataset.json").read_bytes() == files.manifest.read_bytes()
            if title == fails_at:
                raise error("stopped")
            if title in results:
                results[title].parent.mkdir(parents=True, exist_ok=True)
                results[title].write_text("{}")

        monkeypatch.setattr(stages, "run_stage", run_stage)
        monkeypatch.setattr(stages, "pick_split", lambda _: "val")
        run_all.arguments = {}
        try:
            stages.run_stages(request, str(files.folder), ("tflite",))
        except error:
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


def test_a_second_attempt_before_the_choices_has_the_whole_time_again(run, tmp_path):
    run(FitRequest("/data", minutes=30, started=1000), fails_at="choose")
    run(FitRequest("/data", minutes=30, started=9000), fails_at="prepare")
    run(FitRequest("/data", minutes=30, started=20_000))
    assert FitRequest.read(FitFiles(tmp_path / "run").request).started == 9000


def test_the_folder_of_another_run_is_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("{}")
    with pytest.raises(UsageError, match="is a run of ssd-train; use another --output"):
        run()


def test_a_config_file_that_changed_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("{}")
    run(FitRequest("/data", "mine.yaml", fixed={"train.steps": 3, "train.seed": 1}))
    with pytest.raises(UsageError, match=r"--config=mine.yaml: train.steps, optimizer.lr changed since the run"):
        run(FitRequest("/data", "mine.yaml", fixed={"train.seed": 1, "optimizer.lr": 1.0}))
    assert run(FitRequest("/data", "mine.yaml", fixed={"train.steps": 3, "train.seed": 1})) == []


def test_an_export_that_differs_from_its_checkpoint_is_made_again(run, tmp_path):
    run()
    FitFiles(tmp_path / "run").export("tflite").write_text(json.dumps({"accepted": False}))
    assert run() == ["export to tflite"]
    assert run() == []


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


def test_a_dataset_that_was_corrected_after_an_error_is_surveyed_again(run):
    assert run(fails_at="choose", error=DataError) == ["survey", "choose"]
    assert run() == ALL


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


@pytest.mark.parametrize("content", ['{"inp', "[]", '{"input": "x"}', '{"input": "/data", "overrides": [], "new": 1}'])
def test_a_damaged_request_is_reported(run, tmp_path, content):
    run()
    FitFiles(tmp_path / "run").request.write_text(content)
    with pytest.raises(CheckpointError, match=r"request\.json is damaged .*; restore it, or use another --output"):
        run()


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


@pytest.mark.parametrize(
    ("number", "kind", "word"),
    [
        (signal.SIGKILL, UsageError, "prepare: killed by SIGKILL, .*if memory is exhausted; end other programs$"),
        (signal.SIGSEGV, SsdDistError, "prepare: killed by SIGSEGV"),
        (signal.SIGHUP, RestartError, "prepare: interrupted"),
    ],
)
def test_only_a_signal_to_stop_is_an_interruption(tmp_path, monkeypatch, number, kind, word):
    (tmp_path / "stage.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SsdDistError, match=word) as error:
        stages.run_stage("prepare", "stage")
    assert type(error.value) is kind
    assert error.value.exit_code == kind.exit_code


def test_a_package_in_the_current_folder_does_not_replace_that_of_a_stage(tmp_path, monkeypatch):
    for name in ("pipelines", "absl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    stages.run_stage("prepare", "pipelines.prepare", "--help", is_quiet=True)


@pytest.mark.parametrize(
    ("flag", "added"),
    [("--image_dir", True), ("(--split=val)", True), ("--set", False), ("/data/site--split_by", False)],
)
def test_an_error_that_names_a_flag_of_the_stage_shows_a_way_out(tmp_path, monkeypatch, flag, added):
    (tmp_path / "stage.py").write_text(
        "import sys\n"
        "from ssd_dist.core import errors\n"
        "def main():\n"
        f"    raise errors.DataError('no image; pass it as {flag}')\n"
        "sys.exit(errors.exit_with_message(main))\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(stages.__file__).parents[2]}")
    with pytest.raises(DataError, match=re.escape(f"no image; pass it as {flag}")) as error:
        stages.run_stage("prepare", "stage")
    assert ("ssd-fit has no such flag" in str(error.value)) == added


def test_the_error_about_the_run_folder_names_the_flag(tmp_path):
    with pytest.raises(UsageError, match=r"--output=gs://B/run is on an object store"):
        stages.run_stages(FitRequest("/data"), "gs://B/run", ())


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
