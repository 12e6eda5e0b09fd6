"""Applies the rules of `ssd_dist.core.storage` to TensorFlow's file operations and reports write errors.

Transient errors (no answer, time-out) are retried for a while. If they persist, the run ends with exit code 75 and can
be restarted. Permanent errors (full disk, missing permission) end the run with a message that states the fix.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import tensorflow as tf

from ssd_dist.core import storage
from ssd_dist.core.errors import CheckpointError, RestartError, first_line

Result = TypeVar("Result")

_TRANSIENT_ERRORS = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError)
_TRANSIENT_NUMBERS = {errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.EIO, errno.EBUSY}
_FULL = ("No space left", "quota exceeded")
_NOT_WRITABLE = ("Read-only file system", "Permission denied")


def retry(action: Callable[[], Result], what: str) -> Result:
    """Returns the result of `action`; retries it after transient storage errors."""
    return storage.retry(action, what, is_transient)


def is_transient(error: Exception) -> bool:
    """Returns whether another attempt may succeed: after a time-out, but not on a full or read-only disk."""
    return isinstance(error, _TRANSIENT_ERRORS) or (isinstance(error, OSError) and error.errno in _TRANSIENT_NUMBERS)


@contextmanager
def explain_write_errors(what: str) -> Iterator[None]:
    """Converts storage errors into one line that states the fix.

    Args:
      what: the file or folder that the block writes.

    Raises:
      CheckpointError: for a permanent error inside the block; files saved earlier are unchanged.
      RestartError: for a transient error.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if is_transient(error):
            raise RestartError(
                f"{what} cannot be written: the storage does not answer ({first_line(error)}); start again to resume; "
                "files saved earlier are kept"
            ) from None
        text = str(error)
        if any(words in text for words in _FULL):
            fix = "the disk is full: free space"
        elif any(words in text for words in _NOT_WRITABLE):
            fix = "the folder is not writable: mount it for writing or give this user write permission"
        else:
            fix = "check the storage"
        raise CheckpointError(
            f"{what} cannot be written ({first_line(error)}): {fix}, and start again; files saved earlier are kept"
        ) from None
