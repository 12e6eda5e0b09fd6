"""Translates TensorFlow errors that a user can act on into this project's errors."""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.core.errors import RestartError, UsageError, first_line


@contextlib.contextmanager
def restart_on_lost_peer(role: WorkerRole) -> Iterator[None]:
    """Translates the failure of a collective, which means that another worker is lost.

    Raises:
      RestartError: if the job has several workers and the error may come from a lost peer.
    """
    try:
        yield
    except (tf.errors.OpError, RuntimeError) as error:
        # The error depends on the operation that was running when the peer was lost. With one worker, the same errors
        # are bugs.
        lost = isinstance(
            error,
            tf.errors.UnavailableError
            | tf.errors.AbortedError
            | tf.errors.CancelledError
            | tf.errors.InternalError
            | tf.errors.DeadlineExceededError
            | tf.errors.FailedPreconditionError,
        ) or "Timeout waiting for the cluster" in str(error)
        if role.count == 1 or not lost:
            raise
        raise RestartError(
            f"worker {role.index} of {role.count} lost a peer ({first_line(error)}); start all workers again: "
            "the run resumes from its last checkpoint"
        ) from None


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Translates a failed memory allocation into an error that names the config keys to change.

    Raises:
      UsageError: instead of TensorFlow's error. It is not a RestartError: a restarted run would run out of memory
        again.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        # TensorFlow uses the same error class for a full disk and for too many open files.
        if not re.search(r"\bOOM\b|out of memory|allocat", str(error), re.IGNORECASE):
            raise
        raise UsageError(
            f"out of memory ({first_line(error)}): lower train.global_batch_size or eval.batch_size, raise "
            "train.accumulate_steps, or use more replicas; see docs/out_of_memory.md"
        ) from None
