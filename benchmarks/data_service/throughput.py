"""Measures images per second, CPU time and network bytes of the service against the local input pipeline, in turns.

The consumer runs in a process of its own, pinned to its cores, because TensorFlow creates its threads once per process.
The servers start streams of batches (`benchmarks.data_service.servers`), the only layout that keeps the order.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import tensorflow as tf

from benchmarks.collectives import count_loopback_bytes
from benchmarks.data_service.servers import ROOT, Server, read_streams, start_streams
from benchmarks.data_service.training_input import make_local
from ssd_dist.core.config import Config

ROUNDS = 3
SECONDS = 3.0
# Batches that are not counted: all buffers are in use afterwards.
WARM_UP = 20
LOCAL = "local pipeline"


@dataclass(frozen=True)
class Rate:
    """What one pipeline takes.

    Attributes:
      images_per_second: images that the consumer receives per second.
      consumer_seconds: CPU time of the consumer per image.
      server_seconds: CPU time of the servers per image.
      network_bytes: bytes over the loopback interface per image, by any process of this host.
    """

    images_per_second: float
    consumer_seconds: float
    server_seconds: float
    network_bytes: float


def measure_rates(
    config: Config, variants: Sequence[tuple[int, str | None]], consumer_cpus: str, server_cpus: str
) -> dict[str, Rate]:
    """Returns the rates of the local pipeline and of services, by `name_variant`.

    Args:
      config: config of the training.
      variants: number of services and compression of each variant.
      consumer_cpus: cores of the consumer, and of the local pipeline, as `taskset` names them.
      server_cpus: cores of the servers.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rates.json"
        settings = {"config": config.model_dump_json(), "variants": variants, "cpus": server_cpus, "path": str(path)}
        subprocess.run(
            ["taskset", "--cpu-list", consumer_cpus, sys.executable, "-m", "benchmarks.data_service.throughput",
             json.dumps(settings)],
            cwd=ROOT, check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return {name: Rate(**values) for name, values in json.loads(path.read_text()).items()}


def name_variant(services: int, compression: str | None) -> str:
    return f"{services} service{'s' if services > 1 else ''}, {compression or 'no compression'}"


def _measure(config: Config, variants: Sequence[tuple[int, str | None]], cpus: str) -> dict[str, Rate]:
    with ExitStack() as stack:
        pipelines: list[tuple[str, tf.data.Dataset, list[Server]]] = [(LOCAL, make_local(config), [])]
        for services, compression in variants:
            servers = stack.enter_context(start_streams(config, services, 0, compression, cpus))
            pipelines.append((name_variant(services, compression), read_streams(servers, config), servers))
        rates: dict[str, list[Rate]] = {name: [] for name, *_ in pipelines}
        for _ in range(ROUNDS):
            for name, batches, servers in pipelines:
                rates[name].append(_read_batches(batches, servers))
    return {name: _summarize(rounds) for name, rounds in rates.items()}


def _read_batches(batches: tf.data.Dataset, servers: Sequence[Server]) -> Rate:
    iterator = iter(batches)
    for _ in range(WARM_UP):
        next(iterator)
    processes = [psutil.Process(server.process.pid) for server in servers]

    def read_counters() -> tuple[float, ...]:
        served = sum(sum(process.cpu_times()[:2]) for process in processes)
        return time.perf_counter(), time.process_time(), served, count_loopback_bytes()

    images, before = 0, read_counters()
    while time.perf_counter() - before[0] < SECONDS:
        images += len(next(iterator).positions)
    seconds, consumed, served, sent = (after - start for after, start in zip(read_counters(), before, strict=True))
    return Rate(images / seconds, consumed / images, served / images, sent / images)


def _summarize(rounds: Sequence[Rate]) -> Rate:
    """Returns the medians; of the network bytes the minimum, because other processes can only add to them."""
    values = [asdict(rate) for rate in rounds]
    medians = {name: median(value[name] for value in values) for name in values[0]}
    return Rate(**(medians | {"network_bytes": min(rate.network_bytes for rate in rounds)}))


def main(config: str, variants: Sequence[tuple[int, str | None]], cpus: str, path: str) -> None:
    rates = _measure(Config.model_validate_json(config), variants, cpus)
    Path(path).write_text(json.dumps({name: asdict(rate) for name, rate in rates.items()}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
