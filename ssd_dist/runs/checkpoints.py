"""What a run leaves on disk to go on from, and the best models it has seen.

    RUN/checkpoints/ckpt-<step>   weights, optimizer, EMA, loss scale, step: everything
    RUN/best/ckpt-<step>          the evaluated weights of the best steps
    RUN/best/best.json            the best one's step, metric and value, written last

A checkpoint is sealed with the checksums of its files (`checkpoint_writing.py`). One without a seal was never finished;
one that does not match it was damaged later. Neither is used.

The chief alone saves and all restore from its folder: every replica has the same values, so nothing is gathered.
"""

import json
import os
import re
import sys

import tensorflow as tf
import tf_keras

from ssd_dist.core.config import CheckpointConfig
from ssd_dist.core.errors import CheckpointError, RestartError, first_line
from ssd_dist.runs.checkpoint_writer import CHECKSUM_SUFFIX, CheckpointWriter, checksum, remove_checkpoint
from ssd_dist.runs.gfile_storage import explain_write_errors, is_transient, retry, write_text

BEST_FILE = "best.json"
LATEST_FILE = "checkpoint"


class CheckpointStore:
    """The resumable checkpoints of a run."""

    def __init__(
        self, checkpoint: tf.train.Checkpoint, model_dir: str, config: CheckpointConfig, is_chief: bool
    ) -> None:
        self._checkpoint = checkpoint
        self._directory = os.path.join(model_dir, "checkpoints")
        self._keep = config.keep
        self._is_chief = is_chief
        self._writer = CheckpointWriter(checkpoint, self._directory, config.async_save)
        self._saved_step: int | None = None

    def restore_latest(self) -> str | None:
        """Restores the newest sound checkpoint and returns its path; None if the run is new.

        Raises:
          CheckpointError: if it is of another model, or none of those there is sound.
        """
        self._writer.wait()
        path = latest_checkpoint(self._directory)
        if path is not None:
            restore_checkpoint(self._checkpoint, path)
            self._saved_step = _step_of(path)
        return path

    def save(self, step: int) -> None:
        """Saves the state after `step` steps, if that is not done; on the chief.

        Raises:
          CheckpointError: if it cannot be written; the checkpoints before it are as they were.
        """
        if self._is_chief and self._saved_step != step:
            self._writer.write(f"ckpt-{step}", self._retire_older)
            self._saved_step = step

    def outdate(self, step: int) -> None:
        """Says that the state after `step` steps has changed since it was saved: an interrupted evaluation was made."""
        # The only one is left as it is: to write it anew takes it away for a moment, and an evaluation that is made
        # twice says the same twice.
        if self._saved_step == step and len(complete_checkpoints(self._directory)) > 1:
            self._saved_step = None

    def latest(self) -> str | None:
        """The path of the newest sound checkpoint."""
        return latest_checkpoint(self._directory)

    def wait(self) -> None:
        """Returns when all that was to be saved is on disk.

        Raises:
          CheckpointError: if it cannot be written.
        """
        self._writer.wait()

    def _retire_older(self, newest: str) -> None:
        # A later one is damaged, or the run would have gone on from it.
        sealed = [path for path in complete_checkpoints(self._directory) if _step_of(path) <= _step_of(newest)]
        # The last good one is never given up for one that the disk did not keep.
        problem = find_damage(newest)
        if problem is not None:
            raise CheckpointError(f"{problem}, just after it was written: the disk fails; the ones before it are kept")
        for path in sealed[: -self._keep]:
            remove_checkpoint(path)
        # What TensorFlow's own tools look at.
        write_text(
            os.path.join(self._directory, LATEST_FILE),
            f'model_checkpoint_path: "{os.path.basename(newest)}"\n'
            + "".join(f'all_model_checkpoint_paths: "{os.path.basename(path)}"\n' for path in sealed[-self._keep :]),
        )


class BestModel:
    """The best weights by the metric the config names; a resumed run goes on where the value stands."""

    def __init__(self, model: tf_keras.Model, model_dir: str, metric: str, keep: int) -> None:
        self._directory = os.path.join(model_dir, "best")
        self._writer = CheckpointWriter(tf.train.Checkpoint(model=model), self._directory)
        self._metric = metric
        self._keep = keep
        self.best = read_best(model_dir)

    def offer(self, step: int, value: float) -> bool:
        """Keeps the model's present weights if `value` is among the best so far.

        Returns:
          Whether it is the best of all.

        Raises:
          CheckpointError: if it cannot be written; the best before it is as it was.
          RestartError: if the storage is away.
        """
        ranked = [] if self.best is None else self.best["kept"]
        ranked = sorted(
            [*(entry for entry in ranked if entry["step"] != step), _entry(step, value)],
            key=lambda entry: (-entry["value"], entry["step"]),
        )[: self._keep]
        if _entry(step, value) not in ranked:
            return False
        self._writer.write(f"ckpt-{step}")
        self.best = {**ranked[0], "metric": self._metric, "kept": ranked}
        path = os.path.join(self._directory, BEST_FILE)
        with explain_write_errors(path):
            retry(lambda: write_text(path, json.dumps(self.best) + "\n"), path)
        kept = {os.path.join(self._directory, entry["checkpoint"]) for entry in ranked}
        for path in complete_checkpoints(self._directory):
            if path not in kept:
                remove_checkpoint(path)
        return ranked[0]["step"] == step


