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
wait_for() { until compgen -G "$STARTS/$1" > /dev/null; do sleep 0.05; done; }
ready() { touch "$STARTS/../ready.$index"; while :; do sleep 0.1; done; }
"""


@pytest.fixture
def launch(tmp_path: Path):
    """Starts the launcher with workers that go on as `behaviour` (bash) says; ends whatever it left running."""
    started: list[subprocess.Popen] = []
    (tmp_path / "starts").mkdir()

    def start(behaviour: str, *flags: str, **variables: str) -> subprocess.Popen:
        worker = tmp_path / "worker"
        worker.write_text(WORKER + behaviour)
        worker.chmod(0o755)
        process = subprocess.Popen(
            [str(LAUNCHER), f"--python={worker}", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={"PATH": os.environ["PATH"], "STARTS": str(tmp_path / "starts"), **variables},
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


def wait_until_ready(folder: Path, count: int = 2) -> None:
    """Returns when that many workers have set their traps."""
    wait_for(lambda: len(list(folder.glob("ready.*"))) == count)


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
    # One that is in the environment is of another run.
    process = launch("exit 0", "--local=1", "--", "--x", TF_CONFIG='{"task": {"index": 0}}')
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert read_starts(tmp_path)[0][1] == ""


@pytest.mark.parametrize(
    ("visible", "listed", "parts"),
    [
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 8, ["4,5", "6,7"]),
        ({}, 4, ["0,1", "2,3"]),
        # No GPUs: nothing is said of them.
        ({}, 0, ["unset", "unset"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8, ["", ""]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 8, ["-1", "-1"]),
    ],
)
def test_local_workers_share_the_gpus(launch, tmp_path: Path, visible: dict, listed: int, parts: list[str]) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/bash\nfor ((i = 0; i < {listed}; i++)); do echo GPU $i: A100; echo '  MIG 1g'; done\n")
    tool.chmod(0o755)
    process = launch('echo "takes ${CUDA_VISIBLE_DEVICES-unset}."', "--local=2", "--", "--x",
                     PATH=f"{tool.parent}:{os.environ['PATH']}", **visible)  # fmt: skip
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 0, said
    assert [f"[worker {index}] takes {part}." in said for index, part in enumerate(parts)] == [True, True], said


def test_gpus_that_do_not_divide_are_told(launch, tmp_path: Path) -> None:
    process = launch("exit 0", "--local=2", "--", "--x", CUDA_VISIBLE_DEVICES="0,1,2")
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 2
    assert said.startswith("error: --local=2: 3 GPUs do not divide")


@pytest.mark.parametrize("code", [2, 3, 4])
def test_a_users_mistake_ends_the_gang_without_restart(launch, tmp_path: Path, code: int) -> None:
    process = launch(f"[[ $index == 1 ]] && wait_for '0.*' && exit {code}; sleep 60", "--local=2", "--", "--x")
    process.communicate(timeout=30)
    assert process.returncode == code
    assert len(read_starts(tmp_path)) == 2
    assert not any(map(is_alive, worker_pids(tmp_path)))


@pytest.mark.parametrize("end", ["exit 75", "kill -KILL $$", "exit 1"])
def test_a_lost_worker_restarts_the_whole_gang(launch, tmp_path: Path, end: str) -> None:
    behaviour = f"[[ $attempt == 1 && $index == 0 ]] && wait_for '1.*' && {end}; [[ $attempt == 1 ]] && exec sleep 60"
    process = launch(f"{behaviour}; exit 0", "--local=2", "--", "--x")
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


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("exit 75", "exit 75", 75),
        ("kill -KILL $$", "exit 0", 75),
        # A bug is told as one, whatever it made of the others.
        ("exit 1", "exit 0", 1),
        ("exit 75", "exit 1", 1),
        # So is what the user can mend, at once.
        ("exit 1", "exit 3", 3),
    ],
)
def test_without_restarts_the_code_is_the_workers(launch, tmp_path: Path, first: str, second: str, code: int) -> None:
    # The second one ends last, after it was told to stop.
    behaviour = f"""
if [[ $index == 0 ]]; then wait_for ../ready.1; {first}; fi
trap '{second}' TERM
ready
"""
    process = launch(behaviour, "--local=2", "--max_restarts=0", "--", "--x")
    said = process.communicate(timeout=30)[0]
    assert process.returncode == code
    assert len(read_starts(tmp_path)) == 2
    assert ("restarts are used up" in said) == (code != 3)


@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_all_workers_and_nothing_is_left(
    launch, tmp_path: Path, number: signal.Signals, to_group: bool
) -> None:
    # A terminal signals the whole process group: what the workers say while they save is still heard.
    behaviour = 'trap "sleep 0.5; echo saved $index; touch $STARTS/../saved.$index; exit 75" TERM; ready'
    process = launch(behaviour, "--local=2", "--", "--x")
    wait_until_ready(tmp_path)
    (os.killpg if to_group else os.kill)(process.pid, number)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 75
    for index in range(2):
        assert f"[worker {index}] saved {index}" in said
        assert (tmp_path / f"saved.{index}").exists()
    assert not any(map(is_alive, worker_pids(tmp_path)))


@pytest.mark.parametrize(("codes", "expected"), [((75, 3), 3), ((0, 0), 0), ((0, 75), 75), ((1, 75), 75)])
def test_after_a_signal_the_code_says_what_it_met(launch, tmp_path: Path, codes: tuple, expected: int) -> None:
    process = launch(f"codes=({codes[0]} {codes[1]}); trap 'exit ${{codes[index]}}' TERM; ready",
                     "--local=2", "--", "--x")  # fmt: skip
    wait_until_ready(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == expected


def test_a_forwarded_signal_comes_once_and_a_later_one_ends_at_once(launch, tmp_path: Path) -> None:
    process = launch("trap 'echo x >> \"$STARTS/../heard.$index\"' TERM; ready", "--local=2", "--", "--x")
    wait_until_ready(tmp_path)
    started = time.monotonic()
    for pause in (0.5, 3.5, 0):
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert time.monotonic() - started < 10
    assert [(tmp_path / f"heard.{index}").read_text() for index in range(2)] == ["x\n", "x\n"]


def test_who_does_not_stop_in_its_grace_is_killed(launch, tmp_path: Path) -> None:
    process = launch("trap '' TERM; ready", "--local=2", "--grace_seconds=1", "--", "--x")
    wait_until_ready(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=15)
    assert process.returncode == 75
    assert not any(map(is_alive, worker_pids(tmp_path)))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_workers_stop_when_their_launcher_is_killed(launch, tmp_path: Path) -> None:
    process = launch('trap "touch $STARTS/../saved.$index; exit 75" TERM; ready', "--local=2", "--", "--x")
    wait_until_ready(tmp_path)
    process.kill()
    wait_for(lambda: len(list(tmp_path.glob("saved.*"))) == 2)
    wait_for(lambda: not any(map(is_alive, worker_pids(tmp_path))))


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
