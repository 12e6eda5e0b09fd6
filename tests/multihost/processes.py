"""Gangs of processes of our own: free ports, a time limit, and an end for exactly those that were started."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def cluster_environments(workers: int) -> list[dict[str, str]]:
    """The environment of each worker of a cluster on this host; of a lone one, without TF_CONFIG."""
    base = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    base |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    if workers == 1:
        return [base]
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    tasks = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}} for i in range(workers)]
    return [base | {"TF_CONFIG": json.dumps(task)} for task in tasks]


@contextlib.contextmanager
def start_gang(command: Sequence[str], workers: int, folder: Path) -> Iterator[list[subprocess.Popen]]:
    """Starts the command once for each worker; kills, by id, what of it still runs at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    gang = []
    try:
        for index, environment in enumerate(cluster_environments(workers)):
            with (folder / f"worker{index}.log").open("wb") as log:
                gang.append(
                    subprocess.Popen(
                        [sys.executable, *command], env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
        yield gang
    finally:
        for process in gang:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


def wait_gang(gang: Sequence[subprocess.Popen], timeout: float) -> list[int]:
    """The exit codes, once all have ended."""
    return [process.wait(timeout=timeout) for process in gang]


def read_logs(folder: Path) -> str:
    """What all workers printed."""
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in sorted(folder.glob("*.log")))
