"""The live line of a command, seen through a pseudo-terminal, and where the output of libraries goes."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.terminal import remove_escapes, run_in_terminal

PROGRAM = """
import os, time, warnings
from absl import logging
from ssd_dist.core.commands import run_command
from ssd_dist.core.errors import DataError
from ssd_dist.core.printable import print_line, print_warning
from ssd_dist.core.stage_line import show_stages

def main(arguments):
    with show_stages("start \\x1b[31m[red]", arguments[0], "train") as stages:
        time.sleep(0.3)
        for number in stages.track("read images", range(3)):
            time.sleep(0.2)
            print_line(f"line {number} with [red]")
        print_warning("a warning")
        if "libraries" in arguments:
            os.write(2, b"C++ code\\n")
            logging.warning("Python logging")
            warnings.warn("deprecated", stacklevel=1)
        if "abort" in arguments:
            os.abort()
        if "bug" in arguments:
            raise ValueError("a bug")
    raise DataError("a mistake")

run_command(main, keep_unknown=True)
"""


def start(*arguments: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *arguments]


def test_a_terminal_shows_stage_count_and_clock_and_keeps_the_lines_of_the_command(tmp_path: Path) -> None:
    code, printed = run_in_terminal(start(str(tmp_path / "run")))
    shown = remove_escapes(printed)
    assert code == 3
    # From the first moment, escaped and without interpreting brackets.
    first = next(line for line in shown.splitlines() if line.strip())
    assert "0:00:00 start \\x1b[31m[red]" in first
    for count in range(4):
        assert f"{count}/3" in shown
    # The lines stay: each is followed by a line feed, and not erased.
    for line in ("line 0 with [red]", "line 2 with [red]", "warning: a warning", "error: a mistake"):
        assert f"{line}\n" in shown
    # A process that is killed could not show the cursor again.
    assert "\x1b[?25l" not in printed
    # Nothing was printed by a library, and there was no run folder before.
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changed", ["pipes", "TF_CONFIG"])
def test_without_a_terminal_or_with_several_workers_there_are_only_plain_lines(tmp_path: Path, changed: str) -> None:
    command = start(str(tmp_path / "run"), "libraries")
    lines = [f"line {number} with [red]" for number in range(3)]
    if changed == "pipes":
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines() == lines
        # A file or a supervisor gets everything.
        for text in ("warning: a warning", "C++ code", "Python logging", "deprecated", "error: a mistake"):
            assert text in done.stderr
    else:
        _, printed = run_in_terminal(["env", "TF_CONFIG={}", *command])
        assert printed.replace("\r", "").splitlines()[:4] == [*lines, "warning: a warning"]
    assert not (tmp_path / "run").exists()


def test_stdout_stays_free_of_the_line_if_only_stderr_is_a_terminal(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w") as file:
        _, printed = run_in_terminal(start(str(tmp_path / "run")), stdout=file.fileno())
    assert (tmp_path / "out.txt").read_text() == "".join(f"line {number} with [red]\n" for number in range(3))
    assert "read images" in printed


def test_output_of_libraries_goes_to_the_log_of_the_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        _, printed = run_in_terminal(start(str(run), "libraries"))
        assert "warning: a warning" in printed
        assert not [text for text in ("C++ code", "Python logging", "deprecated") if text in printed]
    log = (run / "logs/train.log").read_text()
    assert [log.count(text) for text in ("--- train, ", "C++ code", "Python logging", "deprecated")] == [2] * 4
    assert "a warning" not in log


def test_a_crash_is_visible_on_the_terminal(tmp_path: Path) -> None:
    code, printed = run_in_terminal(start(str(tmp_path / "run"), "libraries", "abort"))
    assert code == -6
    assert "Fatal Python error: Aborted" in printed
    assert "C++ code" in (tmp_path / "run/logs/train.log").read_text()
    code, printed = run_in_terminal(start(str(tmp_path / "other"), "bug"))
    assert code == 1
    assert "ValueError: a bug" in printed


def test_a_log_that_cannot_be_written_leaves_the_output_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # A full disk, and a name that is too long.
    (tmp_path / "full/logs").mkdir(parents=True)
    (tmp_path / "full/logs/train.log").symlink_to("/dev/full")
    for run in ("file/run", "full", "x" * 300):
        code, printed = run_in_terminal(start(str(tmp_path / run), "libraries"))
        assert (code, "C++ code" in printed) == (3, True), printed


def test_stdout_may_be_closed(tmp_path: Path) -> None:
    code, printed = run_in_terminal(["sh", "-c", 'exec "$@" >&-', "sh", *start(str(tmp_path))])
    assert code == 3
    assert "error: a mistake" in printed
    assert "Traceback" not in printed
