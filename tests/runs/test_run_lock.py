"""Only one process trains in a folder at a time, and it never writes into another folder of the same name."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from ssd_dist.core.config import CheckpointConfig
from ssd_dist.core.errors import CheckpointError, UsageError
from ssd_dist.runs import run_lock
from ssd_dist.runs.checkpoints import BestModel, CheckpointStore
from ssd_dist.runs.metrics_log import MetricsLog
from ssd_dist.runs.run_lock import lock_run_folder

HOLD = "import sys, time\nfrom ssd_dist.runs.run_lock import lock_run_folder\nlock_run_folder(sys.argv[1])\n"


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
    monkeypatch.setattr(run_lock, "_LOCK_SECONDS", 0.6)
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


@pytest.mark.parametrize("next_run", ["none", "another process", "a file"])
def test_a_process_whose_folder_was_deleted_stops_before_its_next_write(tmp_path, next_run):
    run = tmp_path / "run"
    run.mkdir()
    lock = lock_run_folder(str(run))
    log = MetricsLog(str(run), 0, 0, before_write=lock.check)
    model = tf.Module()
    model.weight = tf.Variable(1.0)
    best = BestModel(model, str(run), "coco/AP", 1, lock.check)
    checkpoint = tf.train.Checkpoint(model=model)
    stores = [
        CheckpointStore(checkpoint, str(run), CheckpointConfig(async_save=background), True, lock.check)
        for background in (False, True)
    ]
    log.write("train", 1, {"loss": 1.0})
    stores[0].save(1)
    shutil.rmtree(run)
    if next_run == "another process":
        run.mkdir()
        (run / ".lock").write_text("host other, process 1\n")
    elif next_run == "a file":
        run.write_text("")

    def save_in_background() -> None:
        stores[1].save(3)
        stores[1].wait()

    before = sorted(run.rglob("*"))
    writes = (
        lambda: log.write("train", 2, {"loss": 1.0}),
        lambda: stores[0].save(2),
        save_in_background,
        lambda: best.save_if_best(2, 0.5),
    )
    for write in writes:
        with pytest.raises(CheckpointError, match="the folder was deleted or replaced"):
            write()
    assert sorted(run.rglob("*")) == before


def test_a_new_inode_number_of_the_same_file_is_accepted(tmp_path):
    # As network file systems report it.
    lock = lock_run_folder(str(tmp_path))
    text = (tmp_path / ".lock").read_text()
    (tmp_path / "other").write_text(text)
    (tmp_path / "other").rename(tmp_path / ".lock")
    lock.check()
