"""The launcher keeps a gang together. Its workers are stand-ins: tested is who starts, who stops, and the exit code."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[2] / "launch" / "train_multinode.sh"

# Called as the interpreter would be: -m ssd_dist.cli.train FLAGS. Each start leaves a file with what it was given.
WORKER = """#!/usr/bin/env bash
if [[ $1 == - ]]; then exec python3 "$@"; fi
index=$(grep -o '"index": [0-9]*' <<<"${TF_CONFIG:-\\"index\\": 0}" | tr -dc 0-9)
start=$(mktemp "$STARTS/$index.XXXXXX")
{ echo "$$"; echo "${TF_CONFIG:-}"; printf '%s\\n' "$@"; } > "$start"
echo "hello from $index"
attempt=$(ls "$STARTS"/"$index".* | wc -l)
"""


@pytest.fixture
def launch(tmp_path: Path):
    """Starts the launcher with workers that go on as `behaviour` (bash) says; ends whatever it left running."""
    started: list[subprocess.Popen] = []
    (tmp_path / "starts").mkdir()

    def start(behaviour: str, *flags: str) -> subprocess.Popen:
        worker = tmp_path / "worker"
        worker.write_text(WORKER + behaviour)
        worker.chmod(0o755)
        process = subprocess.Popen(
            [str(LAUNCHER), f"--python={worker}", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={"PATH": os.environ["PATH"], "STARTS": str(tmp_path / "starts")},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    for pid in worker_pids(tmp_path):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def read_starts(folder: Path) -> list[list[str]]:
    return [path.read_text().splitlines() for path in sorted((folder / "starts").iterdir())]


def worker_pids(folder: Path) -> list[int]:
    return [int(lines[0]) for lines in read_starts(folder) if lines]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def test_all_workers_share_one_cluster_and_get_the_flags(launch, tmp_path: Path) -> None:
    process = launch("exit 0", "--local=3", "--", "--model_dir=a b", "--set", "train.steps=1")
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 0
    starts = read_starts(tmp_path)
    configs = [json.loads(lines[1]) for lines in starts]
    addresses = configs[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    assert [config["cluster"] for config in configs] == [configs[0]["cluster"]] * 3
    assert sorted(config["task"]["index"] for config in configs) == [0, 1, 2]
    for lines in starts:
        assert lines[2:] == ["-m", "ssd_dist.cli.train", "--model_dir=a b", "--set", "train.steps=1"]
    for index in range(3):
        assert f"[worker {index}] hello from {index}" in said


def test_workers_start_where_the_caller_is_and_find_the_code(launch, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = launch('echo "in $PWD with $PYTHONPATH"', "--local=1", "--", "--config=mine.yaml").communicate(timeout=30)[0]
    assert f"in {tmp_path} with {LAUNCHER.parents[1]}" in said


def test_one_local_worker_needs_no_cluster(launch, tmp_path: Path) -> None:
    process = launch("exit 0", "--local=1", "--", "--x")
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert read_starts(tmp_path)[0][1] == ""


@pytest.mark.parametrize("code", [2, 3, 4])
def test_a_users_mistake_ends_the_gang_without_restart(launch, tmp_path: Path, code: int) -> None:
    process = launch(f"[[ $index == 1 ]] && exit {code}; sleep 60", "--local=2", "--", "--x")
    process.communicate(timeout=30)
    assert process.returncode == code
    assert len(read_starts(tmp_path)) == 2
    assert not any(map(is_alive, worker_pids(tmp_path)))


@pytest.mark.parametrize("end", ["exit 75", "kill -KILL $$", "exit 1"])
def test_a_lost_worker_restarts_the_whole_gang(launch, tmp_path: Path, end: str) -> None:
    process = launch(f"[[ $attempt == 1 && $index == 0 ]] && {end}; [[ $attempt == 1 ]] && exec sleep 60; exit 0",
                     "--local=2", "--", "--x")  # fmt: skip
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 0, said
    assert len(read_starts(tmp_path)) == 4
    assert "restart 1 of 3" in said


def test_restarts_are_bounded(launch, tmp_path: Path) -> None:
    process = launch("exit 75", "--local=2", "--max_restarts=1", "--", "--x")
    process.communicate(timeout=30)
    assert process.returncode == 75
    # A gang may be stopped before its second worker has begun.
    assert 2 <= len(read_starts(tmp_path)) <= 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_workers_and_nothing_is_left(launch, tmp_path: Path, number: signal.Signals) -> None:
    behaviour = 'trap "touch $STARTS/../saved.$index; exit 75" TERM INT; while :; do sleep 0.1; done'
    process = launch(behaviour, "--local=2", "--", "--x")
    wait_for(lambda: len(worker_pids(tmp_path)) == 2)
    time.sleep(0.5)  # for the workers' own traps
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert {path.name for path in tmp_path.glob("saved.*")} == {"saved.0", "saved.1"}
    assert not any(map(is_alive, worker_pids(tmp_path)))


def test_a_forwarded_signal_comes_once(launch, tmp_path: Path) -> None:
    # The trainer takes a second one for "now": it would end without saving.
    behaviour = """
