"""Brings all workers together before TensorFlow starts, to report a wrong cluster where TensorFlow would hang.

worker -> chief, on the port that TensorFlow uses later: a description of the worker, its cluster and its run.
chief -> worker, after all workers have connected: an empty line, or a description of the problem.
"""

import contextlib
import errno
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ssd_dist.core.errors import RestartError, UsageError

_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 5.0
_MAX_MESSAGE_BYTES = 1 << 20
# An earlier worker of the same run may still hold the port while it saves (preemption.grace_seconds).
_PORT_SECONDS = 40.0
MAXIMUM_CLOCK_SKEW = 60.0


@dataclass(frozen=True)
class WorkerDescription:
    """What a worker sends to the chief.

    Attributes:
      index: index of the worker in the cluster.
      addresses: host:port of all workers, according to this worker.
      facts: values that must be equal on all workers, by name, e.g. the hash of the config.
      report: text for the chief; may differ between workers.
      skew: seconds by which the worker's clock is ahead of the chief's; the chief computes it on receipt.
    """

    index: int
    addresses: tuple[str, ...]
    facts: Mapping[str, str]
    report: str = ""
    skew: float = 0.0


# Maps the descriptions of all workers, in order, to a description of the problem; None if there is none.
ClusterCheck = Callable[[Sequence[WorkerDescription]], str | None]


def wait_for_workers(own: WorkerDescription, timeout: float, check: ClusterCheck = lambda _: None) -> None:
    """Waits until all workers have connected and agree.

    Args:
      own: the description of this worker.
      timeout: seconds to wait for the other workers.
      check: called on the chief when all workers have connected; the workers disagree if it returns a problem.

    Raises:
      UsageError: on all workers, if they disagree; or if this worker cannot use its port at all.
      RestartError: if a worker does not connect in time, or another process holds the port.
    """
    deadline = time.monotonic() + timeout
    if len(own.addresses) == 1:
        if problem := check([own]):
            raise UsageError(problem)
        return
    with _bind(own.addresses[own.index], min(deadline, time.monotonic() + _PORT_SECONDS)) as server:
        if own.index == 0:
            _receive_all(own, server, deadline, check)
            return
    _send_to_chief(own, deadline)


def find_disagreement(chief: WorkerDescription, other: WorkerDescription) -> str | None:
    """Returns why a worker cannot train with the chief; None if it can."""
    name = f"worker {other.index}"
    if other.addresses != chief.addresses:
        return (
            f"{name} has the cluster {', '.join(other.addresses)}, the chief has {', '.join(chief.addresses)}; "
            "use the same TF_CONFIG cluster on all workers, in the same order"
        )
    name += f" ({other.addresses[other.index]})"
    for fact, value in chief.facts.items():
        if other.facts.get(fact) != value:
            return f"{name}: its {fact} is {other.facts.get(fact)}, the chief's is {value}; make them equal"
    if abs(other.skew) > MAXIMUM_CLOCK_SKEW:
        return f"{name}: its clock differs by {other.skew:+.0f} s from the chief's; synchronize the clocks"
    return None


def _bind(address: str, deadline: float) -> socket.socket:
    """Binds the port that TensorFlow uses later: TensorFlow's own error would not name a port that is in use."""
    host, port = _split(address)
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    while True:
        try:
            # On all interfaces: inside a container, the host may not have the address that its name resolves to.
            server.bind(("", port))
            return server
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            if in_use and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            server.close()
            text = f"this worker cannot listen on {address}: {error}; give it another port"
            # An earlier worker of this run may hold the port; after a restart it may be free.
            raise (RestartError if in_use else UsageError)(text) from None


def _receive_all(own: WorkerDescription, server: socket.socket, deadline: float, check: ClusterCheck) -> None:
    """Receives the descriptions of all other workers, checks them and answers; runs on the chief."""
    connections: dict[int, socket.socket] = {}
    descriptions = {0: own}
    problem = None
    server.listen(len(own.addresses))
    try:
        while problem is None and len(connections) < len(own.addresses) - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, address = server.accept()
            except TimeoutError:
                missing = [a for i, a in enumerate(own.addresses) if i and i not in connections]
                raise RestartError(
                    f"no connection from {', '.join(missing)} in time; check that these workers are started"
                ) from None
            other = _read_description(connection)
            if other is None or not 0 < other.index < len(own.addresses):
                connection.close()  # not a worker of this job
                continue
            problem = find_disagreement(own, other)
            if other.index in connections and not _is_closed(connections[other.index]):
                problem = (
                    f"two processes are worker {other.index}, one of them at {address[0]}; "
                    "give each worker its own task.index in TF_CONFIG"
                )
                connection.close()
            else:
                # A worker that was restarted in the meantime connects a second time.
                if other.index in connections:
                    connections[other.index].close()
                connections[other.index] = connection
                descriptions[other.index] = other
            if len(connections) == len(own.addresses) - 1:
                # Workers that ended in the meantime must connect again, or are reported as missing.
                for index in [index for index, one in connections.items() if _is_closed(one)]:
                    connections.pop(index).close()
        if problem is None:
            problem = check([descriptions[index] for index in sorted(descriptions)])
        for connection in connections.values():
            # If a worker has ended by now, all workers detect it after the start.
            with contextlib.suppress(OSError):
                connection.sendall(" ".join((problem or "").split()).encode() + b"\n")
    finally:
        for connection in connections.values():
            connection.close()
    if problem is not None:
        raise UsageError(problem)


def _is_closed(connection: socket.socket) -> bool:
    """Returns whether the worker has closed its connection; a waiting worker sends no more data."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(_ANSWER_SECONDS)


def _send_to_chief(own: WorkerDescription, deadline: float) -> None:
    """Sends this worker's description and waits for the answer; connects again until the deadline.

    Raises:
      UsageError: if the answer is a problem, or the chief's host name cannot be resolved.
      RestartError: if the chief cannot be reached.
    """
    chief = own.addresses[0]
    while True:
        try:
            with socket.create_connection(_split(chief), timeout=_ANSWER_SECONDS) as connection:
                connection.sendall(_encode_description(own))
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                answer = connection.makefile("rb").readline(_MAX_MESSAGE_BYTES)
        except socket.gaierror as error:
            # Some schedulers register a host's name only when they start the host.
            if time.monotonic() > deadline:
                raise UsageError(
                    f"the chief's host in {chief} cannot be resolved: {error}; correct the host in TF_CONFIG"
                ) from None
            answer, reason = b"", str(error)
        except OSError as error:
            answer, reason = b"", str(error)
        else:
            reason = "it closed the connection"
        if answer.endswith(b"\n"):
            break
        if time.monotonic() > deadline:
            raise RestartError(
                f"the chief at {chief} cannot be reached: {reason}; check that it is started and its port is open"
            )
        time.sleep(_POLL_SECONDS)
    if problem := answer.decode().strip():
        raise UsageError(problem)


def _encode_description(own: WorkerDescription) -> bytes:
    """Encodes the description with the current time, because the chief may start minutes after the other workers."""
    return json.dumps({**vars(own), "facts": dict(own.facts), "time": time.time()}).encode() + b"\n"


def _read_description(connection: socket.socket) -> WorkerDescription | None:
    """Reads a description; None if the message is not one."""
    connection.settimeout(_ANSWER_SECONDS)
    try:
        tree = json.loads(connection.makefile("rb").readline(_MAX_MESSAGE_BYTES))
        skew = float(tree["time"]) - time.time()
        facts = dict(tree["facts"])
        return WorkerDescription(int(tree["index"]), tuple(tree["addresses"]), facts, str(tree["report"]), skew)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _split(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)
