"""`launch/train_multinode.sh --hosts` with real sshd: two network namespaces, joined by a link, train one model."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support.small_network import write_interpreter
from support.synthetic import write_dataset

from ssd_dist.core.config_files import load_config

LAUNCHER = Path(__file__).parents[2] / "launch" / "train_multinode.sh"
STEPS = 6
ADDRESSES = ("10.77.0.1", "10.77.0.2")
ADDRESSES_V6 = ("[fd77::1]", "[fd77::2]")
# The learning rate is nearly zero: the float32 gradients of this detector differ by percents
# with the order of sums (docs/clusters.md), and the weights would differ as well.
FLAGS = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "model.batch_norm_group=8",
         "train.global_batch_size=8", f"train.steps={STEPS}", "train.log_every=1", "eval.every_epochs=0",
         "optimizer.name=sgd", "optimizer.lr=1e-9", "schedule.min_lr=0"]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("ip", "sshd", "ssh", "ssh-keygen")),
        reason="needs sshd and ip (apt-get install openssh-server iproute2)",
    ),
]


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Creates two namespaces with an address and an sshd each; removes them and their processes at the end."""
    names = (f"ssd-a-{os.getpid()}", f"ssd-b-{os.getpid()}")
    # sshd needs this folder.
    privileges = Path("/run/sshd")
    created = not privileges.exists()
    privileges.mkdir(mode=0o755, exist_ok=True)
    for key in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key)
    settings = (
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
    )
    (tmp_path / "sshd_config").write_text(settings + "PermitRootLogin prohibit-password\n")
    daemons = []
    try:
        for name in names:
            try:
                run("ip", "netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        cable = [f"veth{side}{os.getpid() % 100_000}" for side in "ab"]
        run(
            "ip",
            "link",
            "add",
            cable[0],
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            cable[1],
            "netns",
            names[1],
        )
        for name, end, address, address_v6 in zip(names, cable, ADDRESSES, ADDRESSES_V6, strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", end)
            run("ip", "-n", name, "address", "add", f"{address_v6[1:-1]}/64", "dev", end, "nodad")
            for device in (end, "lo"):
                run("ip", "-n", name, "link", "set", device, "up")
            command = ["ip", "netns", "exec", name, shutil.which("sshd"), "-D", "-e", "-f", tmp_path / "sshd_config"]
            with (tmp_path / f"{name}.log").open("wb") as log:
                daemons.append(subprocess.Popen(list(map(str, command)), stdout=log, stderr=log))
        yield names
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError):
                for pid in run("ip", "netns", "pids", name).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                run("ip", "netns", "delete", name)
        for daemon in daemons:
            daemon.wait(timeout=30)
        if created:
            privileges.rmdir()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Returns an environment whose `ssh` uses the keys of these hosts instead of the user's."""
    shim = tmp_path / "bin" / "ssh"
    shim.parent.mkdir()
    options = f"-i {tmp_path}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    shim.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F none {options} "$@"\n')
    shim.chmod(0o755)
    return os.environ | {"PATH": f"{shim.parent}:{os.environ['PATH']}"}


@pytest.fixture
def launch(tmp_path: Path, environment: dict[str, str]):
    """Returns a function that runs the launcher, optionally in a namespace, and returns its output."""
    (tmp_path / "small.yaml").write_text("{}")
    write_dataset(tmp_path / "data", load_config(tmp_path / "small.yaml", FLAGS), {"train": 32}, shards=4)

    python = write_interpreter(tmp_path)

    def start(where: str, model_dir: Path, namespace: str | None = None) -> str:
        sets = [f"--set={item}" for item in (*FLAGS, f"data.dir={tmp_path / 'data'}")]
        command = [LAUNCHER, where, f"--python={python}", "--max_restarts=0", "--",
                   f"--config={tmp_path / 'small.yaml'}", f"--model_dir={model_dir}", *sets]  # fmt: skip
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        done = subprocess.run(
            list(map(str, [*inside, *command])), env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    return start


@pytest.fixture
def launch_fake(hosts: tuple[str, str], environment: dict[str, str], tmp_path: Path):
    """Returns a function that starts the launcher on the first host, with a fake worker on each; waits until they run.

    `behavior` is the bash code of the workers.
    """
    started: list[subprocess.Popen] = []

    def start(behavior: str, *flags: str, addresses: tuple[str, str] = ADDRESSES) -> subprocess.Popen:
        worker = tmp_path / "worker"
        worker.write_text(f"#!/bin/bash\n{behavior}\necho ready\nwhile :; do sleep 0.1; done\n")
        worker.chmod(0o755)
        command = ["ip", "netns", "exec", hosts[0], LAUNCHER, f"--hosts={','.join(addresses)}", f"--python={worker}"]
        process = subprocess.Popen(
            list(map(str, [*command, *flags, "--", "--x"])), env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        assert {process.stdout.readline() for _ in addresses} == {f"[{address}] ready\n" for address in addresses}
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until_only_sshd_runs(hosts: tuple[str, str]) -> None:
    """Waits until only sshd runs on the hosts; the guards check once per second whether their worker has ended."""
    deadline = time.monotonic() + 10
    while True:
        pids = [pid for name in hosts for pid in run("ip", "netns", "pids", name).split()]
        left = []
        for pid in pids:
            with suppress(OSError):
                left.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        if all("sshd" in command for command in left):
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.parametrize("code", [75, 3])
def test_the_launcher_waits_for_remote_workers_that_save(hosts: tuple[str, str], launch_fake, code: int) -> None:
    process = launch_fake(f"trap 'sleep 2; echo saved; exit {code}' TERM")
    # Signals the whole process group, as a terminal does; the ssh connections get the signal as well.
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == code
    for address in ADDRESSES:
        assert f"[{address}] saved\n" in output
    wait_until_only_sshd_runs(hosts)


def test_remote_workers_that_do_not_stop_are_killed(hosts: tuple[str, str], launch_fake) -> None:
    process = launch_fake("trap '' TERM", "--grace_seconds=2")
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert 2 <= time.monotonic() - started < 15
    wait_until_only_sshd_runs(hosts)


def test_remote_workers_stop_when_their_launcher_is_killed(hosts: tuple[str, str], launch_fake, tmp_path: Path) -> None:
    process = launch_fake(f"trap 'mktemp {tmp_path}/saved.XXXXXX; exit 75' TERM")
    process.kill()
    process.communicate(timeout=30)
    wait_until_only_sshd_runs(hosts)
    assert len(list(tmp_path.glob("saved.*"))) == 2


def test_hosts_have_ipv6_addresses_and_get_the_secret(hosts: tuple[str, str], launch_fake) -> None:
    process = launch_fake("trap 'echo ${#SSD_DIST_SECRET} $TF_CONFIG; exit 75' TERM", addresses=ADDRESSES_V6)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0]
    for address in ADDRESSES_V6:
        # 32 bytes have 64 hexadecimal digits.
        assert f'[{address}] 64 {{"cluster": {{"worker": ["[fd77::1]:12345", "[fd77::2]:12345"]}}' in output
    wait_until_only_sshd_runs(hosts)


def read_weights(model_dir: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints" / f"ckpt-{STEPS}"))
    return {
        name: reader.get_tensor(name)
        for name, shape in reader.get_variable_to_shape_map().items()
        if shape and name.startswith(("model", "ema"))
    }


def read_losses(model_dir: Path) -> list[float]:
    rows = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_two_hosts_train_the_same_model_as_one(hosts: tuple[str, str], launch, tmp_path: Path) -> None:
    launch("--local=1", tmp_path / "one")
    output = launch(f"--hosts={','.join(ADDRESSES)}", tmp_path / "two", namespace=hosts[0])
    for address in ADDRESSES:
        assert f"[{address}] " in output
    assert "2 replicas" in output
    losses = read_losses(tmp_path / "one")
    assert len(losses) == STEPS
    # The order of float32 sums differs.
    np.testing.assert_allclose(read_losses(tmp_path / "two"), losses, rtol=1e-5)
    one, two = read_weights(tmp_path / "one"), read_weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for part in ("model", "ema"):
        # The bound that holds for every layout. It hardly tests the gradients, because the weights hardly change;
        # test_the_detector_has_one_gradient_in_every_layout compares them in float64.
        names = sorted(name for name in one if name.startswith(part))
        first, second = (np.concatenate([weights[name].ravel() for name in names]) for weights in (one, two))
        assert np.linalg.norm(second - first) <= 1e-3 * np.linalg.norm(first), part
    wait_until_only_sshd_runs(hosts)
