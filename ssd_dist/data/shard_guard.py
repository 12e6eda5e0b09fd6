"""Detects shards that change while a run reads them.

    start of the run   identity of each verified shard: size, times of change, inode
    each opening       the same identity, else the same SHA-256              in tf.data, on every worker, in every epoch
    each end           as many records as the manifest states                in tf.data
    each pause         the same identity, else the same SHA-256              local files; a call of stat takes 2 us

A changed identity alone is no error: a copy, a hard link or another worker that fills the same cache also changes it.
Only then is the checksum computed. In a pause between two steps, the run can still save its state. The check at the
opening covers what happens between two pauses; its error reaches the training loop where the first wrong record would.
"""

import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import tensorflow as tf

from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import is_remote
from ssd_dist.data.shard_files import open_shard

_CHUNK = 1 << 22

# Size, times of change and inode of a file, as far as its storage has them.
Identity = tuple[int, ...]


@dataclass(frozen=True)
class ShardFile:
    """A verified file of a shard.

    Attributes:
      path: the file that is read: the shard, its copy in the cache, or its repaired copy.
      examples: number of records.
      sha256: checksum of the file.
      identity: identity of the file before it was verified.
    """

    path: str
    examples: int
    sha256: str
    identity: Identity


class ShardGuard:
    """Compares the shards of a run with the files that were verified at its start."""

    def __init__(self, files: Iterable[ShardFile]) -> None:
        self._files = {file.path: file for file in files}
        self._identities = {file.path: file.identity for file in self._files.values()}
        self._change: str | None = None
        self._lock = threading.Lock()

    def count_examples(self, path: str) -> int:
        """Returns the number of records of a file."""
        return self._files[path].examples

    def check(self, path: str) -> None:
        """Checks that a file is still the one that was verified.

        Raises:
          DataError: if it is not.
        """
        # Without a lock in the common case, because all shards are checked in every pause of the training loop.
        if _find_identity(path) == self._identities[path]:
            return
        with self._lock:
            self._change = self._change or self._compare(self._files[path])
            if self._change:
                raise DataError(self._change)

    def find_change(self) -> str | None:
        """Returns which file has changed and how to fix it; None if none has.

        Remote files are checked only when they are opened, because each check is a request to the object store.
        """
        try:
            for path in self._files:
                if not is_remote(path):
                    self.check(path)
        except DataError as error:
            return str(error)
        return self._change

    def read(self, path: tf.Tensor, examples: tf.Tensor) -> tf.data.Dataset:
        """Returns the records of a file; each iteration checks the file when it opens it and at its end.

        Args:
          path: the file, a string scalar.
          examples: the number of its records, an int64 scalar.
        """

        def check(path: bytes) -> bytes:
            self.check(path.decode())
            return path

        def check_in_graph(path: tf.Tensor) -> tf.Tensor:
            # Marked as stateless: with deterministic ops, tf.data reads the shards one after another if reading them
            # has a state.
            return tf.ensure_shape(tf.numpy_function(check, [path], tf.string, stateful=False), [])

        # A dataset of one path: the check is part of each iteration, not only of the creation of the dataset.
        files = tf.data.Dataset.from_tensors(path).map(check_in_graph)
        return tf.data.TFRecordDataset(files).apply(tf.data.experimental.assert_cardinality(examples))

    def _compare(self, file: ShardFile) -> str | None:
        """Returns how a file whose identity has changed differs from the verified one; None if its bytes are equal."""
        fix = "prepare the data again into another --output, or restore the file and start again"
        try:
            # Before the checksum, so that a change while it is computed is found by the next check.
            identity = read_identity(file.path)
            if identity[0] != file.identity[0]:
                return (
                    f"shard {file.path} changed during training: it has {identity[0]} bytes instead of "
                    f"{file.identity[0]}; {fix}"
                )
            if compute_checksum(file.path) != file.sha256:
                return f"shard {file.path} changed during training: it has another content than at the start; {fix}"
        except (FileNotFoundError, tf.errors.NotFoundError):
            return f"shard {file.path} was deleted during training; {fix}"
        except (OSError, tf.errors.OpError):
            return None  # The storage does not answer, which is no evidence of a change; reading reports the error.
        self._identities[file.path] = identity
        return None


def read_identity(path: str) -> Identity:
    """Returns size, times of change and inode of a file, the size first.

    Raises:
      OSError, tf.errors.OpError: if the file does not exist or the storage does not answer.
    """
    if is_remote(path):
        remote = tf.io.gfile.stat(path)
        return remote.length, remote.mtime_nsec
    local = os.stat(path)
    # ctime cannot be set back; mtime can.
    return local.st_size, local.st_mtime_ns, local.st_ctime_ns, local.st_ino


def compute_checksum(path: str) -> str:
    """Returns the SHA-256 of a shard.

    Raises:
      DataError: if the storage fails or refuses access.
    """
    digest = hashlib.sha256()
    with open_shard(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _find_identity(path: str) -> Identity | None:
    try:
        return read_identity(path)
    except (OSError, tf.errors.OpError):
        return None
