"""Being told to stop: SIGTERM or SIGINT asks, and training saves and ends at its next pause, on all workers together.

    first signal, before training   ends at once: there is nothing to save
    first signal, in training       `requested` turns true; the run saves and ends within the grace time
    second signal, or grace over    ends at once; the last good checkpoint stays
    any signal, all done            changes nothing: the run is at its end

The main thread spends its time inside TensorFlow, where Python's handlers wait; so the signals are read by a thread.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ssd_dist.core.errors import RestartError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.1


class StopRequest:
    """Whether this process has been asked to stop. Create it in the main thread, as early as possible."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._finished = threading.Event()
        self._grace_seconds: float | None = None
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._sockets = reader, writer
        # Written by the C handler at once, whatever the main thread is doing.
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        # The thread inherits that signals are blocked: they go to the main thread.
        with self.held_back():
            threading.Thread(target=self._listen, daemon=True).start()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Keeps signals from handlers that are set meanwhile: TensorFlow's coordination service sets its own.

        A signal ends the process at once, as ever before training: for a peer that does not come TensorFlow waits long.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        over = threading.Event()
        watch = threading.Thread(target=self._wait_for_signal, args=(over,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()
            for number in SIGNALS:
                signal.signal(number, lambda *_: None)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._requested.is_set()

    def allow_saving(self, grace_seconds: float) -> None:
        """From now on a signal leaves `grace_seconds` to save."""
        self._grace_seconds = grace_seconds

    def finish(self) -> None:
        """From now on signals, and one that came late, change nothing: all is saved."""
        self._finished.set()

    def _wait_for_signal(self, over: threading.Event) -> None:
        while not over.is_set():
            if (found := signal.sigtimedwait(SIGNALS, _POLL_SECONDS)) is not None:
                _end_now(f"ended by {signal.Signals(found.si_signo).name}; the last checkpoint is as it was")

    def _listen(self) -> None:
        reader, _ = self._sockets
        while data := reader.recv(1):
            if self._finished.is_set():
                continue
            name = signal.Signals(data[0]).name
            if self._grace_seconds is None or self._requested.is_set():
                _end_now(f"ended by {name}; the last checkpoint is as it was")
            self._requested.set()
            _tell(f"{name}: saving and stopping, within {self._grace_seconds:g} s; once more ends at once")
            timer = threading.Timer(self._grace_seconds, self._end_grace)
            timer.daemon = True
            timer.start()

    def _end_grace(self) -> None:
        if not self._finished.is_set():
            _end_now(f"not saved within {self._grace_seconds:g} s (preemption.grace_seconds)")


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _end_now(message: str) -> None:
    _tell(f"error: {message}; start again to go on")
    os._exit(RestartError.exit_code)
