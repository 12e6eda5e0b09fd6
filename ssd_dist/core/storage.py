"""The rules for files that all packages share: remote paths, the retry policy, and atomic writes of local files.

`pipelines/beam_storage.py` applies them to Beam's file systems, and `ssd_dist/runs/gfile_storage.py` to TensorFlow's.
"""

import fcntl
import os
import posixpath
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ssd_dist.core.errors import first_line
from ssd_dist.core.printable import print_warning

Result = TypeVar("Result")

# Pauses in seconds. Their sum is less than the grace period of most clouds.
RETRY_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
# Part of the name of every temporary file; prepare deletes files with such names.
TEMPORARY = ".tmp-"
# Lock file of a prepared split, in the folder of the split. Prepare holds an exclusive lock, training a shared one.
LOCK_NAME = ".parts/lock"


def is_remote(path: str) -> bool:
    """Returns whether the path is on an object store.

    >>> is_remote("gs://bucket/folder"), is_remote("/data")
    (True, False)
    """
    return "://" in path


def join(folder: str, *names: str) -> str:
    """Returns a path below `folder`, which is local or on an object store.

    >>> join("gs://bucket/folder", "train", "x.tfrecord")
    'gs://bucket/folder/train/x.tfrecord'
    """
    return posixpath.join(folder, *names)


def retry(action: Callable[[], Result], what: str, is_transient: Callable[[Exception], bool]) -> Result:
    """Calls `action` until it succeeds, with growing pauses after transient errors.

    Args:
      action: reads or writes; must be safe to repeat after a failure.
      what: the file, for the warning that is printed before each pause.
      is_transient: returns whether another attempt may succeed.

    Returns:
      The result of `action`.

    Raises:
      Exception: the error of `action`, if it is not transient or after the last attempt.
    """
    for pause in RETRY_PAUSES:
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            print_warning(f"{what}: {first_line(error)}; retrying in {pause:g} s")
            time.sleep(pause)
    return action()


@contextmanager
def lock_shared(path: str) -> Iterator[bool]:
    """Holds a shared lock on a local file within the block; yields False if another process holds it exclusively.

    Does nothing for a path on an object store, a file that does not exist, and on file systems without locks.
    """
    try:
        handle = -1 if is_remote(path) else os.open(path, os.O_RDONLY)
    except OSError:
        handle = -1
    is_held = True
    try:
        if handle >= 0:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        is_held = False
    except OSError:
        pass
    try:
        yield is_held
    finally:
        if handle >= 0:
            os.close(handle)


def temporary_path(path: str) -> str:
    """Returns a unique temporary path in the folder of `path`; no other process or host uses it."""
    folder, name = posixpath.split(path)
    # A name may have 255 bytes, and a character up to four.
    return posixpath.join(folder, f".{name[:50]}{TEMPORARY}{uuid.uuid4().hex}")


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Writes a local file atomically, also with respect to a power failure.

    Creates the folder. If the block raises an error, the previous file stays and the temporary file is deleted. A link
    stays a link. A pipe or a device, such as /dev/stdout, is not replaced.

    Yields:
      The pipe or device; otherwise a temporary path in the same folder, which is flushed to disk and renamed to `path`
      at the end of the block.
    """
    if os.path.exists(path) and (os.fspath(path).startswith(("/dev/", "/proc/")) or not os.path.isfile(path)):
        yield Path(path)
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(temporary_path(os.fspath(target)))
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a small local text file atomically, in UTF-8."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(path: str | os.PathLike[str]) -> None:
    """Waits until a local file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
