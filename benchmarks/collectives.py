"""What one step sends and how long that takes, for 1, 2 and 4 workers on this host, and what follows for GPUs.

Each worker all-reduces what a training step does: three counts, then the packed gradients of the full model. Nothing
is computed, so the time is that of the collectives. The ring's model, with R workers and S bytes,

    seconds = 2 (R - 1) latency + 2 (R - 1) / R * S / bandwidth

is fitted to the vectors of both sizes; docs/clusters.md carries it over to GPUs. The reference is what a ring of two
must send at least, through plain sockets: each side its whole vector.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.rows import Row, print_rows, write_rows

ROOT = Path(__file__).parents[1]
WORKERS = (1, 2, 4)
# SSDLite300 on MobileNetV2 1.0 with 80 classes, the default; the other vector of a step is three counts.
PARAMETERS = 4_372_342
SIZES = {"counts": 3, "gradients": PARAMETERS}
ROUNDS = 20


def measure_here(path: Path) -> None:
    """In one worker: median seconds of an all-reduce of each size, and the bytes this host's loopback carried."""
    import tensorflow as tf

    from ssd_dist.cluster.strategy import create_strategy, read_worker_role
    from ssd_dist.core.config import ClusterConfig

    strategy = create_strategy(ClusterConfig(), read_worker_role())

    def reduce(size: int) -> tf.types.experimental.GenericFunction:
        def contribute() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones([size]))[0]

        return tf.function(lambda: strategy.run(contribute), autograph=False)

    found = {}
    for name, size in SIZES.items():
        step = reduce(size)
        step()
        before, times = _loopback_bytes(), []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            tf.nest.map_structure(lambda value: value.numpy(), strategy.experimental_local_results(step()))
            times.append(time.perf_counter() - started)
        found[name] = {"seconds": median(times), "bytes": (_loopback_bytes() - before) / ROUNDS}
    if read_worker_role().is_chief:
        path.write_text(json.dumps(found))


def measure(workers: int) -> dict[str, dict[str, float]]:
    """What the chief of that many workers found."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        gang = []
        for index in range(workers):
            environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
            if workers > 1:
                task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
                environment["TF_CONFIG"] = json.dumps(task)
            command = [sys.executable, "-m", "benchmarks.collectives", f"--worker={path}"]
            gang.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL))
        if any(worker.wait(timeout=200) for worker in gang):
            raise RuntimeError(f"one of {workers} workers failed")
        return json.loads(path.read_text())


def exchange_bytes(size: int) -> float:
    """Median seconds in which two ends of a connection send each other `size` bytes, both at once."""

    def send(end: socket.socket) -> None:
        end.sendall(bytes(size))

    def receive(end: socket.socket) -> None:
        left = size
        buffer = bytearray(1 << 20)
        while left:
            left -= end.recv_into(buffer, min(left, len(buffer)))

    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as one, server.accept()[0] as other:
        times = []
        for _ in range(ROUNDS):
            work = [(send, one), (send, other), (receive, one), (receive, other)]
            threads = [threading.Thread(target=do, args=(end,)) for do, end in work]
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            times.append(time.perf_counter() - started)
    return median(times)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def fit_ring(found: dict[int, dict[str, dict[str, float]]]) -> tuple[float, float]:
    """Latency in seconds and bandwidth in bytes a second of the ring, by least squares of relative errors."""
    rows, ones = [], []
    for workers, by_name in found.items():
        if workers > 1:
            for name, size in SIZES.items():
                seconds = by_name[name]["seconds"]
                rows.append([2 * (workers - 1) / seconds, 2 * (workers - 1) / workers * 4 * size / seconds])
                ones.append(1.0)
    latency, per_byte = np.linalg.lstsq(np.array(rows), np.array(ones), rcond=None)[0]
    return float(latency), float(1 / per_byte)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    if options.worker:
        measure_here(options.worker)
        return
    found = {workers: measure(workers) for workers in WORKERS}
    table = Table("workers", "vector", "MB", "ms a step", "MB sent a step by all", "ring: 2 (R - 1) S")
    for workers, by_name in found.items():
        for name, size in SIZES.items():
            figures = by_name[name]
            table.add_row(
                str(workers), name, f"{4e-6 * size:.3f}", f"{1e3 * figures['seconds']:.2f}",
                f"{1e-6 * figures['bytes']:.3f}", f"{2 * (workers - 1) * 4e-6 * size:.3f}",
            )  # fmt: skip
    latency, bandwidth = fit_ring(found)
    console = Console()
    console.print(table)
    console.print(f"fitted: latency {1e3 * latency:.3f} ms, bandwidth {1e-9 * bandwidth:.2f} GB/s")
    ours, bare = found[2]["gradients"]["seconds"], exchange_bytes(4 * PARAMETERS)
    rows = [
        Row("all-reduce of gradients, two workers", "ms", 1e3 * ours, 1e3 * bare, "their bytes through plain sockets")
    ]
    print_rows(rows)
    if options.json:
        write_rows(rows, options.json)


def _loopback_bytes() -> int:
    """Bytes that this host's workers have sent each other, and whoever else uses its loopback."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    return 0


if __name__ == "__main__":
    main()
