"""Writing a checkpoint so that it is whole or not there, at once or while training goes on.

    variables -> RUN/checkpoints/partial/ -> flush -> rename -> seal                            at once
    variables -> memory, and in a thread: memory -> partial/ -> flush -> rename -> seal         checkpoint.async_save

The seal, `ckpt-<step>.seal`, is written last: the size and the checksum of each file of the checkpoint.
"""

import json
import os
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import google_crc32c
import tensorflow as tf

from ssd_dist.runs.gfile_storage import explain_write_errors, flush_to_disk, retry, write_text

CHECKSUM_SUFFIX = ".seal"
_CHUNK = 1 << 22
# TensorFlow's file system in memory. It appends where a file is written twice: each snapshot has a folder of its own.
_MEMORY = "ram://checkpoints"


class CheckpointWriter:
    """Writes the checkpoints of one folder, one after the other."""

    def __init__(self, checkpoint: tf.train.Checkpoint, directory: str, in_background: bool = False) -> None:
        self._checkpoint = checkpoint
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, "checkpoints") if in_background else None
        self._running: Future[None] | None = None

    def write(self, name: str, then: Callable[[str], None] = lambda _: None) -> None:
        """Writes `name` and then calls `then` with its path; in the background only the variables are copied first.

        Raises:
          CheckpointError: if this one, or the one before it in the background, cannot be written.
        """
        self.wait()
        path = os.path.join(self._directory, name)
        if self._thread is None:
            self._publish(path, self._checkpoint.write, then)
            return
        snapshot = f"{_MEMORY}/{uuid.uuid4().hex}"
        self._checkpoint.write(f"{snapshot}/{name}")

        def copy(aside: str) -> None:
            for file in tf.io.gfile.listdir(snapshot):
                tf.io.gfile.copy(f"{snapshot}/{file}", os.path.join(os.path.dirname(aside), file), overwrite=True)

        def finish() -> None:
            try:
                self._publish(path, copy, then)
            finally:
                tf.io.gfile.rmtree(snapshot)

        self._running = self._thread.submit(finish)

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
          CheckpointError: if what was written in the background could not be.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _publish(self, path: str, write: Callable[[str], object], then: Callable[[str], None]) -> None:
        with explain_write_errors(f"checkpoint {path}"):
            retry(lambda: _write_with_checksums(path, write), f"checkpoint {path}")
            then(path)


def remove_checkpoint(path: str) -> None:
    """Deletes a checkpoint's files, the seal first: what is left in between is no checkpoint."""
    for file in [path + CHECKSUM_SUFFIX, *tf.io.gfile.glob(path + ".*")]:
        if tf.io.gfile.exists(file):
            tf.io.gfile.remove(file)


def checksum(path: str) -> str:
    """CRC-32C of a file, eight hexadecimal digits."""
    crc = 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            crc = google_crc32c.extend(crc, chunk)
    return f"{crc:08x}"


def _write_with_checksums(path: str, write: Callable[[str], object]) -> None:
    directory, name = os.path.split(path)
    aside = os.path.join(directory, "partial")
    if tf.io.gfile.exists(aside):
        tf.io.gfile.rmtree(aside)
    tf.io.gfile.makedirs(aside)
    write(os.path.join(aside, name))
    remove_checkpoint(path)
    seal = {}
    for file in sorted(tf.io.gfile.listdir(aside)):
        written = os.path.join(aside, file)
        flush_to_disk(written)
        seal[file] = {"bytes": tf.io.gfile.stat(written).length, "crc32c": checksum(written)}
        tf.io.gfile.rename(written, os.path.join(directory, file), overwrite=True)
    flush_to_disk(directory)
    write_text(path + CHECKSUM_SUFFIX, json.dumps(seal) + "\n")
    flush_to_disk(directory)
    tf.io.gfile.rmtree(aside)
