"""Files that survive: written aside, flushed, renamed; slow storage is asked again, failing storage is named.

away      asked again for a while, then the run ends to be started again
failing   a full disk, a folder that cannot be written: the run ends, for the user to mend it
"""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import tensorflow as tf

from ssd_dist.core.errors import CheckpointError, RestartError, first_line

Result = TypeVar("Result")

# Pauses in seconds: together less than the grace that most clouds give.
RETRY_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
_TRANSIENT_ERRORS = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError)
_TRANSIENT_NUMBERS = {errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.EIO, errno.EBUSY}
_FULL = ("No space left", "quota exceeded")
_CLOSED = ("Read-only file system", "Permission denied")


def retry(action: Callable[[], Result], what: str) -> Result:
    """The result of `action`, tried again with growing pauses while the storage is only slow or away."""
    for pause in RETRY_PAUSES:
        try:
            return action()
        except (OSError, tf.errors.OpError) as error:
            if not is_transient(error):
                raise
            print(f"warning: {what}: {first_line(error)}; again in {pause:g} s", file=sys.stderr, flush=True)
            time.sleep(pause)
    return action()


def is_transient(error: Exception) -> bool:
    """Whether waiting may help: no answer, a time-out; not a full disk, not a folder that cannot be written."""
    return isinstance(error, _TRANSIENT_ERRORS) or (isinstance(error, OSError) and error.errno in _TRANSIENT_NUMBERS)


@contextmanager
def explain_write_errors(what: str) -> Iterator[None]:
    """Turns what storage says into one line with the mend.

    Raises:
      CheckpointError: for a failure inside; what was saved before is as it was.
      RestartError: if the storage is only away.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if is_transient(error):
            raise RestartError(
                f"{what} cannot be written, the storage does not answer ({first_line(error)}): start again to go on; "
                "what was saved before is kept"
            ) from None
        text = str(error)
        if any(words in text for words in _FULL):
            mend = "the disk is full: free space"
        elif any(words in text for words in _CLOSED):
            mend = "the folder cannot be written: mount it for writing, or give this user the right to"
        else:
            mend = "look at the storage"
        raise CheckpointError(
            f"{what} cannot be written ({first_line(error)}): {mend}, and start again: what was saved before is kept"
        ) from None


def write_text(path: str, text: str) -> None:
    """Writes a small file whole: nobody ever sees half of it, not after a power loss either."""
    partial = path + ".partial"
    with tf.io.gfile.GFile(partial, "w") as file:
        file.write(text)
    flush_to_disk(partial)
    tf.io.gfile.rename(partial, path, overwrite=True)


def flush_to_disk(path: str) -> None:
    """Waits until a local file or folder is on the disk; object stores have done so when they close a file."""
    if "://" in path:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