def read_best(model_dir: str) -> dict | None:
    """`best.json` of a run; None if there is no best model yet.

    Raises:
      CheckpointError: if it cannot be read.
    """
    path = os.path.join(model_dir, "best", BEST_FILE)
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path) as file:
            best = json.loads(file.read())
        # The three keys that every program may count on say the rest, where no other model is kept.
        first = _entry(best["step"], best["value"])
        return {**first, "metric": best["metric"], "kept": best.get("kept", [first])}
    except (OSError, ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); take it away to start a new best") from None


def latest_checkpoint(directory: str) -> str | None:
    """The newest sound checkpoint of a folder; others are named on stderr. None if there never was a finished one.

    Raises:
      CheckpointError: if there are finished checkpoints and all are damaged.
      RestartError: if the storage does not answer.
    """
    problems = []
    for path in reversed(all_checkpoints(directory)):
        problem = find_damage(path)
        if problem is None:
            for text in problems:
                print(f"warning: {text}; an older one is used", file=sys.stderr)
            return path
        problems.append(problem)
    # This file follows the first seal: without either, the very first one was being written.
    begun = tf.io.gfile.exists(os.path.join(directory, LATEST_FILE)) or complete_checkpoints(directory)
    if problems and not begun:
        print(f"warning: {problems[0]}, and none was ever finished in {directory}: a new run", file=sys.stderr)
        return None
    if problems:
        raise CheckpointError(f"{problems[0]}, and no other in {directory} is sound; take them away to start anew")
    return None


def find_damage(path: str) -> str | None:
    """What is wrong with a checkpoint's files; None if they are what was written.

    Raises:
      RestartError: if the storage does not answer: that says nothing of the files.
    """
    try:
        return retry(lambda: _verify_checksums(path), f"checkpoint {path}")
    except tf.errors.NotFoundError as error:
        return f"checkpoint {path} is incomplete: {first_line(error)}"
    except (OSError, ValueError, TypeError, AttributeError, KeyError, tf.errors.OpError) as error:
        if is_transient(error):
            raise RestartError(
                f"checkpoint {path}: the storage does not answer: {first_line(error)}; start again to go on"
            ) from None
        return f"checkpoint {path} cannot be read: {first_line(error)}"


def _verify_checksums(path: str) -> str | None:
    with tf.io.gfile.GFile(path + CHECKSUM_SUFFIX) as file:
        seal = json.loads(file.read())
    for name, expected in seal.items():
        file_path = os.path.join(os.path.dirname(path), name)
        size = tf.io.gfile.stat(file_path).length
        if size != expected["bytes"]:
            return f"checkpoint {path} is damaged: {name} has {size} bytes instead of {expected['bytes']}"
        if checksum(file_path) != expected["crc32c"]:
            return f"checkpoint {path} is damaged: the checksum of {name} is wrong"
    return None


def complete_checkpoints(directory: str) -> list[str]:
    """Paths of the checkpoints that were finished, oldest first."""
    return sorted(
        (f[: -len(CHECKSUM_SUFFIX)] for f in tf.io.gfile.glob(os.path.join(directory, "ckpt-*" + CHECKSUM_SUFFIX))),
        key=_step_of,
    )


def all_checkpoints(directory: str) -> list[str]:
    """Paths of all checkpoints of which anything is there, oldest first."""
    files = tf.io.gfile.glob(os.path.join(directory, "ckpt-*"))
    found = {match.group(0) for file in files if (match := re.match(r".*ckpt-\d+(?=\.)", file))}
    return sorted(found, key=_step_of)


def restore_checkpoint(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Restores every object of `checkpoint` from `path`.

    Raises:
      CheckpointError: if the file is missing, damaged or of another model.
    """
    problem = find_damage(path)
    if problem is not None:
        raise CheckpointError(f"{problem}; use another checkpoint of the run")
    try:
        checkpoint.read(path).expect_partial().assert_existing_objects_matched()
    except AssertionError as error:
        raise CheckpointError(f"checkpoint {path} is of another model: {first_line(error)}") from None
    except (ValueError, IndexError, tf.errors.OpError) as error:
        what = "is of another model" if "shape" in str(error) else "cannot be read"
        raise CheckpointError(
            f"checkpoint {path} {what}: {first_line(error)}; use the config it was trained with, or another model_dir"
        ) from None


def _entry(step: int, value: float) -> dict:
    return {"step": step, "value": value, "checkpoint": f"ckpt-{step}"}


def _step_of(path: str) -> int:
    return int(path.rsplit("-", 1)[1])
