"""Workers that wait for each other in threads, and clients of the chief that are written from the protocol alone."""

import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from multihost.processes import free_ports

from ssd_dist.cluster.rendezvous import wait_for_workers
from ssd_dist.cluster.rendezvous_messages import WorkerDescription
from ssd_dist.core.errors import RestartError, UsageError

SECRET = b"a secret of this job"
NONCE = "0123456789abcdef" * 2


def create_workers(count: int, host: str = "127.0.0.1") -> list[WorkerDescription]:
    addresses = tuple(f"{host}:{port}" for port in free_ports(count))
    return [WorkerDescription(i, addresses, {"config": "abc"}) for i in range(count)]


def wait_all(
    workers: Sequence[WorkerDescription],
    timeout: float = 10.0,
    first: Callable[[], Any] | None = None,
    secrets: Sequence[bytes] | None = None,
) -> list[Exception | None]:
    """Returns None or the error of each worker; `first` is called while only the chief listens."""
    results: list[Exception | None] = [None] * len(workers)

    def wait(number: int) -> None:
        try:
            wait_for_workers(workers[number], timeout, secrets[number] if secrets else b"")
        except (UsageError, RestartError) as error:
            results[number] = error
        except BaseException as error:
            results[number] = AssertionError(f"not an error of one line: {error!r}")

    threads = [threading.Thread(target=wait, args=[number]) for number in range(len(workers))]
    if first is None:
        # The chief starts last, so the other workers have to wait for it.
        starting = list(reversed(threads))
    else:
        threads[0].start()
        first()
        starting = threads[1:]
    for thread in starting:
        thread.start()
    for thread in threads:
        thread.join(timeout + 10)
        assert not thread.is_alive()
    return results


def connect(chief: WorkerDescription) -> socket.socket:
    """Connects to the chief; waits until it listens."""
    host, port = chief.addresses[0].rsplit(":", 1)
    for _ in range(200):
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)))
            connection.settimeout(20.0)
            return connection
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("the chief does not listen")


def read_line(connection: socket.socket) -> bytes:
    return connection.makefile("rb").readline()


def describe(worker: WorkerDescription, **changes: Any) -> bytes:
    """Returns the JSON of a worker's description; `changes` replace or add fields."""
    fields = {"index": worker.index, "addresses": list(worker.addresses), "facts": dict(worker.facts),
              "report": worker.report, "time": time.time(), "nonce": NONCE}  # fmt: skip
    return json.dumps(fields | changes).encode()


def sign(content: bytes, greeting: bytes, secret: bytes = b"") -> bytes:
    """Signs a description for the connection on which the chief has sent this greeting."""
    service, nonce = greeting.split()
    assert service == b"ssd-dist"
    signature = hmac.new(secret, b"worker " + nonce + b" " + content, hashlib.sha256).hexdigest()
    return signature.encode() + b" " + content + b"\n"


def send_description(connection: socket.socket, worker: WorkerDescription, **changes: Any) -> None:
    """Does what a worker without a secret does after it has connected."""
    connection.sendall(sign(describe(worker, **changes), read_line(connection)))
