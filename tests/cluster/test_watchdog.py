"""A step that is stuck says where, again and again; one that is not says nothing."""

import subprocess
import sys
import textwrap

IMPORTS = "import time\nfrom ssd_dist.cluster.watchdog import StallWatch\n"


def test_what_is_stuck_is_named_again_and_again():
    script = """
        def read_next_batch():
            time.sleep(60)

        with StallWatch(0.2):
            read_next_batch()
        """
    command = [sys.executable, "-c", IMPORTS + textwrap.dedent(script)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            # No clock: it ends with the third, however slow the machine is.
            names = (line for line in process.stderr if "in read_next_batch" in line)
            assert [next(names, None) is not None for _ in range(3)] == [True] * 3
        finally:
            process.kill()


def test_progress_and_the_end_start_and_stop_the_wait():
    script = """
        with StallWatch(1.5) as watch:
            for _ in range(20):
                time.sleep(0.1)
                watch.progress()
        time.sleep(1.7)
        """
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS + textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
