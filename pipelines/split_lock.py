"""Prevents two jobs from writing the same split at once, and a job from replacing shards that a training run reads.

Local folders are locked: jobs exclusively, training runs with a shared lock (`ssd_dist.core.storage.lock_shared`). The
lock ends with its process. Object stores have no locks, so each job writes its own id beside the shards. A job stops if
a later job has replaced its id.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence

from pipelines import beam_storage
from pipelines.split_folder import JOB_ID_NAME, PARTS_FOLDER
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import LOCK_NAME, is_remote, join


@contextlib.contextmanager
def lock_splits(output: str, splits: Sequence[str], job_id: str) -> Iterator[None]:
    """Locks the splits for one job while the block runs.

    Raises:
      DataError: if another job is writing one of the splits, or a training run is reading it.
    """
    # Reports a missing bucket or permission, which Beam's writer reports without a reason.
    beam_storage.exists(output)
    with contextlib.ExitStack() as stack:
        for split in splits:
            folder = join(output, split, PARTS_FOLDER)
            if not is_remote(output):
                stack.callback(os.close, _lock(join(output, split)))
            path = join(folder, JOB_ID_NAME)
            beam_storage.write_bytes(path, job_id.encode())
            stack.callback(_remove_id, path, job_id)
        yield


def check_job_id(output: str, split: str, job_id: str) -> None:
    """Checks that no later job has started to write the split; does nothing for the empty id of a submitted job.

    Raises:
      DataError: if a later job has started.
    """
    path = join(output, split, PARTS_FOLDER, JOB_ID_NAME)
    # The file is missing if the later job has ended, or in a call without a lock.
    if job_id and beam_storage.exists(path) and beam_storage.read_bytes(path).decode() != job_id:
        raise DataError(
            f"{join(output, split)}: another prepare job has started to write this split; run one at a time"
        )


def _remove_id(path: str, job_id: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if beam_storage.read_bytes(path).decode() == job_id:
            beam_storage.delete_files([path])


def _lock(split: str) -> int:
    """Locks the local folder of a split without waiting and returns the open lock file."""
    path = join(split, LOCK_NAME)
    # Writing the file this way reports a full or read-only disk as for every other file.
    if not beam_storage.exists(path):
        beam_storage.write_bytes(path, b"")
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its permissions, or delete it") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DataError(
            f"{split}: another prepare job is writing this split, or a training run is reading it; wait until it ends, "
            "or choose another --output"
        ) from None
    except OSError:
        # Some network file systems have no locks; the job ids remain.
        pass
    return handle
