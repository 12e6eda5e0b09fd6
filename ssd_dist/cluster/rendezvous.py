"""Brings all workers together before TensorFlow starts, to report a wrong cluster where TensorFlow would hang.

Each worker connects to the chief on the port that TensorFlow uses later, and sends a description of itself, its cluster
and its run. When all workers have connected and agree, the chief answers all of them; if they disagree, all of them
report the problem. Other programs that connect are ignored (`rendezvous_connections`); with a shared secret, nobody
else can act as a worker or as the chief (`rendezvous_messages`).
"""

import errno
import socket
import time
from collections.abc import Callable, Sequence

from ssd_dist.cluster.rendezvous_connections import CONNECTION_SECONDS, ConnectionReader, WorkerConnection
from ssd_dist.cluster.rendezvous_messages import (
    MAX_MESSAGE_BYTES,
    SECRET_VARIABLE,
    SignatureError,
    WorkerDescription,
    create_nonce,
    decode_answer,
    decode_greeting,
    encode_description,
)
from ssd_dist.core.errors import RestartError, UsageError
from ssd_dist.core.printable import print_warning

_POLL_SECONDS = 0.2
# An earlier worker of the same run may still hold the port while it saves (preemption.grace_seconds).
_PORT_SECONDS = 40.0
MAXIMUM_CLOCK_SKEW = 60.0

# Maps the descriptions of all workers, in order, to a description of the problem; None if there is none.
ClusterCheck = Callable[[Sequence[WorkerDescription]], str | None]


def wait_for_workers(
    own: WorkerDescription, timeout: float, secret: bytes, check: ClusterCheck = lambda _: None
) -> None:
    """Waits until all workers have connected and agree.

    Args:
      own: the description of this worker.
      timeout: seconds to wait for the other workers.
      secret: signs the messages (`read_secret`); equal on all workers, empty for messages that anyone can sign.
      check: called on the chief when all workers have connected; the workers disagree if it returns a problem.

    Raises:
      UsageError: on all workers, if they disagree; or if this worker cannot use its port at all, or has another secret
        than the chief.
      RestartError: if a worker does not connect in time, or another process holds the port.
    """
    deadline = time.monotonic() + timeout
    if len(own.addresses) == 1:
        if problem := check([own]):
            raise UsageError(problem)
        return
    with _bind(own.addresses[own.index], min(deadline, time.monotonic() + _PORT_SECONDS)) as server:
        if own.index == 0:
            _receive_all(own, server, deadline, secret, check)
            return
    _send_to_chief(own, deadline, secret)


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
    port = _split(address)[1]
    while True:
        server, interfaces = _create_server_socket()
        try:
            server.bind((interfaces, port))
            return server
        except OSError as error:
            server.close()
            in_use = error.errno == errno.EADDRINUSE
            if in_use and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            problem = f"this worker cannot listen on {address}: {error}"
            fix = "use another port (--port of train_multinode.sh, or your TF_CONFIG)"
            if in_use:
                raise RestartError(
                    f"{problem}; an earlier worker may still hold the port: start again, or {fix}"
                ) from None
            raise UsageError(f"{problem}; {fix}") from None


