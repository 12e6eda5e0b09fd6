"""Being told to stop: SIGTERM, SIGINT or SIGHUP asks, and training saves and ends at its next pause, on all workers.

    first signal, before training   ends at once: there is nothing to save
    first signal, in training       `requested` turns true; the run saves and ends within the grace time
    another within two seconds      is the same one, which a supervisor and the launcher have both passed on
    second signal, or grace over    ends at once; the last good checkpoint stays
    any signal, all done            changes nothing: the run is at its end

The main thread spends its time inside TensorFlow, where Python's handlers wait; so the signals are read by a thread.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ssd_dist.core.errors import RestartError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_SECONDS = 0.1
_SAME_SIGNAL_SECONDS = 2.0
# A terminal that was halted, or a pipe that nobody empties, holds a line back for ever.
_TELLING_SECONDS = 1.0


class StopRequest:
    """Whether this process has been asked to stop. Create it in the main thread, as early as possible."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._finished = threading.Event()
        self._grace_seconds: float | None = None
        # nohup ignores SIGHUP, and that stays so.
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        self._signals = tuple(number for number in SIGNALS if number not in ignored)
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
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        over = threading.Event()
        watch = threading.Thread(target=self._wait_for_signal, args=(over,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()
            for number in self._signals:
                signal.signal(number, lambda *_: None)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

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
            if (found := signal.sigtimedwait(self._signals, _POLL_SECONDS)) is not None:
                _end_now(f"ended by {signal.Signals(found.si_signo).name}; the last checkpoint is as it was")

    def _listen(self) -> None:
        reader, _ = self._sockets
        first = 0.0
        while data := reader.recv(1):
            if self._finished.is_set() or data[0] not in self._signals:
                continue
            name = signal.Signals(data[0]).name
            if self._grace_seconds is None:
                _end_now(f"ended by {name}; the last checkpoint is as it was")
            if self._requested.is_set():
                if time.monotonic() - first > _SAME_SIGNAL_SECONDS:
                    _end_now(f"ended by {name}; the last checkpoint is as it was")
                continue
            first = time.monotonic()
            self._requested.set()
            timer = threading.Timer(self._grace_seconds, self._end_grace)
            timer.daemon = True
            timer.start()
            _tell(f"{name}: saving and stopping, within {self._grace_seconds:g} s; a later one ends at once")

    def _end_grace(self) -> None:
        if not self._finished.is_set():
            _end_now(f"not saved within {self._grace_seconds:g} s (preemption.grace_seconds)")


def _tell(message: str) -> None:
    """Says it on stderr, if somebody reads that; never fails, never waits long."""

    def say() -> None:
        with suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    teller.join(_TELLING_SECONDS)


def _end_now(message: str) -> None:
    try:
        _tell(f"error: {message}; start again to go on")
    finally:
        os._exit(RestartError.exit_code)
