"""Graceful shutdown on SIGTERM, SIGINT or SIGHUP: all workers save at their next pause and exit.

    first signal, before training          exits at once: there is nothing to save
    first signal, during training          `requested` becomes true; the run saves and exits within the grace time
    another signal within two seconds      ignored: a supervisor and the launcher may both have sent the same request
    second signal, or grace time expired   exits at once; the last complete checkpoint stays
    a signal during the final report       exits at once: the training is saved
    any signal after everything is saved   ignored: the process is about to exit

Every exit has code 75, which means "start again to resume".

The main thread spends its time inside TensorFlow, where Python signal handlers do not run. A separate thread therefore
receives the signals.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from ssd_dist.core.errors import RestartError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_SECONDS = 0.1
_SAME_SIGNAL_SECONDS = 2.0
# Writing to a stopped terminal, or to a pipe that nobody reads, blocks for ever.
_PRINT_SECONDS = 1.0


class StopRequest:
    """Receives stop signals; create it in the main thread, as early as possible."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._finished = threading.Event()
        self._grace_seconds: float | None = None
        # nohup makes a process ignore SIGHUP; keep that.
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        self._signals = tuple(number for number in SIGNALS if number not in ignored)
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._sockets = reader, writer
        # The C signal handler writes to this socket at once, whatever the main thread is doing.
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        # The new thread inherits the signal mask, so that signals go to the main thread.
        with self.block_signals():
            threading.Thread(target=self._listen, daemon=True).start()

    @contextmanager
    def block_signals(self) -> Iterator[None]:
        """Prevents handlers that other code installs in this context from receiving stop signals.

        TensorFlow's coordination service installs its own; they are replaced on exit. If a signal arrives in this
        context, the process exits immediately, because TensorFlow may wait minutes for a missing worker.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        stop_waiting = threading.Event()
        waiter = threading.Thread(target=self._wait_for_signal, args=(stop_waiting,), daemon=True)
        waiter.start()
        try:
            yield
        finally:
            stop_waiting.set()
            waiter.join()
            for number in self._signals:
                signal.signal(number, lambda *_: None)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

    @property
    def requested(self) -> bool:
        """Whether a signal has asked this process to stop."""
        return self._requested.is_set()

    def enable_grace_time(self, grace_seconds: float) -> None:
        """Makes later signals set `requested` instead of exiting; the process then has `grace_seconds` to save."""
        self._grace_seconds = grace_seconds

    def disable_grace_time(self) -> None:
        """Makes later signals exit at once; call when the training is saved and only the report is missing."""
        self._grace_seconds = None

    def ignore_signals(self) -> None:
        """Ignores later signals and cancels a running grace time; call when everything is saved."""
        self._finished.set()

    def _wait_for_signal(self, stop_waiting: threading.Event) -> None:
        while not stop_waiting.is_set():
            if (received := signal.sigtimedwait(self._signals, _POLL_SECONDS)) is not None:
                _exit_on_signal(received.si_signo)

    def _listen(self) -> None:
        reader, _ = self._sockets
        first = 0.0
        while data := reader.recv(1):
            number = data[0]
            if self._finished.is_set() or number not in self._signals:
                continue
            # `disable_grace_time` may change it meanwhile.
            grace_seconds = self._grace_seconds
            if grace_seconds is None:
                _exit_on_signal(number)
            if self._requested.is_set():
                if time.monotonic() - first > _SAME_SIGNAL_SECONDS:
                    _exit_on_signal(number)
                continue
            first = time.monotonic()
            self._requested.set()
            timer = threading.Timer(grace_seconds, self._end_grace_time)
            timer.daemon = True
            timer.start()
            name = signal.Signals(number).name
            _print_to_stderr(
                f"{name}: saving and stopping within {grace_seconds:g} s; send the signal again to stop at once"
            )

    def _end_grace_time(self) -> None:
        seconds = self._grace_seconds
        if not self._finished.is_set() and seconds is not None:
            _exit(f"the state was not saved within {seconds:g} s (preemption.grace_seconds)")


def _print_to_stderr(message: str) -> None:
    """Prints a line to stderr; never fails, and waits at most `_PRINT_SECONDS` for a reader."""

    def write() -> None:
        with suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(_PRINT_SECONDS)


def _exit_on_signal(number: int) -> NoReturn:
    _exit(f"stopped by {signal.Signals(number).name} without saving; the last checkpoint is unchanged")


def _exit(message: str) -> NoReturn:
    try:
        _print_to_stderr(f"error: {message}; start again to resume")
    finally:
        os._exit(RestartError.exit_code)
