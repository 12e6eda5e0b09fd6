"""Translates TensorFlow errors that a user can act on into this project's errors."""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.core.errors import RestartError, UsageError, first_line


@contextlib.contextmanager
def restart_on_lost_peer(role: WorkerRole) -> Iterator[None]:
    """Turns the failure of a collective, which says that another worker is gone, into "start me again"."""
    try:
        yield
    except (tf.errors.OpError, RuntimeError) as error:
        # What a lost peer raises depends on where it was lost; alone, the same errors are bugs.
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
            "the run goes on from its last checkpoint"
        ) from None


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Says what to lower where the device's memory does not do.

    Raises:
      UsageError: in place of TensorFlow's error; started again, it would run out again.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        # A full disk and too many open files are the same to TensorFlow.
        if not re.search(r"\bOOM\b|out of memory|allocat", str(error), re.IGNORECASE):
            raise
        raise UsageError(
            f"out of memory ({first_line(error)}): lower train.global_batch_size or eval.batch_size, raise "
            "train.accumulate_steps, or take more replicas; docs/out_of_memory.md"
        ) from None
