"""The lock of the folder of an `ssd-fit`: a second command in the folder ends at once, before it changes anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssd_dist.core.errors import UsageError
from ssd_dist.runs.run_lock import RunLock, try_lock

LOCK_NAME = "fit/.lock"


@contextmanager
def lock_fit_folder(folder: Path) -> Iterator[None]:
    """Locks the folder while the block runs; the operating system releases the lock if the process dies.

    Raises:
      UsageError: if another process has locked the folder, or the folder cannot be written.
    """
    path = folder / LOCK_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"--output={folder} cannot be written: {error}; use a writable folder") from None
    try:
        if not try_lock(handle):
            owner = " ".join(path.read_text().split())
            raise UsageError(
                f"--output={folder}: another ssd-fit works in this folder ({owner}); wait for its end, stop it, or use "
                "another --output"
            )
        RunLock(str(folder), handle).write_owner()
        yield
    finally:
        os.close(handle)
