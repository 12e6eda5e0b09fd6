"""The watchdog prints stack traces repeatedly while the program is stuck, and prints nothing otherwise."""

import subprocess
import sys
import textwrap

IMPORTS = "import time\nfrom ssd_dist.cluster.watchdog import Watchdog\n"


def test_stack_traces_of_a_stuck_program_are_printed_repeatedly():
    script = """
        def read_next_batch():
            time.sleep(60)

        with Watchdog(0.2):
            read_next_batch()
        """
    command = [sys.executable, "-c", IMPORTS + textwrap.dedent(script)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            # The test ends with the third stack trace, however slow the machine is.
            lines = (line for line in process.stderr if "in read_next_batch" in line)
            assert [next(lines, None) is not None for _ in range(3)] == [True] * 3
        finally:
            process.kill()


def test_reset_restarts_the_time_and_exit_stops_it():
    script = """
        with Watchdog(1.5) as watchdog:
            for _ in range(20):
                time.sleep(0.1)
                watchdog.reset()
        time.sleep(1.7)
        """
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS + textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
