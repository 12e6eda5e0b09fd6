"""Starts the workers of a job as local processes, with free ports and a time limit, and stops exactly these."""

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
    """Returns `count` ports that no process listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def cluster_environments(workers: int) -> list[dict[str, str]]:
    """Returns the environment of each worker of a cluster on this host; a single worker has no TF_CONFIG."""
    base = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    base |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    if workers == 1:
        return [base]
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    tasks = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}} for i in range(workers)]
    return [base | {"TF_CONFIG": json.dumps(task)} for task in tasks]


@contextlib.contextmanager
def start_workers(command: Sequence[str], workers: int, folder: Path) -> Iterator[list[subprocess.Popen]]:
    """Starts the command once per worker; on exit kills the processes that still run, by id."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    try:
        for index, environment in enumerate(cluster_environments(workers)):
            with (folder / f"worker{index}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *command], env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


def wait_for_exit(processes: Sequence[subprocess.Popen], timeout: float) -> list[int]:
    """Waits for all processes and returns their exit codes."""
    return [process.wait(timeout=timeout) for process in processes]


def read_logs(folder: Path) -> str:
    """Returns the output of all workers."""
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in sorted(folder.glob("*.log")))
