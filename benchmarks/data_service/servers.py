"""Starts the processes of tf.data service on this host.

    dispatcher, worker   the servers as TensorFlow offers them: the consumer registers its dataset
    stream               a dispatcher and a worker in one process, which registers and serves its part of the batches

Each process runs `python -m benchmarks.data_service.servers SETTINGS`. It ends when its standard input is closed, so
that no server outlives the process that started it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.data.experimental import service

from benchmarks.collectives import find_free_ports
from benchmarks.data_service.training_input import make_stream
from ssd_dist.core.config import Config

ROOT = Path(__file__).parents[2]
# Seconds between two messages of a worker to its dispatcher; TensorFlow's default is 30.
HEARTBEAT = 0.5


@dataclass
class Server:
    """A server process.

    Attributes:
      settings: what it serves, and on which port.
      cpus: the CPU cores that it may use, as `taskset` names them; None for all.
      process: the process, once started.
      dataset: id of the dataset that a stream has registered.
    """

    settings: dict[str, Any]
    cpus: str | None = None
    process: subprocess.Popen | None = None
    dataset: str = ""

    @property
    def address(self) -> str:
        return f"localhost:{self.settings['port']}"

    def start(self) -> None:
        """Starts the process and waits until it serves.

        Raises:
          RuntimeError: if it ends before.
        """
        pinned = ["taskset", "--cpu-list", self.cpus] if self.cpus else []
        command = [*pinned, sys.executable, "-m", "benchmarks.data_service.servers", json.dumps(self.settings)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        answer = self.process.stdout.readline()
        if not answer:
            self.stop()
            raise RuntimeError(f"server {self.settings['role']} ended before it served")
        self.dataset = json.loads(answer)

    def stop(self) -> None:
        """Kills the process, by its id, and waits for its end."""
        self.process.kill()
        self.process.wait(timeout=30)
        self.process.stdin.close()
        self.process.stdout.close()


@contextmanager
def start_service(workers: int) -> Iterator[tuple[str, list[Server]]]:
    """Starts a dispatcher and its workers; yields the address of the dispatcher, and the workers."""
    dispatcher = Server({"role": "dispatcher", "port": find_free_ports(1)[0]})
    with _running(dispatcher):
        own = [
            Server({"role": "worker", "port": port, "dispatcher": dispatcher.address})
            for port in find_free_ports(workers)
        ]
        with _running(*own):
            yield dispatcher.address, own


@contextmanager
def start_streams(
    config: Config, streams: int, start_step: int = 0, compression: str | None = None, cpus: str | None = None
) -> Iterator[list[Server]]:
    """Starts one service per stream; see `make_stream` for the streams."""
    shared = {"role": "stream", "config": config.model_dump_json(), "streams": streams, "start_step": start_step}
    servers = [
        Server({**shared, "stream": stream, "port": port, "compression": compression}, cpus)
        for stream, port in enumerate(find_free_ports(streams))
    ]
    with _running(*servers):
        yield servers


def read_streams(servers: list[Server], config: Config) -> tf.data.Dataset:
    """Returns the batches of the streams in turns."""
    off = service.ShardingPolicy.OFF
    specification = make_stream(config, streams=len(servers)).element_spec
    parts = [
        service.from_dataset_id(off, f"grpc://{server.address}", server.dataset, specification) for server in servers
    ]
    if len(parts) == 1:
        return parts[0]
    return tf.data.Dataset.choose_from_datasets(parts, tf.data.Dataset.range(len(parts)).repeat())


@contextmanager
def _running(*servers: Server) -> Iterator[None]:
    with ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        yield


def _serve(role: str, port: int, **settings: Any) -> None:
    """Serves until the standard input is closed; prints the id of the registered dataset, if any, as JSON."""
    dataset, servers = "", []
    if role != "worker":
        servers.append(service.DispatchServer(service.DispatcherConfig(port=port)))
    if role == "worker":
        servers.append(_start_worker(settings["dispatcher"], port))
    if role == "stream":
        servers.append(_start_worker(f"localhost:{port}", find_free_ports(1)[0]))
        config = Config.model_validate_json(settings["config"])
        batches = make_stream(config, settings["start_step"], settings["stream"], settings["streams"], checked=True)
        address = f"grpc://localhost:{port}"
        dataset = service.register_dataset(address, batches, compression=settings["compression"]).numpy().decode()
    print(json.dumps(dataset), flush=True)
    sys.stdin.read()


def _start_worker(dispatcher: str, port: int) -> service.WorkerServer:
    return service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=dispatcher,
            worker_address=f"localhost:{port}",
            port=port,
            heartbeat_interval_ms=int(1000 * HEARTBEAT),
        )
    )


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
