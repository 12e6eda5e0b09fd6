"""Measures the bytes and the time of the all-reduces of a training step, for 1, 2 and 4 workers on this host.

Each worker reduces the vectors of a training step: three counts, then the packed gradients of the full model. Nothing
is computed, so the measured time is that of the collectives. The model of a ring all-reduce with R workers and S bytes,

    seconds = 2 (R - 1) latency + 2 (R - 1) / R * S / bandwidth

is fitted to the times of both vector sizes; docs/scaling.md applies it to GPUs. The reference is the minimum traffic
of a ring of two workers through plain sockets: each side sends its whole vector once.
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
# Parameters of the default model: SSDLite300 on MobileNetV2 1.0 with 80 classes.
PARAMETERS = 4_372_342
SIZES = {"counts": 3, "gradients": PARAMETERS}
ROUNDS = 20


def measure_worker(path: Path) -> None:
    """Measures, in one worker, the median seconds and the loopback bytes of an all-reduce of each size."""
    import tensorflow as tf

    from ssd_dist.cluster.strategy import create_strategy, read_worker_role
    from ssd_dist.core.config import ClusterConfig

    strategy = create_strategy(ClusterConfig(), read_worker_role())

    def build_all_reduce(size: int) -> tf.types.experimental.GenericFunction:
        def all_reduce() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones([size]))[0]

        return tf.function(lambda: strategy.run(all_reduce), autograph=False)

    measured = {}
    for name, size in SIZES.items():
        step = build_all_reduce(size)
        step()
        before, times = count_loopback_bytes(), []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            tf.nest.map_structure(lambda value: value.numpy(), strategy.experimental_local_results(step()))
            times.append(time.perf_counter() - started)
        measured[name] = {"seconds": median(times), "bytes": (count_loopback_bytes() - before) / ROUNDS}
    if read_worker_role().is_chief:
        path.write_text(json.dumps(measured))


def measure(workers: int) -> dict[str, dict[str, float]]:
    """Starts the workers and returns the measurements of the chief."""
    addresses = [f"127.0.0.1:{port}" for port in find_free_ports(workers)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        processes = []
        for index in range(workers):
            environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
            if workers > 1:
                task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
                environment["TF_CONFIG"] = json.dumps(task)
            command = [sys.executable, "-m", "benchmarks.collectives", f"--worker={path}"]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL))
        if any(process.wait(timeout=200) for process in processes):
            raise RuntimeError(f"one of {workers} workers failed")
        return json.loads(path.read_text())


def exchange_bytes(size: int) -> float:
    """Returns the median seconds of sending `size` bytes in both directions of a connection at the same time."""

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


def find_free_ports(count: int) -> list[int]:
    """Finds unused TCP ports."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def fit_ring(measured: dict[int, dict[str, dict[str, float]]]) -> tuple[float, float]:
    """Fits latency (seconds) and bandwidth (bytes per second) of the ring, by least squares of relative errors."""
    rows, ones = [], []
    for workers, by_name in measured.items():
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
    parser.add_argument("--json", type=Path, help="JSON file to write the measurements to")
    options = parser.parse_args()
    if options.worker:
        measure_worker(options.worker)
        return
    measured = {workers: measure(workers) for workers in WORKERS}
    table = Table("workers", "vector", "MB", "ms per step", "MB per step, all workers", "ring: 2 (R - 1) S")
    for workers, by_name in measured.items():
        for name, size in SIZES.items():
            figures = by_name[name]
            table.add_row(
                str(workers), name, f"{4e-6 * size:.3f}", f"{1e3 * figures['seconds']:.2f}",
                f"{1e-6 * figures['bytes']:.3f}", f"{2 * (workers - 1) * 4e-6 * size:.3f}",
            )  # fmt: skip
    latency, bandwidth = fit_ring(measured)
    console = Console()
    console.print(table)
    console.print(f"fitted: latency {1e3 * latency:.3f} ms, bandwidth {1e-9 * bandwidth:.2f} GB/s")
    ours, bare = measured[2]["gradients"]["seconds"], exchange_bytes(4 * PARAMETERS)
    rows = [
        Row("all-reduce of gradients, two workers", "ms", 1e3 * ours, 1e3 * bare, "same bytes through plain sockets")
    ]
    print_rows(rows)
    if options.json:
        write_rows(rows, options.json)


def count_loopback_bytes() -> int:
    """Reads the number of bytes sent over the loopback interface, by any process."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    return 0


if __name__ == "__main__":
    main()
