"""Tests the retry policy and atomic writes."""

import errno
import os
import subprocess
import sys

import pytest

from ssd_dist.core import storage
from ssd_dist.core.commands import check_writable
from ssd_dist.core.environment_variables import set_tensorflow_defaults


def fail_times(times, error):
    """Returns a function that raises `error` the first `times` times and then returns 7."""
    left = [times]

    def action():
        if left[0]:
            left[0] -= 1
            raise error
        return 7

    return action


def test_transient_errors_are_retried_with_growing_pauses(monkeypatch, capsys):
    pauses = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    assert storage.retry(fail_times(5, OSError("slow")), "FILE", lambda _: True) == 7
    assert pauses == list(storage.RETRY_PAUSES) == sorted(pauses)
    assert capsys.readouterr().err.splitlines()[0] == "warning: FILE: slow; retrying in 0.5 s"


def test_the_last_error_is_raised(monkeypatch):
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    with pytest.raises(OSError, match="slow"):
        storage.retry(fail_times(6, OSError("slow")), "FILE", lambda _: True)


def test_permanent_errors_are_not_retried(monkeypatch, capsys):
    monkeypatch.setattr(storage.time, "sleep", lambda _: pytest.fail("paused"))
    with pytest.raises(PermissionError):
        storage.retry(fail_times(1, PermissionError()), "FILE", lambda error: not isinstance(error, PermissionError))
    assert capsys.readouterr().err == ""


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with storage.replace_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert storage.TEMPORARY in temporary.name
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["x.txt"]


def test_a_link_stays_a_link_and_a_device_stays_a_device(tmp_path):
    file, link, pipe = (tmp_path / name for name in ("file", "link", "pipe"))
    file.write_text("old")
    link.symlink_to(file)
    storage.write_text(link, "new")
    assert (link.is_symlink(), file.read_text()) == (True, "new")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    storage.write_text(pipe, "text")
    assert (pipe.is_fifo(), os.read(reader, 10)) == (True, b"text")
    os.close(reader)
    # What the shell has opened for a command stays open, also if it is a file.
    with (tmp_path / "log").open("w+") as log:
        storage.write_text(f"/proc/self/fd/{log.fileno()}", "text")
        assert (log.read(), os.fstat(log.fileno()).st_nlink) == ("text", 1)
    (tmp_path / "dangling").symlink_to("none")
    storage.write_text(tmp_path / "dangling", "new")
    assert (tmp_path / "none").read_text() == "new"


@pytest.mark.parametrize("name", ["x" * 255, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 85])
def test_a_name_may_have_255_bytes(tmp_path, name):
    storage.write_text(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize("step", ["write", "flush"])
def test_an_error_keeps_the_previous_file_and_removes_the_temporary_file(tmp_path, monkeypatch, step):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "flush":
        monkeypatch.setattr(storage, "flush_to_disk", fail)
    else:
        monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        storage.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_variable_set_by_the_user_is_kept_and_others_are_inherited(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.delenv("TF_USE_LEGACY_KERAS")
    set_tensorflow_defaults()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    program = "import os; print(os.environ['TF_USE_LEGACY_KERAS'], os.environ['TF_CPU_ALLOCATOR_USE_BFC'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "true"]


def test_importing_the_package_changes_no_environment_variable():
    program = "import os; before = dict(os.environ); import ssd_dist; print(os.environ == before, ssd_dist.__version__)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "True"


def test_checking_a_link_to_a_missing_file_keeps_the_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("none")
    check_writable("output", link)
    assert (link.is_symlink(), (tmp_path / "none").exists()) == (True, False)
