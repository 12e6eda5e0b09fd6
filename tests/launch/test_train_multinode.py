"""The launcher with fake workers: which workers start, which are stopped, and the exit code."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[2] / "launch" / "train_multinode.sh"

# A fake Python interpreter, called with -m ssd_dist.cli.train FLAGS. Each start writes a file with its arguments.
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
    """Returns a function that starts the launcher; `behavior` is the bash code of the fake workers."""
    started: list[subprocess.Popen] = []
    (tmp_path / "starts").mkdir()

    def start(behavior: str, *flags: str, **variables: str) -> subprocess.Popen:
        worker = tmp_path / "worker"
        worker.write_text(WORKER + behavior)
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
        process.stdout.close()
    for pid in worker_pids(tmp_path):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def read_starts(folder: Path) -> list[list[str]]:
    return [path.read_text().splitlines() for path in sorted((folder / "starts").iterdir())]


def worker_pids(folder: Path) -> list[int]:
    return [int(lines[0]) for lines in read_starts(folder) if lines]


def wait_until_ready(folder: Path, count: int = 2) -> None:
    """Waits until that many workers have set their traps."""
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
    output = process.communicate(timeout=30)[0]
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
        assert f"[worker {index}] hello from {index}" in output


def test_workers_run_in_the_current_folder_and_find_the_package(launch, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = launch('echo "in $PWD with $PYTHONPATH"', "--local=1", "--", "--config=mine.yaml").communicate(timeout=30)[
        0
    ]
    assert f"in {tmp_path} with {LAUNCHER.parents[1]}" in output


def test_one_local_worker_gets_no_tf_config(launch, tmp_path: Path) -> None:
    # A TF_CONFIG in the environment belongs to another run.
    process = launch("exit 0", "--local=1", "--", "--x", TF_CONFIG='{"task": {"index": 0}}')
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert read_starts(tmp_path)[0][1] == ""


@pytest.mark.parametrize(
    ("visible", "listed", "parts"),
    [
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 8, ["4,5", "6,7"]),
        ({}, 4, ["0,1", "2,3"]),
        # Without GPUs the variable is not set.
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
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0, output
    assert [f"[worker {index}] takes {part}." in output for index, part in enumerate(parts)] == [True, True], output


def test_gpus_that_cannot_be_divided_are_reported(launch, tmp_path: Path) -> None:
    process = launch("exit 0", "--local=2", "--", "--x", CUDA_VISIBLE_DEVICES="0,1,2")
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 2
    assert output.startswith("error: --local=2: 3 GPUs cannot be divided")


@pytest.mark.parametrize("code", [2, 3, 4])
def test_a_user_error_stops_all_workers_without_restart(launch, tmp_path: Path, code: int) -> None:
    process = launch(f"[[ $index == 1 ]] && wait_for '0.*' && exit {code}; sleep 60", "--local=2", "--", "--x")
    process.communicate(timeout=30)
    assert process.returncode == code
    assert len(read_starts(tmp_path)) == 2
    assert not any(map(is_alive, worker_pids(tmp_path)))


@pytest.mark.parametrize("end", ["exit 75", "kill -KILL $$", "exit 1"])
def test_a_lost_worker_restarts_all_workers(launch, tmp_path: Path, end: str) -> None:
    behavior = f"[[ $attempt == 1 && $index == 0 ]] && wait_for '1.*' && {end}; [[ $attempt == 1 ]] && exec sleep 60"
    process = launch(f"{behavior}; exit 0", "--local=2", "--", "--x")
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0, output
    assert len(read_starts(tmp_path)) == 4
    assert "restart 1 of 3" in output


@pytest.mark.parametrize(("codes", "expected"), [("255", 2), ("75 255", 75), ("lost 255", 75)])
def test_hosts_that_ssh_never_reaches_are_an_error_of_the_user(
    launch, tmp_path: Path, codes: str, expected: int
) -> None:
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    # The exit codes of the attempts, of which the last one is repeated.
    ssh.write_text(f"""#!/usr/bin/env bash