trap 'echo x >> "$STARTS/../heard.$index"' TERM
while [[ ! -e "$STARTS/../heard.$index" ]]; do sleep 0.1; done
for _ in {1..15}; do sleep 0.1; done
exit 75
"""
    process = launch(behaviour, "--local=2", "--", "--x")
    wait_for(lambda: len(worker_pids(tmp_path)) == 2)
    time.sleep(0.5)  # for the workers' own traps
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert [(tmp_path / f"heard.{index}").read_text() for index in range(2)] == ["x\n", "x\n"]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--local=2"], "after --"),
        (["--local=two", "--", "--x"], "--local=two"),
        (["--local=2", "--hosts=a,b", "--", "--x"], "exclude"),
        (["--lokal=2", "--", "--x"], "--lokal=2"),
        (["--", "--x"], "neither --local nor --hosts"),
        (["--local=", "--", "--x"], "--local="),
        (["--hosts=", "--", "--x"], "--hosts="),
        (["--hosts=a,,b", "--", "--x"], "--hosts=a,,b"),
        (["--hosts=a,b,a", "--", "--x"], "each host once"),
        (["--hosts=a", "--port=0", "--", "--x"], "--port=0"),
        (["--hosts=a", "--port=65536", "--", "--x"], "--port=65536"),
        (["--local=2", "--python=/no/python", "--", "--x"], "/no/python"),
    ],
)
def test_wrong_usage_is_one_line(launch, flags: list[str], word: str) -> None:
    process = launch("exit 0", *flags)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 2
    assert word in said
    assert said.count("\n") == 1


def test_slurm_and_kubernetes_become_a_cluster(launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\nprintf 'n1\\nn2\\n'\n")
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    slurm = "SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_JOB_NODELIST=n[1-2]"
    kubernetes = "JOB_COMPLETION_INDEX=0 SSD_DIST_PEERS=2 SSD_DIST_PEER_PATTERN=run-{}.run"
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    for environment in (slurm, kubernetes):
        subprocess.run(
            ["env", *environment.split(), str(LAUNCHER), f"--python={worker}", "--port=1234", "--", "--x"],
            check=True, timeout=30, env={"PATH": os.environ["PATH"], "STARTS": str(tmp_path / "starts")},
        )  # fmt: skip
    found = [json.loads(lines[1]) for lines in read_starts(tmp_path)]
    assert {"cluster": {"worker": ["n1:1234", "n2:1234"]}, "task": {"type": "worker", "index": 1}} in found
    assert {
        "cluster": {"worker": ["run-0.run:1234", "run-1.run:1234"]},
        "task": {"type": "worker", "index": 0},
    } in found


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        # scontrol is missing, or does not know the nodes.
        ("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_NODELIST=n[1-2]", "SLURM_JOB_NODELIST=n[1-2]"),
        ("SLURM_PROCID=0 SLURM_NTASKS=2", "SLURM_JOB_NODELIST="),
        ("JOB_COMPLETION_INDEX=0", "SSD_DIST_PEERS="),
        ("JOB_COMPLETION_INDEX=0 SSD_DIST_PEERS=two SSD_DIST_PEER_PATTERN=run-{}", "SSD_DIST_PEERS=two"),
        ("JOB_COMPLETION_INDEX=0 SSD_DIST_PEERS=2", "SSD_DIST_PEER_PATTERN="),
        ("JOB_COMPLETION_INDEX=0 SSD_DIST_PEERS=2 SSD_DIST_PEER_PATTERN=run", "{} for the index"),
    ],
)
def test_a_wrong_scheduler_environment_is_told(environment: str, word: str) -> None:
    done = subprocess.run(
        ["env", *environment.split(), str(LAUNCHER), "--python=true", "--", "--x"],
        capture_output=True, text=True, timeout=30, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_help_tells_the_flags() -> None:
    done = subprocess.run([str(LAUNCHER), "--help"], capture_output=True, text=True, timeout=30, check=True)
    assert all(flag in done.stdout for flag in ("--local=", "--hosts=", "--port=", "--max_restarts=", "--python="))


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (apt-get install shellcheck)"
)
def test_shell_scripts_are_clean() -> None:
    scripts = sorted(str(path) for path in LAUNCHER.parent.glob("*.sh"))
    subprocess.run(["shellcheck", *scripts], check=True, timeout=60)
