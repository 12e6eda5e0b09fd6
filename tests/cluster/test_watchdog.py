"""The watchdog reports stack traces repeatedly while the program is stuck, and reports nothing otherwise."""

import subprocess
import sys
import textwrap

import pytest

from ssd_dist.cluster.watchdog import Watchdog

IMPORTS = "import ctypes, sys, time\nfrom ssd_dist.cluster.watchdog import Watchdog\n"


def build_command(script: str, path) -> list[str]:
    return [sys.executable, "-c", IMPORTS + textwrap.dedent(script), str(path)]


# A function in Python, and a native one that blocks the interpreter.
@pytest.mark.parametrize("sleep", ["time.sleep", "ctypes.PyDLL(None).sleep"])
def test_stack_traces_of_a_stuck_program_are_printed_repeatedly(sleep, tmp_path):
    script = f"""
        def read_next_batch():
            {sleep}(60)

        with Watchdog(0.2, sys.argv[1]) as watchdog:
            watchdog.start()
            read_next_batch()
        """
    with subprocess.Popen(build_command(script, tmp_path / "stall.txt"), stderr=subprocess.PIPE, text=True) as process:
        try:
            # The test ends with the third stack trace, however slow the machine is.
            lines = (line for line in process.stderr if "in read_next_batch" in line)
            assert [next(lines, None) is not None for _ in range(3)] == [True] * 3
        finally:
            process.kill()


def test_a_report_is_introduced_by_a_sentence_and_written_to_a_file(tmp_path):
    script = """
        with Watchdog(0.2, sys.argv[1]) as watchdog:
            watchdog.start()
            time.sleep(60)
        """
    path = tmp_path / "stall.txt"
    with subprocess.Popen(build_command(script, path), stderr=subprocess.PIPE, text=True) as process:
        try:
            first, second = process.stderr.readline(), process.stderr.readline()
        finally:
            process.kill()
    for sentence, trace in ((first, second), path.read_text().splitlines()[:2]):
        assert "no step has finished for 0.2 s; training resumes when the step ends" in sentence
        assert str(path) in sentence
        assert "thread" in trace.lower()


def test_a_file_that_cannot_be_written_does_not_stop_the_reports(tmp_path):
    script = """
        with Watchdog(0.2, sys.argv[1]) as watchdog:
            watchdog.start()
            time.sleep(60)
        """
    with subprocess.Popen(build_command(script, tmp_path), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert [next(line for line in process.stderr if "no step has finished" in line) for _ in range(2)]
        finally:
            process.kill()


def test_reset_restarts_the_time_and_exit_stops_it(tmp_path):
    script = """
        with Watchdog(1.5, sys.argv[1]) as watchdog:
            watchdog.reset()
            time.sleep(3.2)  # the first step: neither creation nor reset starts the time
            watchdog.start()
            for _ in range(20):
                time.sleep(0.1)
                watchdog.reset()
        time.sleep(3.2)
        """
    done = subprocess.run(build_command(script, tmp_path / "stall.txt"), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.iterdir())


def test_any_number_of_seconds_is_accepted(tmp_path):
    with Watchdog(1e300, str(tmp_path / "stall.txt")) as watchdog:
        watchdog.start()
        watchdog.reset()