codes=({codes})
echo >> {tmp_path}/attempts
attempt=$(wc -l < {tmp_path}/attempts)
code=${{codes[attempt <= ${{#codes[@]}} ? attempt - 1 : -1]}}
# A connection that is lost later.
if [[ $code == lost ]]; then sleep 21; code=255; fi
exit "$code"
""")
    ssh.chmod(0o755)
    variables = {"PATH": f"{ssh.parent}:{os.environ['PATH']}"}
    process = launch("exit 1", "--hosts=a", "--max_restarts=1", "--", "--x", **variables)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == expected
    assert ("ssh failed in every attempt; check the names of the hosts" in output) == (expected == 2)


@pytest.mark.parametrize("code", [126, 127])
def test_a_missing_interpreter_is_an_error_of_the_user(launch, tmp_path: Path, code: int) -> None:
    process = launch(f"exit {code}", "--local=2", "--", "--x")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "a worker could not be started: install the package, or pass --python" in output


def test_an_exported_cdpath_does_not_change_the_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-x", "launch/train_multinode.sh", "--help"],
        cwd=LAUNCHER.parents[1], capture_output=True, text=True, env=os.environ | {"CDPATH": "."},
    )  # fmt: skip
    assert f"+ root={LAUNCHER.parents[1]}\n" in done.stderr


def test_the_number_of_restarts_is_limited(launch, tmp_path: Path) -> None:
    process = launch("exit 75", "--local=2", "--max_restarts=1", "--", "--x")
    process.communicate(timeout=30)
    assert process.returncode == 75
    # The launcher may stop the second worker before it has started.
    assert 2 <= len(read_starts(tmp_path)) <= 4


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("exit 75", "exit 75", 75),
        ("kill -KILL $$", "exit 0", 75),
        # A bug takes precedence over an interruption.
        ("exit 1", "exit 0", 1),
        ("exit 75", "exit 1", 1),
        # A user error takes precedence over a bug and is reported at once.
        ("exit 1", "exit 3", 3),
    ],
)
def test_without_restarts_the_exit_code_is_that_of_a_worker(
    launch, tmp_path: Path, first: str, second: str, code: int
) -> None:
    # The second worker ends last, after SIGTERM.
    behavior = f"""
if [[ $index == 0 ]]; then wait_for ../ready.1; {first}; fi
trap '{second}' TERM
ready
"""
    process = launch(behavior, "--local=2", "--max_restarts=0", "--", "--x")
    output = process.communicate(timeout=30)[0]
    assert process.returncode == code
    assert len(read_starts(tmp_path)) == 2
    assert ("restarts are used up" in output) == (code != 3)


@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_all_workers_and_no_process_is_left(
    launch, tmp_path: Path, number: signal.Signals, to_group: bool
) -> None:
    # A terminal signals the whole process group; the output of workers that save must still be printed.
    behavior = 'trap "sleep 0.5; echo saved $index; touch $STARTS/../saved.$index; exit 75" TERM; ready'
    process = launch(behavior, "--local=2", "--", "--x")
    wait_until_ready(tmp_path)
    (os.killpg if to_group else os.kill)(process.pid, number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 75
    for index in range(2):
        assert f"[worker {index}] saved {index}" in output
        assert (tmp_path / f"saved.{index}").exists()
    assert not any(map(is_alive, worker_pids(tmp_path)))


@pytest.mark.parametrize(("codes", "expected"), [((75, 3), 3), ((0, 0), 0), ((0, 75), 75), ((1, 75), 75)])
def test_the_exit_code_after_a_signal(launch, tmp_path: Path, codes: tuple, expected: int) -> None:
    process = launch(f"codes=({codes[0]} {codes[1]}); trap 'exit ${{codes[index]}}' TERM; ready",
                     "--local=2", "--", "--x")  # fmt: skip
    wait_until_ready(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == expected


def test_a_repeated_signal_is_forwarded_once_and_a_later_one_kills_the_workers(launch, tmp_path: Path) -> None:
    process = launch("trap 'echo x >> \"$STARTS/../received.$index\"' TERM; ready", "--local=2", "--", "--x")
    wait_until_ready(tmp_path)
    started = time.monotonic()
    for pause in (0.5, 3.5, 0):
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert time.monotonic() - started < 10
    assert [(tmp_path / f"received.{index}").read_text() for index in range(2)] == ["x\n", "x\n"]


def test_workers_that_do_not_stop_in_the_grace_time_are_killed(launch, tmp_path: Path) -> None:
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
def test_wrong_usage_is_reported_in_one_line(launch, flags: list[str], word: str) -> None:
    process = launch("exit 0", *flags)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 2
    assert word in output
    assert output.count("\n") == 1


def test_the_cluster_is_read_from_slurm_and_kubernetes(launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        # scontrol is not installed here.
        ("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_NODELIST=n[1-2]", "SLURM_JOB_NODELIST=n[1-2]"),
        ("SLURM_PROCID=0 SLURM_NTASKS=2", "SLURM_JOB_NODELIST="),
        ("JOB_COMPLETION_INDEX=0", "SSD_DIST_PEERS="),
        ("JOB_COMPLETION_INDEX=0 SSD_DIST_PEERS=two SSD_DIST_PEER_PATTERN=run-{}", "SSD_DIST_PEERS=two"),
        ("JOB_COMPLETION_INDEX=0 SSD_DIST_PEERS=2", "SSD_DIST_PEER_PATTERN="),
        ("JOB_COMPLETION_INDEX=0 SSD_DIST_PEERS=2 SSD_DIST_PEER_PATTERN=run", "{} for the index"),
    ],
)
def test_an_invalid_scheduler_environment_is_reported(environment: str, word: str) -> None:
    done = subprocess.run(
        ["env", *environment.split(), str(LAUNCHER), "--python=true", "--", "--x"],
        capture_output=True, text=True, timeout=30, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(("variables", "port"), [({}, "12345"), ({"SSD_DIST_PORT": "2345"}, "2345")])
def test_the_slurm_job_passes_its_port_to_the_launcher(variables: dict[str, str], port: str, tmp_path: Path) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "srun").chmod(0o755)
    done = subprocess.run(
        ["bash", str(LAUNCHER.parent / "train" / "train.slurm"), "--model_dir=RUN"],
        capture_output=True, text=True, timeout=30, check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "1", **variables},
    )  # fmt: skip
    arguments = done.stdout.splitlines()
    launcher, end = arguments.index("launch/train_multinode.sh"), arguments.index("--")
    assert arguments[launcher + 1 : end] == [f"--port={port}"]
    assert arguments[-1] == "--model_dir=RUN"


def test_help_lists_the_flags() -> None:
    done = subprocess.run([str(LAUNCHER), "--help"], capture_output=True, text=True, timeout=30, check=True)
    assert all(flag in done.stdout for flag in ("--local=", "--hosts=", "--port=", "--max_restarts=", "--python="))


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (apt-get install shellcheck)"
)
def test_shellcheck_accepts_the_scripts() -> None:
    scripts = sorted(str(path) for path in LAUNCHER.parent.glob("*.sh"))
    subprocess.run(["shellcheck", *scripts], check=True, timeout=60)
