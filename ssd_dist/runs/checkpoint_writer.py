"""Writes checkpoints so that each is either complete or ignored, synchronously or in the background.

    variables -> RUN/checkpoints/partial/ -> flush -> rename -> checksum file                      synchronous
    variables -> memory, then in a thread: memory -> partial/ -> flush -> rename -> checksum file  checkpoint.async_save

The checksum file `ckpt-<step>.seal` is written last. It holds the size and the CRC-32C of each file of the checkpoint.
A checkpoint without a checksum file was never finished.
"""

import json
import os
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import google_crc32c
import tensorflow as tf

from ssd_dist.core.storage import flush_to_disk, write_text
from ssd_dist.runs.gfile_storage import explain_write_errors, retry

CHECKSUM_SUFFIX = ".seal"
_CHUNK_BYTES = 1 << 22
# TensorFlow's in-memory file system. Writing a file twice appends to it, so each snapshot has its own folder.
_MEMORY = "ram://checkpoints"


class CheckpointWriter:
    """Writes the checkpoints of one folder, one after the other."""

    def __init__(
        self,
        checkpoint: tf.train.Checkpoint,
        directory: str,
        in_background: bool = False,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Creates the writer.

        Args:
          checkpoint: the variables to write.
          directory: the folder of the checkpoints.
          in_background: whether to write the files in a thread.
          before_write: called before each write; raises an error to prevent it.
        """
        self._checkpoint = checkpoint
        self._directory = directory
        self._before_write = before_write
        self._thread = ThreadPoolExecutor(1, "checkpoints") if in_background else None
        self._running: Future[None] | None = None

    def write(self, name: str, on_written: Callable[[str], None] = lambda _: None) -> None:
        """Writes a checkpoint; in the background, returns after the variables are copied to memory.

        Args:
          name: file name prefix, e.g. "ckpt-100".
          on_written: called with the checkpoint's path when it is complete.

        Raises:
          CheckpointError: if this checkpoint, or the previous one in the background, cannot be written.
        """
        self.wait()
        path = os.path.join(self._directory, name)
        if self._thread is None:
            self._publish(path, self._checkpoint.write, on_written)
            return
        snapshot = f"{_MEMORY}/{uuid.uuid4().hex}"
        self._checkpoint.write(f"{snapshot}/{name}")

        def copy_snapshot(target: str) -> None:
            for file in tf.io.gfile.listdir(snapshot):
                tf.io.gfile.copy(f"{snapshot}/{file}", os.path.join(os.path.dirname(target), file), overwrite=True)

        def publish_snapshot() -> None:
            try:
                self._publish(path, copy_snapshot, on_written)
            finally:
                tf.io.gfile.rmtree(snapshot)

        self._running = self._thread.submit(publish_snapshot)

    def wait(self) -> None:
        """Waits until the background write, if there is one, has finished.

        Raises:
          CheckpointError: if the background write failed.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _publish(self, path: str, write: Callable[[str], object], on_written: Callable[[str], None]) -> None:
        with explain_write_errors(f"checkpoint {path}"):
            self._before_write()
            retry(lambda: _write_with_checksums(path, write), f"checkpoint {path}")
            on_written(path)


def remove_checkpoint(path: str) -> None:
    """Deletes a checkpoint's files; the checksum file first, so that a partly deleted checkpoint is ignored."""
    for file in [path + CHECKSUM_SUFFIX, *tf.io.gfile.glob(path + ".*")]:
        if tf.io.gfile.exists(file):
            tf.io.gfile.remove(file)


def checksum(path: str) -> str:
    """Returns the CRC-32C of a file as eight hexadecimal digits."""
    crc = 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = google_crc32c.extend(crc, chunk)
    return f"{crc:08x}"


def _write_with_checksums(path: str, write: Callable[[str], object]) -> None:
    directory, name = os.path.split(path)
    # A folder, because TensorFlow chooses how many files it writes and adds temporary files of its own. Its name is
    # fixed, so that the next checkpoint deletes what an interrupted one has left: up to the size of a checkpoint.
    partial = os.path.join(directory, "partial")
    if tf.io.gfile.exists(partial):
        tf.io.gfile.rmtree(partial)
    tf.io.gfile.makedirs(partial)
    write(os.path.join(partial, name))
    remove_checkpoint(path)
    checksums = {}
    for file in sorted(tf.io.gfile.listdir(partial)):
        written = os.path.join(partial, file)
        flush_to_disk(written)
        checksums[file] = {"bytes": tf.io.gfile.stat(written).length, "crc32c": checksum(written)}
        tf.io.gfile.rename(written, os.path.join(directory, file), overwrite=True)
    flush_to_disk(directory)
    write_text(path + CHECKSUM_SUFFIX, json.dumps(checksums) + "\n")
    flush_to_disk(directory)
    tf.io.gfile.rmtree(partial)
