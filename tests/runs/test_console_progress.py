"""What a run shows on the console; a run continues when its console output can no longer be written."""

import os
import re
import subprocess
import sys

import pytest
from support.terminal import remove_escapes, run_in_terminal

from ssd_dist.runs.console_progress import TrainingProgress

RUN = """
import sys, time
from ssd_dist.core.stage_line import show_stages
from ssd_dist.runs.console_progress import TrainingProgress
with show_stages("start") as stages:
    progress = TrainingProgress(0, 100, is_chief=True, stages=stages)
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


STEPS = """
from ssd_dist.core.stage_line import show_stages
from ssd_dist.runs.console_progress import TrainingProgress
with show_stages("start TensorFlow") as stages:
    progress = TrainingProgress(100, 1100, is_chief=True, stages=stages)
    progress.show_stage("first step")
    progress._started -= 500  # it took 500 seconds
    progress.show_step(101)
    progress._started -= 10
    progress.report(111, {"loss": 1.5, "lr": 0.1, "images_per_second": 5.0})
    stages._progress.refresh()
    progress.show_stage("evaluate", 3)
    progress.report_metric("coco/AP50", 0.25)
    progress.print_line("step 111  coco/AP50 0.250")
    progress.show_step(111)
    stages._progress.refresh()
"""


def test_a_terminal_shows_loss_metric_and_the_time_left_without_the_first_step():
    _, printed = run_in_terminal([sys.executable, "-c", STEPS])
    shown = remove_escapes(printed)
    # 10 steps took 10 seconds, so 989 steps take 16:29.
    assert re.search(r"train \S+ 111/1100  loss 1.500  left 0:16:29", shown)
    assert re.search(r"train \S+ 111/1100  loss 1.500  AP50 0.250  left 0:16:29", shown)
    assert "step 111  coco/AP50 0.250\n" in shown
    # Plain lines of steps are for files.
    assert "step 111/1100" not in shown


def test_elsewhere_each_report_is_a_line(capfd):
    progress = TrainingProgress(0, 100, is_chief=True)
    for step in (1, 20, 40):
        progress.show_step(step)
        progress.report(step, {"loss": 1.5, "lr": 0.1, "images_per_second": 5.0})
    lines = capfd.readouterr().out.splitlines()
    assert lines[1:] == [f"step {step}/100  loss 1.500  lr 1.00e-01  5.0 img/s  left 0:00:00" for step in (20, 40)]
    TrainingProgress(0, 100, is_chief=False).report(20, {"loss": 1.5, "lr": 0.1, "images_per_second": 5.0})
    assert capfd.readouterr().out == ""
