"""Tests that errors become exit codes, even if the message cannot be printed."""

import errno
import io
import os
import subprocess
import sys

import pytest

from ssd_dist.core import errors

CODES = {
    errors.UsageError: 2, errors.DataError: 3, errors.CheckpointError: 4, errors.NumericsError: 2,
    errors.RestartError: 75, KeyboardInterrupt: 130,
}  # fmt: skip


class ClosedTerminal(io.StringIO):
    """A stream that fails like a closed terminal."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_an_error_prints_one_line_and_returns_its_exit_code(monkeypatch, capsys, kind, code):
    def fail():
        raise kind("first\nsecond")

    assert errors.exit_with_message(fail) == code
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    monkeypatch.setattr(sys, "stderr", ClosedTerminal())
    assert errors.exit_with_message(fail) == code


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS])
def test_a_path_that_the_system_refuses_is_an_error_of_the_user(capsys, number):
    def fail(number):
        raise OSError(number, os.strerror(number), "/locked")

    assert errors.exit_with_message(lambda: fail(number)) == 2
    assert capsys.readouterr().err.startswith(f"error: /locked: {os.strerror(number)}; ")
    with pytest.raises(IsADirectoryError):
        errors.exit_with_message(lambda: fail(errno.EISDIR))


def test_a_full_disk_is_reported_without_a_name(capsys):
    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert errors.exit_with_message(fail) == 2
    message = "error: the output cannot be written: No space left on device; use another path, or free space"
    assert capsys.readouterr().err.startswith(message)


def test_an_error_that_cannot_be_written_to_its_file_is_printed(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SSD_DIST_ERROR_FILE", str(tmp_path / "missing" / "error.json"))

    def fail():
        raise errors.DataError("no image")

    assert errors.exit_with_message(fail) == 3
    assert capsys.readouterr().err == "error: no image\n"


def test_success_is_0_and_other_exceptions_propagate():
    assert errors.exit_with_message(lambda: None) == 0
    assert errors.exit_with_message(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        errors.exit_with_message(lambda: 1 // 0)


def test_a_command_whose_output_is_closed_ends_without_a_traceback():
    program = """
import sys
from ssd_dist.core.errors import exit_with_message

def main():
    for _ in range(100_000):
        print("a line")

sys.exit(exit_with_message(main))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(60), errors) == (141, b"")


def test_a_missing_package_is_an_error_of_the_user_only_if_an_extra_contains_it(capsys):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert errors.exit_with_message(lambda: import_module("tf2onnx.convert")) == 2
    assert capsys.readouterr().err.endswith("pip install 'ssd_dist[export]'\n")
    with pytest.raises(ModuleNotFoundError):
        errors.exit_with_message(lambda: import_module("ssd_dist.misspelled"))
