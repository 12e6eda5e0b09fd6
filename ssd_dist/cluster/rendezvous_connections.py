"""The chief's connections during the rendezvous: reads one description from each, many at the same time.

The port is open to every program that can reach it. A connection that does not send a valid description in time is
closed and counted, without effect on the other connections.
"""

import contextlib
import selectors
import socket
import time
from types import TracebackType

from ssd_dist.cluster.rendezvous_messages import (
    MAX_MESSAGE_BYTES,
    REFUSAL,
    SECRET_VARIABLE,
    SignatureError,
    WorkerDescription,
    create_nonce,
    decode_description,
    encode_answer,
    encode_greeting,
)
from ssd_dist.core.printable import make_printable

# From the connection to the end of the message. A worker sends its description at once.
CONNECTION_SECONDS = 10.0
# More connections without a description close the oldest of them; they limit the use of memory and open files.
_MAX_PENDING = 64
_READ_BYTES = 1 << 16
_QUEUE_LENGTH = 128


class WorkerConnection:
    """An accepted connection.

    Attributes:
      socket: the connection itself, non-blocking.
      host: the IP address of the other side.
      deadline: `time.monotonic()` at which the connection is closed if no description has arrived.
    """

    def __init__(self, connection: socket.socket, host: str) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.host = host
        self.deadline = time.monotonic() + CONNECTION_SECONDS
        self._nonce = create_nonce()
        self._worker_nonce = ""
        self._received = bytearray()

    def greet(self) -> None:
        """Sends the first message; raises OSError if the other side has closed the connection."""
        self.socket.sendall(encode_greeting(self._nonce))

    def read(self, secret: bytes) -> WorkerDescription | None:
        """Reads the bytes that have arrived; returns the description when it is complete.

        Raises:
          OSError, ValueError: if the connection is lost, or its message is not a valid description.
        """
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("closed without a message")
        self._received += data
        if len(self._received) > MAX_MESSAGE_BYTES:
            raise ValueError(f"the message has more than {MAX_MESSAGE_BYTES} bytes")
        if b"\n" not in data:
            return None
        # A worker waits for the answer after its only line, so more data makes the message invalid.
        description, self._worker_nonce = decode_description(bytes(self._received), self._nonce, secret)
        return description

    def answer(self, problem: str, secret: bytes) -> None:
        """Sends the result of the rendezvous; a worker that has ended is detected after the start."""
        with contextlib.suppress(OSError):
            # Shortened, so that the message fits into the buffer of the connection.
            self.socket.sendall(encode_answer(make_printable(problem), self._worker_nonce, secret))

    def refuse(self) -> None:
        """Answers a description with a wrong signature."""
        with contextlib.suppress(OSError):
            self.socket.sendall(REFUSAL)

    def is_closed(self) -> bool:
        """Returns whether the worker has closed the connection; a waiting worker sends no more data."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()


class ConnectionReader:
    """Accepts connections on the chief's port and reads descriptions from all of them at the same time.

    Attributes:
      ignored: number of connections that were closed because they sent no valid description.
      wrong_signatures: how many of them sent a description with a wrong signature.
    """

    def __init__(self, server: socket.socket, worker_count: int, secret: bytes) -> None:
        self.ignored = 0
        self.wrong_signatures = 0
        self._worker_count = worker_count
        self._secret = secret
        self._server = server
        self._pending: list[WorkerConnection] = []
        self._selector = selectors.DefaultSelector()
        self._last_ignored = ""

    def __enter__(self) -> "ConnectionReader":
        self._server.setblocking(False)
        self._server.listen(_QUEUE_LENGTH)
        self._selector.register(self._server, selectors.EVENT_READ)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._pending:
            connection.close()
        self._selector.close()

    def receive(self, seconds: float) -> list[tuple[WorkerConnection, WorkerDescription]]:
        """Waits for descriptions, at most `seconds`.

        Returns:
          The connections on which a description has arrived; the caller closes them. Empty if the time is over.
        """
        arrived: list[tuple[WorkerConnection, WorkerDescription]] = []
        end = time.monotonic() + seconds
        while not arrived and (now := time.monotonic()) <= end:
            next_deadline = min([end, *(connection.deadline for connection in self._pending)])
            for key, _ in self._selector.select(max(next_deadline - now, 0.0)):
                if key.data is None:
                    self._accept()
                elif key.data in self._pending and (description := self._read(key.data)) is not None:
                    arrived.append((key.data, description))
            for connection in [one for one in self._pending if one.deadline <= time.monotonic()]:
                self._ignore(connection)
        return arrived

    def describe_ignored(self) -> str:
        """Returns how many connections were ignored, and the reason if the user can fix it; empty if none was."""
        if not self.ignored:
            return ""
        signatures = f"; {self.wrong_signatures} with another {SECRET_VARIABLE}" if self.wrong_signatures else ""
        return f"ignored connections: {self.ignored}, the last from {self._last_ignored}{signatures}"

    def _accept(self) -> None:
        try:
            accepted, address = self._server.accept()
        except OSError:
            # The other side has already closed the connection, or the process has too many open files.
            return
        connection = WorkerConnection(accepted, address[0].removeprefix("::ffff:"))
        if len(self._pending) >= _MAX_PENDING:
            self._ignore(self._pending[0])
        self._pending.append(connection)
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        try:
            connection.greet()
        except OSError:
            self._ignore(connection)

    def _read(self, connection: WorkerConnection) -> WorkerDescription | None:
        """Reads from a connection; returns the description when it is complete."""
        try:
            description = connection.read(self._secret)
            if description is not None and not 0 < description.index < self._worker_count:
                raise ValueError(f"there is no worker {description.index}")
        except (OSError, ValueError) as error:
            if isinstance(error, SignatureError):
                self.wrong_signatures += 1
                connection.refuse()
            self._ignore(connection)
            return None
        if description is not None:
            self._remove(connection)
        return description

    def _ignore(self, connection: WorkerConnection) -> None:
        self.ignored += 1
        self._last_ignored = connection.host
        self._remove(connection)
        connection.close()

    def _remove(self, connection: WorkerConnection) -> None:
        self._selector.unregister(connection.socket)
        self._pending.remove(connection)