def _create_server_socket() -> tuple[socket.socket, str]:
    """Returns a socket and the address of all interfaces, of IPv4 and, where the host supports it, of IPv6.

    All interfaces: inside a container, the host may not have the address that its name resolves to.
    """
    dual = socket.has_dualstack_ipv6()
    server = socket.socket(socket.AF_INET6 if dual else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if dual:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return server, "::" if dual else "0.0.0.0"


def _receive_all(
    own: WorkerDescription, server: socket.socket, deadline: float, secret: bytes, check: ClusterCheck
) -> None:
    """Receives the descriptions of all other workers, checks them and answers; runs on the chief."""
    workers: dict[int, tuple[WorkerConnection, WorkerDescription]] = {}
    problem = None
    with ConnectionReader(server, len(own.addresses), secret) as reader:
        try:
            while problem is None and len(workers) < len(own.addresses) - 1:
                arrived = reader.receive(max(deadline - time.monotonic(), 0.0))
                if not arrived:
                    missing = [a for i, a in enumerate(own.addresses) if i and i not in workers]
                    ignored = f" ({reader.describe_ignored()})" if reader.ignored else ""
                    raise RestartError(
                        f"no connection from {', '.join(missing)} in time{ignored}; "
                        "check that these workers are started"
                    )
                for connection, description in arrived:
                    found = _add_worker(own, connection, description, workers, secret)
                    problem = problem or found
                if len(workers) == len(own.addresses) - 1:
                    # Workers that ended in the meantime must connect again, or are reported as missing.
                    for index in [index for index, (one, _) in workers.items() if one.is_closed()]:
                        workers.pop(index)[0].close()
            if reader.ignored:
                print_warning(f"{own.addresses[0]}: {reader.describe_ignored()}")
            if problem is None:
                problem = check([own, *(workers[index][1] for index in sorted(workers))])
            for connection, _ in workers.values():
                connection.answer(problem or "", secret)
        finally:
            for connection, _ in workers.values():
                connection.close()
    if problem is not None:
        raise UsageError(problem)


def _add_worker(
    own: WorkerDescription,
    connection: WorkerConnection,
    description: WorkerDescription,
    workers: dict[int, tuple[WorkerConnection, WorkerDescription]],
    secret: bytes,
) -> str | None:
    """Adds a worker whose description has arrived to `workers`; returns the problem if it cannot train."""
    if description.index in workers:
        earlier = workers[description.index][0]
        if not earlier.is_closed():
            problem = (
                f"two processes are worker {description.index}, one of them at {connection.host}; "
                "give each worker its own task.index in TF_CONFIG"
            )
            connection.answer(problem, secret)
            connection.close()
            return problem
        # A worker that was restarted in the meantime connects a second time.
        earlier.close()
    workers[description.index] = connection, description
    return find_disagreement(own, description)


def _send_to_chief(own: WorkerDescription, deadline: float, secret: bytes) -> None:
    """Sends this worker's description and waits for the answer; connects again until the deadline.

    Raises:
      UsageError: if the answer is a problem, the chief has another secret, or its host name cannot be resolved.
      RestartError: if the chief cannot be reached.
    """
    chief = own.addresses[0]
    while True:
        try:
            problem = _exchange_messages(own, deadline, secret)
            break
        except SignatureError:
            raise UsageError(
                f"the chief at {chief} has another {SECRET_VARIABLE}; set the same value on all workers"
            ) from None
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline and isinstance(error, socket.gaierror):
                # Until then: some schedulers register a host's name only when they start the host.
                raise UsageError(
                    f"the chief's host in {chief} cannot be resolved: {error}; correct the host in TF_CONFIG"
                ) from None
            if time.monotonic() > deadline:
                raise RestartError(
                    f"the chief at {chief} cannot be reached: {error}; check that it is started and its port is open"
                ) from None
        time.sleep(_POLL_SECONDS)
    if problem:
        raise UsageError(problem)


def _exchange_messages(own: WorkerDescription, deadline: float, secret: bytes) -> str:
    """Returns the chief's answer on one connection.

    Raises:
      OSError, ValueError: if the chief cannot be reached, or another program listens on its port.
      SignatureError: if the chief has another secret.
    """
    nonce = create_nonce()
    greet_by = min(time.monotonic() + CONNECTION_SECONDS, deadline)
    seconds = max(greet_by - time.monotonic(), 0.001)
    with socket.create_connection(_split(own.addresses[0]), timeout=seconds) as connection:
        chief_nonce = decode_greeting(_receive_line(connection, greet_by))
        connection.sendall(encode_description(own, nonce, chief_nonce, secret))
        return decode_answer(_receive_line(connection, deadline), nonce, secret)


def _receive_line(connection: socket.socket, deadline: float) -> bytes:
    """Receives up to the end of the first line; raises OSError if it has not arrived by the deadline."""
    received = b""
    while not received.endswith(b"\n"):
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        data = connection.recv(MAX_MESSAGE_BYTES)
        if not data:
            raise ConnectionError("it closed the connection")
        received += data
        if len(received) > MAX_MESSAGE_BYTES:
            raise ValueError("it is not a worker of ssd-dist")
    return received


def _split(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)
