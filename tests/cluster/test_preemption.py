"""Stop signals are received at any moment, also while the main thread does not run Python."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest


def start(body, *flags):
    """Starts a process that runs the body and waits until it has printed `ready`."""
    script = "import time, ctypes\nfrom ssd_dist.cluster.preemption import StopRequest\nstop = StopRequest()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script + textwrap.dedent(body), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_exit(process):
    """Returns the exit code, stdout and stderr."""
    out, errors = process.communicate(timeout=20)
    return process.returncode, out, errors


# C code without the interpreter lock, like TensorFlow. A signal ends a sleep early, so there are several.
BUSY = "print('ready', flush=True)\nfor _ in range(20):\n    ctypes.CDLL(None).sleep(2)\n"
WAIT_FOR_THE_REQUEST = "print('ready', flush=True)\nwhile not stop.requested:\n    time.sleep(0.01)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_training_exits_at_once(number):
    process = start(BUSY)
    process.send_signal(number)
    code, _, errors = wait_for_exit(process)
    assert code == 75
    assert errors.startswith("error: ")
    assert "start again" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_tensorflow_waits_for_peers_exits_at_once(number):
    process = start("with stop.block_signals():\n" + textwrap.indent(BUSY, "    "))
    process.send_signal(number)
    code, _, errors = wait_for_exit(process)
    assert code == 75
    assert "stopped by SIG" in errors


def test_a_signal_during_training_sets_the_request():
    process = start("""
        stop.enable_grace_time(20.0)
        print("ready", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        time.sleep(2)  # the message is printed by another thread
        print("saved")
        """)
    process.send_signal(signal.SIGTERM)
    code, out, errors = wait_for_exit(process)
    assert (code, out) == (0, "saved\n")
    assert "SIGTERM" in errors


def test_a_signal_is_received_although_other_code_replaced_the_handler():
    process = start("""
        import signal
        with stop.block_signals():
            ctypes.CDLL(None).signal(int(signal.SIGTERM), ctypes.c_void_p(1))
            print("ready", flush=True)
            time.sleep(15)
        print("not reached")
        """)
    process.send_signal(signal.SIGTERM)
    code, out, errors = wait_for_exit(process)
    assert (code, out) == (75, "")
    assert "SIGTERM" in errors


def test_a_second_signal_exits_at_once():
    process = start("stop.enable_grace_time(20.0)\n" + BUSY)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert wait_for_exit(process)[0] == 75
    assert time.monotonic() - started < 10


def test_signals_within_two_seconds_count_as_one():
    process = start("""
        stop.enable_grace_time(20.0)
        print("ready", flush=True)
        time.sleep(2)
        print("saved")
        """)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.2)
    assert wait_for_exit(process)[:2] == (0, "saved\n")


def test_nohup_keeps_ignoring_sighup():
    # A child process inherits which signals are ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("with stop.block_signals():\n    print('ready', flush=True)\n    time.sleep(1)\ntime.sleep(1)")
    finally:
        signal.signal(signal.SIGHUP, before)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
    assert wait_for_exit(process)[0] == 0


@pytest.mark.parametrize("reader", ["closed", "blocked"])
def test_the_grace_time_ends_although_nobody_reads_stderr(reader):
    process = start("""
        import os, sys
        stop.enable_grace_time(3.0)
        print("ready", flush=True)
        if sys.argv[1:] == ["blocked"]:
            os.set_blocking(2, False)
            try:
                while True:
                    os.write(2, bytes(1 << 16))
            except BlockingIOError:
                os.set_blocking(2, True)
        for _ in range(200):
            time.sleep(0.1)
        """, reader)  # fmt: skip
    if reader == "closed":
        process.stderr.close()
    time.sleep(1)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    # The grace time starts although the first message cannot be written.
    assert process.wait(timeout=20) == 75
    assert 2 < time.monotonic() - started < 8
    for pipe in (process.stdout, process.stderr):
        pipe.close()


def test_the_process_exits_when_the_grace_time_is_over():
    process = start("stop.enable_grace_time(0.5)\n" + BUSY)
    process.send_signal(signal.SIGTERM)
    code, _, errors = wait_for_exit(process)
    assert code == 75
    assert "preemption.grace_seconds" in errors


def test_a_signal_during_the_report_exits_at_once_and_a_grace_time_that_runs_does_not_end():
    process = start(f"""
stop.enable_grace_time(1.0)
{WAIT_FOR_THE_REQUEST}
stop.disable_grace_time()
time.sleep(3)
print("reporting", flush=True)
for _ in range(200):
    time.sleep(0.1)
""")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "reporting\n"
    process.send_signal(signal.SIGTERM)
    code, _, errors = wait_for_exit(process)
    assert code == 75
    assert "stopped by SIGTERM without saving; the last checkpoint is unchanged" in errors


def test_signals_are_ignored_after_everything_is_saved():
    process = start(f"""
stop.enable_grace_time(3.0)
{WAIT_FOR_THE_REQUEST}
stop.ignore_signals()
print("done", flush=True)
for _ in range(50):
    time.sleep(0.1)
""")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "done\n"
    # Later than the two seconds in which signals count as one. The grace time ends before the process does.
    time.sleep(2.2)
    process.send_signal(signal.SIGTERM)
    assert wait_for_exit(process)[0] == 0
