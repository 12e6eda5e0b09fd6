"""The workers meet before TensorFlow starts: a wrong cluster is named, where TensorFlow would hang.

worker -> chief, on the port that TensorFlow is going to use: who I am, the cluster I see, what I am about to train.
chief -> worker, when all are there: an empty answer, or what is wrong.
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
_LONGEST_MESSAGE = 1 << 20
# An earlier worker of the same run may still be there: it was told to stop and saves (preemption.grace_seconds).
_PORT_SECONDS = 40.0
MAXIMUM_CLOCK_SKEW = 60.0


@dataclass(frozen=True)
class WorkerDescription:
    """What a worker says of itself.

    Attributes:
      index: its place in the cluster.
      addresses: host:port of all workers, as it sees them.
      facts: what must be the same on all workers, by name, e.g. the config's hash.
      report: what it has to tell the chief; need not be the same.
      skew: seconds by which its clock is ahead of the chief's; the chief finds it on receipt.
    """

    index: int
    addresses: tuple[str, ...]
    facts: Mapping[str, str]
    report: str = ""
    skew: float = 0.0


# Given all introductions in order: what is wrong, or nothing.
ClusterCheck = Callable[[Sequence[WorkerDescription]], str | None]


def wait_for_workers(me: WorkerDescription, timeout: float, judge: ClusterCheck = lambda _: None) -> None:
    """Returns when all workers have met and agree; the chief asks `judge` as well, when all are there.

    Raises:
      UsageError: if they do not agree, on all workers, or a port is not to be had at all.
      RestartError: if one does not come in time, or another process holds a port.
    """
    deadline = time.monotonic() + timeout
    if len(me.addresses) == 1:
        if problem := judge([me]):
            raise UsageError(problem)
        return
    with _listen(me.addresses[me.index], min(deadline, time.monotonic() + _PORT_SECONDS)) as server:
        if me.index == 0:
            _receive_all(me, server, deadline, judge)
            return
    _introduce(me, deadline)


def find_disagreement(chief: WorkerDescription, other: WorkerDescription) -> str | None:
    """What keeps `other` from training with the chief; None if nothing does."""
    name = f"worker {other.index}"
    if other.addresses != chief.addresses:
        return (
            f"{name} sees the cluster {', '.join(other.addresses)}, the chief {', '.join(chief.addresses)}; "
            "give all the same TF_CONFIG cluster, in the same order"
        )
    for fact, value in chief.facts.items():
        if other.facts.get(fact) != value:
            return (
                f"{name} ({other.addresses[other.index]}): its {fact} is {other.facts.get(fact)}, the chief's {value}"
            )
    if abs(other.skew) > MAXIMUM_CLOCK_SKEW:
        return f"{name} ({other.addresses[other.index]}): its clock is {other.skew:+.0f} s off the chief's"
    return None


def _listen(address: str, deadline: float) -> socket.socket:
    """The port that TensorFlow is going to use, which it would not name if another had it."""
    host, port = _split(address)
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    while True:
        try:
            # On all interfaces: the name may be an address that its own host does not have (containers).
            server.bind(("", port))
            return server
        except OSError as error:
            held = error.errno == errno.EADDRINUSE
            if held and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            server.close()
            text = f"this worker cannot listen on {address}: {error}; give it another port"
            # Who holds it may be an earlier worker of this run that cannot be reached: another start may find it gone.
            raise (RestartError if held else UsageError)(text) from None


def _receive_all(me: WorkerDescription, server: socket.socket, deadline: float, judge: ClusterCheck) -> None:
    waiting: dict[int, socket.socket] = {}
    present = {0: me}
    problem = None
    server.listen(len(me.addresses))
    try:
        while problem is None and len(waiting) < len(me.addresses) - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, address = server.accept()
            except TimeoutError:
                missing = [a for i, a in enumerate(me.addresses) if i and i not in waiting]
                raise RestartError(f"no word from {', '.join(missing)} in time; are they started?") from None
            other = _read_introduction(connection)
            if other is None or not 0 < other.index < len(me.addresses):
                connection.close()  # not one of ours
                continue
            problem = find_disagreement(me, other)
            if other.index in waiting and not _is_gone(waiting[other.index]):
                problem = f"two processes say they are worker {other.index}; one of them is at {address[0]}"
                connection.close()
            else:
                # One that ended meanwhile, and came again.
                if other.index in waiting:
                    waiting[other.index].close()
                waiting[other.index] = connection
                present[other.index] = other
            if len(waiting) == len(me.addresses) - 1:
                # One that ended while the others came is waited for: it comes again, or is named.
                for index in [index for index, one in waiting.items() if _is_gone(one)]:
                    waiting.pop(index).close()
        if problem is None:
            problem = judge([present[index] for index in sorted(present)])
        for connection in waiting.values():
            # One that is gone is missed later, by all.
            with contextlib.suppress(OSError):
                connection.sendall(" ".join((problem or "").split()).encode() + b"\n")
    finally:
        for connection in waiting.values():
            connection.close()
    if problem is not None:
        raise UsageError(problem)


def _is_gone(connection: socket.socket) -> bool:
    """Whether the other end has closed; a worker that waits says nothing more."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(_ANSWER_SECONDS)


def _introduce(me: WorkerDescription, deadline: float) -> None:
    chief = me.addresses[0]
    while True:
        try:
            with socket.create_connection(_split(chief), timeout=_ANSWER_SECONDS) as connection:
                connection.sendall(_write_introduction(me))
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                answer = connection.makefile("rb").readline(_LONGEST_MESSAGE)
        except socket.gaierror as error:
            # A scheduler may give a host its name only when it starts it.
            if time.monotonic() > deadline:
                raise UsageError(f"the chief's host in {chief} is not known here: {error}") from None
            answer, reason = b"", str(error)
        except OSError as error:
            answer, reason = b"", str(error)
        else:
            reason = "it closed the connection"
        if answer.endswith(b"\n"):
            break
        if time.monotonic() > deadline:
            raise RestartError(f"the chief at {chief} cannot be reached: {reason}; is it started, is the port open?")
        time.sleep(_POLL_SECONDS)
    if problem := answer.decode().strip():
        raise UsageError(problem)


def _write_introduction(me: WorkerDescription) -> bytes:
    """The message, with the time of its sending: the chief may come minutes after the others."""
    return json.dumps({**vars(me), "facts": dict(me.facts), "time": time.time()}).encode() + b"\n"


def _read_introduction(connection: socket.socket) -> WorkerDescription | None:
    connection.settimeout(_ANSWER_SECONDS)
    try:
        tree = json.loads(connection.makefile("rb").readline(_LONGEST_MESSAGE))
        skew = float(tree["time"]) - time.time()
        facts = dict(tree["facts"])
        return WorkerDescription(int(tree["index"]), tuple(tree["addresses"]), facts, str(tree["report"]), skew)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _split(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)
