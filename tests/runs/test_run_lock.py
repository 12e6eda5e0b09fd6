"""Only one process trains in a folder at a time; on file systems without locks this is not checked."""

import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from ssd_dist.core.errors import UsageError
from ssd_dist.runs import run_folder
from ssd_dist.runs.run_folder import lock_run_folder

HOLD = "import sys, time\nfrom ssd_dist.runs.run_folder import lock_run_folder\nlock_run_folder(sys.argv[1])\n"


@pytest.fixture
def holder(tmp_path):
    """Starts another process that locks the folder until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + "print('locked', flush=True)\ntime.sleep(200)", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_owner_of_the_lock(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.6)
    with pytest.raises(UsageError, match=f"process {holder.pid}.*use another --model_dir"):
        lock_run_folder(str(tmp_path))


def test_a_process_waits_for_another_that_is_about_to_exit(holder, tmp_path, capsys):
    threading.Timer(1.0, holder.kill).start()
    lock_run_folder(str(tmp_path))
    assert f"process {holder.pid}" in capsys.readouterr().err
    assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()


def test_the_same_process_may_lock_the_folder_again(tmp_path):
    for _ in range(2):
        lock_run_folder(str(tmp_path))


@pytest.mark.parametrize(("module", "name", "number"), [(fcntl, "lockf", errno.ENOLCK), (os, "pwrite", errno.ENOSPC)])
def test_missing_locks_and_a_full_disk_are_accepted(tmp_path, monkeypatch, module, name, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, fail)
    lock_run_folder(str(tmp_path))
