"""The lock of a run folder: one process trains in a folder, and only while the folder is the one that it locked."""

import errno
import fcntl
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from ssd_dist.core.errors import CheckpointError, UsageError
from ssd_dist.core.printable import print_line

LOCK_NAME = ".lock"

# Longer than NFS keeps the lock of a lost host (90 s), and longer than a run takes to save and exit.
_LOCK_SECONDS = 100.0


class RunLock:
    """The lock of a run folder, which this process holds until it ends."""

    def __init__(self, model_dir: str, handle: int) -> None:
        self._model_dir = model_dir
        self._path = Path(model_dir) / LOCK_NAME
        # Never closed: closing the file releases the lock. The operating system closes it when the process ends.
        self._handle = handle
        self._text = f"host {socket.gethostname()}, process {os.getpid()}\n"

    def write_owner(self) -> None:
        """Writes this process into the lock file, for the messages of others; on a full disk, the lock still works."""
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, self._text.encode(), 0)

    def check(self) -> None:
        """Checks that the folder still has the file that this process locked; call before each write into the folder.

        Otherwise a process whose folder was deleted would write into the new run of the same name.

        Raises:
          CheckpointError: if the folder was deleted or replaced.
          OSError: if the storage does not answer.
        """
        with suppress(FileNotFoundError, NotADirectoryError):
            found, own = os.stat(self._path), os.fstat(self._handle)
            # Some network file systems give a file a new inode number now and then; its content is still the same.
            if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino) or self._path.read_text() == self._text:
                return
        raise CheckpointError(
            f"--model_dir={self._model_dir}: the folder was deleted or replaced while this process trained in it; "
            "this process stops without writing; start again to train in the folder that has this name now"
        )


def lock_run_folder(model_dir: str) -> RunLock:
    """Locks the run folder until this process ends; waits for another process that is about to exit.

    Raises:
      UsageError: if another process still trains in the folder after `_LOCK_SECONDS`.
      OSError: if the folder cannot be written.
    """
    path = Path(model_dir) / LOCK_NAME
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + _LOCK_SECONDS
    reported = False
    while not try_lock(handle):
        owner = " ".join(path.read_text().split())
        text = f"--model_dir={model_dir}: another process trains in this folder ({owner})"
        if time.monotonic() > deadline:
            raise UsageError(
                f"{text}; stop it, or use another --model_dir; if its host no longer exists, delete {path}"
            )
        if not reported:
            print_line(f"{text}; waiting up to {_LOCK_SECONDS:g} s for it to exit", sys.stderr)
            reported = True
        time.sleep(0.5)
    lock = RunLock(model_dir, handle)
    lock.write_owner()
    return lock


def try_lock(handle: int) -> bool:
    """Locks an open file for this process; returns whether no other process has locked it."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Any other error means that the file system does not support locks.
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
