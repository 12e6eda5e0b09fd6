"""A signal is heard at any moment, also while the main thread does not run Python; a later one ends at once."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest


def start(body, *flags):
    """A process that says `ready` and then runs the body; the main thread is in C most of the time."""
    script = "import time, ctypes\nfrom ssd_dist.cluster.preemption import StopRequest\nstop = StopRequest()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script + textwrap.dedent(body), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def end_of(process):
    out, errors = process.communicate(timeout=20)
    return process.returncode, out, errors


# In C without the interpreter lock, as TensorFlow is; sleeps are cut short by signals, so there are many.
BUSY = "print('ready', flush=True)\nfor _ in range(20):\n    ctypes.CDLL(None).sleep(2)\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_before_training_it_ends_at_once(number):
    process = start(BUSY)
    process.send_signal(number)
    code, _, errors = end_of(process)
    assert code == 75
    assert errors.startswith("error: ")
    assert "start again" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_while_tensorflow_waits_for_peers_it_ends_at_once(number):
    process = start("with stop.held_back():\n" + textwrap.indent(BUSY, "    "))
    process.send_signal(number)
    code, _, errors = end_of(process)
    assert code == 75
    assert "ended by SIG" in errors


def test_in_training_it_is_only_noted():
    process = start("""
        stop.allow_saving(20.0)
        print("ready", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        print("saved")
        """)
    process.send_signal(signal.SIGTERM)
    code, out, errors = end_of(process)
    assert (code, out) == (0, "saved\n")
    assert "SIGTERM" in errors


def test_a_signal_is_heard_although_another_took_the_handler():
    process = start("""
        import signal
        with stop.held_back():
            ctypes.CDLL(None).signal(int(signal.SIGTERM), ctypes.c_void_p(1))
            print("ready", flush=True)
            time.sleep(15)
        print("not reached")
        """)
    process.send_signal(signal.SIGTERM)
    code, out, errors = end_of(process)
    assert (code, out) == (75, "")
    assert "SIGTERM" in errors


def test_a_later_signal_ends_at_once():
    process = start("stop.allow_saving(20.0)\n" + BUSY)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert end_of(process)[0] == 75
    assert time.monotonic() - started < 10


def test_a_signal_that_comes_by_two_ways_is_one():
    process = start("""
        stop.allow_saving(20.0)
        print("ready", flush=True)
        time.sleep(2)
        print("saved")
        """)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.2)
    assert end_of(process)[:2] == (0, "saved\n")


def test_nohup_stays_in_force():
    # A child inherits what is ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("with stop.held_back():\n    print('ready', flush=True)\n    time.sleep(1)\ntime.sleep(1)")
    finally:
        signal.signal(signal.SIGHUP, before)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
    assert end_of(process)[0] == 0


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_what_nobody_reads_holds_no_signal_back(reader):
    process = start("""
        import os, sys
        stop.allow_saving(3.0)
        print("ready", flush=True)
        if sys.argv[1:] == ["asleep"]:
            os.set_blocking(2, False)
            try:
                while True:
                    os.write(2, bytes(1 << 16))
            except BlockingIOError:
                os.set_blocking(2, True)
        for _ in range(200):
            time.sleep(0.1)
        """, reader)  # fmt: skip
    if reader == "gone":
        process.stderr.close()
    time.sleep(1)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    # The grace time counts although the first word finds no reader.
    assert process.wait(timeout=20) == 75
    assert 2 < time.monotonic() - started < 8
    for pipe in (process.stdout, process.stderr):
        pipe.close()


def test_when_the_grace_time_is_over_it_ends():
    process = start("stop.allow_saving(0.5)\n" + BUSY)
    process.send_signal(signal.SIGTERM)
    code, _, errors = end_of(process)
    assert code == 75
    assert "preemption.grace_seconds" in errors


def test_when_all_is_done_signals_change_nothing():
    process = start("""
        stop.allow_saving(3.0)
        print("ready", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        stop.finish()
        print("done", flush=True)
        for _ in range(50):
            time.sleep(0.1)
        """)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "done\n"
    # Later than what counts as the same signal; and before the process ends its grace time does.
    time.sleep(2.2)
    process.send_signal(signal.SIGTERM)
    assert end_of(process)[0] == 0
