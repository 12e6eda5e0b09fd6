"""A run continues when its console output can no longer be written."""

import os
import subprocess
import sys

import pytest

RUN = """
import sys, time
from ssd_dist.runs.console_progress import TrainingProgress
with TrainingProgress(0, 100, is_chief=True) as progress:
    for step in range(100):
        progress.report(step, {"loss": 1.0, "lr": 0.1, "images_per_second": 5.0})
        progress.print_line("x" * 1000)
        time.sleep(0.01)
print("the last line")
sys.stderr.write("done")
"""


@pytest.mark.parametrize("where", ["pipe", "terminal", "full disk"])
def test_a_run_does_not_end_when_its_output_fails(where):
    if where == "full disk":
        reader, writer = None, os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe() if where == "pipe" else os.openpty()
    process = subprocess.Popen([sys.executable, "-c", RUN], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    if reader is not None:
        assert os.read(reader, 100)
        os.close(reader)
    assert process.communicate(timeout=60)[1] == "done"
    assert process.returncode == 0
