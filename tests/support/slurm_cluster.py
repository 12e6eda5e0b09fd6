"""A Slurm cluster on this machine: real daemons, each node in namespaces with an address and a host name of its own."""

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PROGRAMS = ("ip", "nsenter", "unshare", "munged", "slurmctld", "slurmd", "sbatch", "scontrol")
CONTROLLER, NODES = "slurm-ctl", ("slurm-1", "slurm-2")
NETWORK = "10.78.0"
# The real values of `launch/train/train.slurm`, which this machine need not have: nothing is bound to CPUs or GPUs.
SETTINGS = """
ClusterName=ssd
SlurmctldHost={controller}({network}.100)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=10
SchedulerParameters=sched_interval=2
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


class SlurmCluster:
    """Two nodes and a controller, each in its own network and UTS namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._suffix = str(os.getpid() % 100_000)

    def start(self) -> None:
        """Creates the network and starts munge, the controller and the nodes."""
        self._create_network()
        self._write_settings()
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        paths = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        files = [f"--{option}={self.folder}/munge.{ending}" for option, ending in paths.items()]
        self._start("munge", ["munged", "--foreground", "--force", *files])
        wait_for((self.folder / "munge.socket").exists, 30, "munge did not start")
        self._start_inside(CONTROLLER, "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: self.ask("sinfo", "-h", "-o", "%T").split() == ["idle"], 60, "the nodes did not register")

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        self._start_inside(node, "slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf"))

    def kill_node(self, node: str) -> None:
        """Kills all processes of a node, as a power failure does."""
        for pid in run("ip", "netns", "pids", self._namespace(node)).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self._daemons.pop(node).wait()

    def ask(self, *command: str) -> str:
        """Runs a Slurm command on the controller and returns its output."""
        environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        inside = [*self._enter(CONTROLLER), *command]
        done = subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip()

    def submit(self, script: Path, options: Sequence[str], arguments: Sequence[str]) -> str:
        """Submits a batch script and returns the id of the job."""
        return self.ask("sbatch", "--parsable", *options, str(script), *arguments)

    def read_job(self, job: str) -> dict[str, str]:
        """Returns the fields that `scontrol show job` prints."""
        fields = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def stop(self) -> None:
        """Ends all processes of the cluster and removes its network."""
        for name in (*NODES, CONTROLLER):
            with suppress(subprocess.CalledProcessError):
                for pid in run("ip", "netns", "pids", self._namespace(name)).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                run("ip", "netns", "delete", self._namespace(name))
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()

    def _namespace(self, name: str) -> str:
        return f"{name}-{self._suffix}"

    def _create_network(self) -> None:
        """Joins the namespaces by a bridge, which the controller has; the names of all hosts are known in each."""
        names = (CONTROLLER, *NODES)
        addresses = {CONTROLLER: f"{NETWORK}.100"} | {node: f"{NETWORK}.{i}" for i, node in enumerate(NODES, 1)}
        lines = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{lines}")
        for name in names:
            run("ip", "netns", "add", self._namespace(name))
            run("ip", "-n", self._namespace(name), "link", "set", "lo", "up")
        bridge = self._namespace(CONTROLLER)
        run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", bridge, "address", "add", f"{addresses[CONTROLLER]}/24", "dev", "br0")
        run("ip", "-n", bridge, "link", "set", "br0", "up")
        for number, node in enumerate(NODES):
            end, namespace = f"port{number}", self._namespace(node)
            run("ip", "link", "add", end, "netns", bridge, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            run("ip", "-n", bridge, "link", "set", end, "master", "br0", "up")
            run("ip", "-n", namespace, "address", "add", f"{addresses[node]}/24", "dev", "eth0")
            run("ip", "-n", namespace, "link", "set", "eth0", "up")

    def _write_settings(self) -> None:
        nodes = "\n".join(
            f"NodeName={node} NodeAddr={NETWORK}.{number} CPUs=64 RealMemory=8000 Gres=gpu:8 State=UNKNOWN"
            for number, node in enumerate(NODES, 1)
        )
        settings = SETTINGS.format(controller=CONTROLLER, network=NETWORK, folder=self.folder, nodes=nodes)
        (self.folder / "slurm.conf").write_text(settings)
        # Slurm counts these devices (each a copy of /dev/null) as GPUs, without opening them.
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-7]\n")
        for number in range(8):
            os.mknod(self.folder / f"gpu{number}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        (self.folder / "state").mkdir()
        for node in NODES:
            (self.folder / f"spool-{node}").mkdir()

    def _start_inside(self, name: str, *command: str) -> None:
        self._start(name, [*self._enter(name), *command])

    def _enter(self, name: str) -> list[str]:
        """Returns the command that runs another one on a host: with its network, its name and the list of all names."""
        script = f'hostname {name} && mount --bind {self.folder}/hosts /etc/hosts && exec "$@"'
        network = f"--net=/run/netns/{self._namespace(name)}"
        return ["nsenter", network, "unshare", "--uts", "--mount", "sh", "-c", script, "sh"]

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


@contextmanager
def start_slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Starts a cluster whose files are in `folder`; skips the test where that is impossible."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge iproute2)")
    cluster = SlurmCluster(folder)
    try:
        try:
            cluster.start()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield cluster
    finally:
        cluster.stop()


def wait_for(condition: Callable[[], bool], seconds: float, message: str) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.5)


def run(*command: str) -> str:
    """Runs a command and returns its output."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
