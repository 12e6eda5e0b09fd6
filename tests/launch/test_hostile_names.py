"""Host names, arguments and environment variables with the syntax of a shell never run a command.

A fake `ssh` records its arguments and input, and runs the remote command in the local POSIX shell, as sshd does.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[2] / "launch" / "train_multinode.sh"
DATAFLOW = LAUNCHER.with_name("prepare_dataflow.sh")

SSH = """#!/bin/bash
record=$(mktemp "$RECORDS/ssh.XXXXXX")
printf '%s\\0' "$@" > "$record"
exec /bin/sh -c "${!#}"
"""
# A fake Python interpreter; records TF_CONFIG, the secret and its arguments, and prints what it is asked to print.
WORKER = """#!/bin/bash
if [[ $1 == - ]]; then exec python3 "$@"; fi
record=$(mktemp "$RECORDS/worker.XXXXXX")
printf '%s\\0' "$TF_CONFIG" "$SSD_DIST_SECRET" "$@" > "$record"
printf '%s' "$OUTPUT"
"""
# Many of them would create the file `hit` in the current folder if a shell, ssh, sed or arithmetic interpreted them.
HOSTILE = [
    "-oProxyCommand=touch hit", "-oProxyCommand=touch${IFS}hit", "--", "-w", "a;touch hit", "a&touch hit",
    "a|touch hit", "$(touch hit)", "`touch hit`", "${IFS}", "a b", " a", "a ", "a\tb", "a\nb", "a\n", "\na", "a\rb",
    "\x1b[31ma", "a'b", 'a"b', "a\\b", "a/b", "a/;e touch hit;s/x", "s/^/x/e", "a*", "a?", "[a]", "{a}", "~root",
    "a%b", "a$", "a#b", "a!b", "a<b", "a>b", "x@", "@a", "x@y@a", "-x@a", "x y@a", "x@-a", "$(touch hit)@a", "a:1",
    "::1", "[::1", "[::1]:22", "[]", "[:", "a.", "a-", ".a", "_a", "é", "ａ", "a\u2028b", "a[$(touch hit)]",
]  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Returns an environment whose `ssh` and `worker` are fakes that write to the folder `records`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "records").mkdir()
    for name, text in (("ssh", SSH), ("worker", WORKER)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {"PATH": path, "RECORDS": str(tmp_path / "records"), "LANG": "C.UTF-8"}


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=folder, env=environment, stdin=subprocess.DEVNULL
    )


def launch(flag: str, folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(LAUNCHER), flag, f"--python={folder / 'bin' / 'worker'}", "--max_restarts=0", "--", *arguments]
    return run(command, folder, environment)


def read_records(folder: Path, kind: str) -> list[list[str]]:
    """Returns what each start of ssh or of a worker has recorded."""
    return [path.read_bytes().decode().split("\0")[:-1] for path in sorted((folder / "records").glob(f"{kind}.*"))]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_host_name_is_refused_in_one_line(name: str, tmp_path: Path, environment) -> None:
    done = launch(f"--hosts=good,{name}", tmp_path, environment, "--x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --hosts=good,")
    assert done.stderr.count("\n") == 1
    assert not any(ord(character) < 32 for character in done.stderr[:-1])
    assert done.stdout == ""
    # Neither ssh nor a worker was started, and no command ran.
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "records"}
    assert not list((tmp_path / "records").iterdir())


def test_hosts_are_passed_to_ssh_after_the_end_of_its_options(tmp_path: Path, environment) -> None:
    hosts = ["node-1", "node_2.example.org", "10.0.0.3", "me@node-4", "[2001:db8::5]", "me.too@[::1]"]
    done = launch(f"--hosts={','.join(hosts)}", tmp_path, environment, "--x")
    assert done.returncode == 0, done.stderr
    targets = set()
    for arguments in read_records(tmp_path, "ssh"):
        *options, end, target, _ = arguments
        assert end == "--"
        assert all(option.startswith(("-o", "BatchMode=", "ServerAlive")) for option in options)
        targets.add(target)
    # ssh expects IPv6 addresses without brackets; TensorFlow expects them with brackets.
    assert targets == {"node-1", "node_2.example.org", "10.0.0.3", "me@node-4", "2001:db8::5", "me.too@::1"}
    configs = [json.loads(record[0]) for record in read_records(tmp_path, "worker")]
    names = ["node-1", "node_2.example.org", "10.0.0.3", "node-4", "[2001:db8::5]", "[::1]"]
    assert [config["cluster"]["worker"] for config in configs] == [[f"{name}:12345" for name in names]] * 6
    assert sorted(config["task"]["index"] for config in configs) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("flag", ["--hosts=a,b", "--local=2"])
def test_arguments_and_output_of_the_workers_stay_unchanged(flag: str, tmp_path: Path, environment) -> None:
    arguments = [f"--set=x={text}" for text in HOSTILE]
    arguments += ["", "'", "''", "\\", "a\\nb", "%s%d", "--model_dir=a b'c\"$HOME\n"]
    lines = [r"100 % \x41 \1 & /x/ $(touch hit) %s '\'", "", "é \x1b[31m", "the last line, without an end"]
    done = launch(flag, tmp_path, environment | {"OUTPUT": "\n".join(lines)}, *arguments)
    assert done.returncode == 0, done.stderr
    records = read_records(tmp_path, "worker")
    assert [record[2:] for record in records] == [["-m", "ssd_dist.cli.train", *arguments]] * 2
    labels = ["a", "b"] if flag == "--hosts=a,b" else ["worker 0", "worker 1"]
    assert sorted(done.stdout.splitlines()) == sorted(f"[{label}] {line}" for label in labels for line in lines)
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("flag", ["--hosts=a,b", "--local=2"])
@pytest.mark.parametrize("given", [None, 'it\'s $(touch hit) \\x41 `touch hit` "%s" é'])
def test_workers_get_one_secret_that_is_on_no_command_line(flag, given, tmp_path: Path, environment) -> None:
    variables = {} if given is None else {"SSD_DIST_SECRET": given}
    secrets = []
    for _ in range(2):
        for path in (tmp_path / "records").iterdir():
            path.unlink()
        done = launch(flag, tmp_path, environment | variables, "--x")
        assert done.returncode == 0, done.stderr
        first, second = read_records(tmp_path, "worker")
        assert first[1] == second[1]
        secrets.append(first[1])
        for record in (first[2:], second[2:], *read_records(tmp_path, "ssh"), [done.stdout + done.stderr]):
            assert not any(first[1] in text for text in record)
    assert not (tmp_path / "hit").exists()
    if given is not None:
        assert secrets == [given] * 2
        return
    assert [len(bytes.fromhex(secret)) for secret in secrets] == [32, 32]
    assert secrets[0] != secrets[1]


def test_a_secret_of_several_lines_is_refused(tmp_path: Path, environment) -> None:
    done = launch("--hosts=a", tmp_path, environment | {"SSD_DIST_SECRET": "one\ntouch hit"}, "--x")
    assert done.returncode == 2
    assert done.stderr == "error: SSD_DIST_SECRET: contains a control character; use printable text\n"


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("NODES", "$(touch hit)", "'$(touch hit)' is not a host name"),
        ("NODES", "-x", "'-x' is not a host name"),
        ("NODES", 'a"', "'a\"' is not a host name"),
        ("NODES", "a b", "'a b' is not a host name"),
        ("SLURM_NTASKS", "a[$(touch hit)]", "tasks on 1 nodes"),
        ("SLURM_PROCID", "a[$(touch hit)]", "SLURM_PROCID"),
        ("SLURM_PROCID", "-1", "SLURM_PROCID"),
        ("SSD_DIST_PEER_PATTERN", "$(touch hit){}", "'$(touch hit)0' is not a host name"),
        ("SSD_DIST_PEER_PATTERN", "{} b", "'0 b' is not a host name"),
        ("SSD_DIST_PEER_PATTERN", "&{}", "'&0' is not a host name"),
        ("SSD_DIST_PEERS", "a[$(touch hit)]", "SSD_DIST_PEERS="),
        ("JOB_COMPLETION_INDEX", "a[$(touch hit)]", "JOB_COMPLETION_INDEX"),
        ("JOB_COMPLETION_INDEX", '0}, "x": {', "JOB_COMPLETION_INDEX"),
    ],
)
def test_a_hostile_scheduler_environment_is_refused(variable, value, word, tmp_path: Path, environment) -> None:
    tool = tmp_path / "bin" / "scontrol"
    tool.write_text("#!/bin/sh\nprintf '%s\\n' \"$NODES\"\n")
    tool.chmod(0o755)
    if variable in ("NODES", "SLURM_NTASKS", "SLURM_PROCID"):
        variables = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "n", "NODES": "n"}
    else:
        variables = {"JOB_COMPLETION_INDEX": "0", "SSD_DIST_PEERS": "2", "SSD_DIST_PEER_PATTERN": "run-{}"}
    command = [str(LAUNCHER), f"--python={tmp_path / 'bin' / 'worker'}", "--", "--x"]
    done = run(command, tmp_path, environment | variables | {variable: value})
    assert done.returncode == 2
    assert word in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "hit").exists()
    assert not read_records(tmp_path, "worker")


def test_the_dataflow_script_passes_hostile_values_on_unchanged(tmp_path: Path, environment) -> None:
    for text in HOSTILE:
        flags = [f"--{name}={text}" for name in ("project", "region", "bucket", "image", "workers")]
        command = [str(DATAFLOW), *flags, f"--python={tmp_path / 'bin' / 'worker'}", "--", f"--input={text}"]
        done = run(command, tmp_path, environment)
        assert done.returncode == 0, done.stderr
        (record,) = read_records(tmp_path, "worker")
        for name in ("project", "region", "sdk_container_image", "max_num_workers", "input"):
            assert f"--{name}={text}" in record
        for path in (tmp_path / "records").iterdir():
            path.unlink()
    assert not (tmp_path / "hit").exists()
