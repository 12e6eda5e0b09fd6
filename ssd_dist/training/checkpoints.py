"""What a run leaves on disk to go on from, and the best models it has seen.

    RUN/checkpoints/ckpt-<step>   weights, optimizer, EMA, loss scale, step: everything
    RUN/best/ckpt-<step>          the evaluated weights of the best steps
    RUN/best/best.json            the best one's step, metric and value, written last

A checkpoint is written aside, renamed, and then sealed: `ckpt-<step>.seal` holds the size and the checksum of each of
its files. One without a seal was never finished; one that does not match it was damaged later. Neither is used.

The chief alone saves and all restore from its folder: every replica has the same values, so nothing is gathered.
"""

import json
import os
import re
import sys

import google_crc32c
import tensorflow as tf
import tf_keras

from ssd_dist.core.errors import CheckpointError

BEST_FILE = "best.json"
_SEAL = ".seal"
_CHUNK = 1 << 22


class CheckpointStore:
    """The resumable checkpoints of a run."""

    def __init__(self, checkpoint: tf.train.Checkpoint, model_dir: str, keep: int, is_chief: bool) -> None:
        self._checkpoint = checkpoint
        self._directory = os.path.join(model_dir, "checkpoints")
        self._keep = keep
        self._is_chief = is_chief
        self._saved_step: int | None = None

    def restore_latest(self) -> str | None:
        """Restores the newest sound checkpoint and returns its path; None if the run is new.

        Raises:
          CheckpointError: if it is of another model, or none of those there is sound.
        """
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
        if not self._is_chief or self._saved_step == step:
            return
        newest = write_checkpoint(self._checkpoint, self._directory, f"ckpt-{step}")
        self._saved_step = step
        # A later one is damaged, or the run would have gone on from it.
        sealed = [path for path in sealed_checkpoints(self._directory) if _step_of(path) <= step]
        for path in sealed[: -self._keep]:
            remove_checkpoint(path)
        # What TensorFlow's own tools look at.
        _write_text(
            os.path.join(self._directory, "checkpoint"),
            f'model_checkpoint_path: "{os.path.basename(newest)}"\n'
            + "".join(f'all_model_checkpoint_paths: "{os.path.basename(path)}"\n' for path in sealed[-self._keep :]),
        )


class BestModel:
    """The best weights by the metric the config names; a resumed run goes on where the value stands."""

    def __init__(self, model: tf_keras.Model, model_dir: str, metric: str, keep: int) -> None:
        self._checkpoint = tf.train.Checkpoint(model=model)
        self._directory = os.path.join(model_dir, "best")
        self._metric = metric
        self._keep = keep
        self.best = read_best(model_dir)

    def offer(self, step: int, value: float) -> bool:
        """Keeps the model's present weights if `value` is among the best so far.

        Returns:
          Whether it is the best of all.

        Raises:
          CheckpointError: if it cannot be written; the best before it is as it was.
        """
        ranked = [] if self.best is None else self.best["kept"]
        ranked = sorted(
            [*(entry for entry in ranked if entry["step"] != step), _entry(step, value)],
            key=lambda entry: (-entry["value"], entry["step"]),
        )[: self._keep]
        if _entry(step, value) not in ranked:
            return False
        write_checkpoint(self._checkpoint, self._directory, f"ckpt-{step}")
        self.best = {**ranked[0], "metric": self._metric, "kept": ranked}
        _write_text(os.path.join(self._directory, BEST_FILE), json.dumps(self.best) + "\n")
        kept = {os.path.join(self._directory, entry["checkpoint"]) for entry in ranked}
        for path in sealed_checkpoints(self._directory):
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
            return dict(json.loads(file.read()))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); take it away to start a new best") from None


def write_checkpoint(checkpoint: tf.train.Checkpoint, directory: str, name: str) -> str:
    """Writes `directory/name` aside, renames it and seals it; returns its path.

    Raises:
      CheckpointError: if the disk is full or the folder cannot be written.
    """
    path = os.path.join(directory, name)
    aside = os.path.join(directory, "partial")
    try:
        if tf.io.gfile.exists(aside):
            tf.io.gfile.rmtree(aside)
        tf.io.gfile.makedirs(aside)
        checkpoint.write(os.path.join(aside, name))
        remove_checkpoint(path)
        seal = {}
        for file in sorted(tf.io.gfile.listdir(aside)):
            written = os.path.join(aside, file)
            seal[file] = {"bytes": tf.io.gfile.stat(written).length, "crc32c": checksum(written)}
            tf.io.gfile.rename(written, os.path.join(directory, file), overwrite=True)
        _write_text(path + _SEAL, json.dumps(seal) + "\n")
        tf.io.gfile.rmtree(aside)
    except (OSError, tf.errors.OpError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be written: {first_line(error)}; free space or give another folder, "
            "and start again: the checkpoints before it are kept"
        ) from None
    return path


def latest_checkpoint(directory: str) -> str | None:
    """The newest sound checkpoint of a folder; damaged ones are named on stderr. None if there never was one.

    Raises:
      CheckpointError: if there are checkpoints and all are damaged.
    """
    problems = []
    for path in reversed(all_checkpoints(directory)):
        problem = find_damage(path)
        if problem is None:
            for text in problems:
                print(f"warning: {text}; an older one is used", file=sys.stderr)
            return path
        problems.append(problem)
    if problems:
        raise CheckpointError(f"{problems[0]}, and no other in {directory} is sound; take them away to start anew")
    return None


def find_damage(path: str) -> str | None:
    """What is wrong with a checkpoint's files; None if they are what was written."""
    try:
        with tf.io.gfile.GFile(path + _SEAL) as file:
            seal = json.loads(file.read())
        for name, expected in seal.items():
            file_path = os.path.join(os.path.dirname(path), name)
            size = tf.io.gfile.stat(file_path).length
            if size != expected["bytes"]:
                return f"checkpoint {path} is damaged: {name} has {size} bytes instead of {expected['bytes']}"
            if checksum(file_path) != expected["crc32c"]:
                return f"checkpoint {path} is damaged: the checksum of {name} is wrong"
    except tf.errors.NotFoundError as error:
        return f"checkpoint {path} is incomplete: {first_line(error)}"
    except (OSError, ValueError, TypeError, AttributeError, KeyError, tf.errors.OpError) as error:
        return f"checkpoint {path} cannot be read: {first_line(error)}"
    return None


def sealed_checkpoints(directory: str) -> list[str]:
    """Paths of the checkpoints that were finished, oldest first."""
    return sorted((f[: -len(_SEAL)] for f in tf.io.gfile.glob(os.path.join(directory, "ckpt-*" + _SEAL))), key=_step_of)


def all_checkpoints(directory: str) -> list[str]:
    """Paths of all checkpoints of which anything is there, oldest first."""
    files = tf.io.gfile.glob(os.path.join(directory, "ckpt-*"))
    found = {match.group(0) for file in files if (match := re.match(r".*ckpt-\d+(?=\.)", file))}
    return sorted(found, key=_step_of)


def remove_checkpoint(path: str) -> None:
    """Deletes a checkpoint's files, the seal first: what is left in between is no checkpoint."""
    for file in [path + _SEAL, *tf.io.gfile.glob(path + ".*")]:
        if tf.io.gfile.exists(file):
            tf.io.gfile.remove(file)


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


def checksum(path: str) -> str:
    """CRC-32C of a file, eight hexadecimal digits."""
    crc = 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            crc = google_crc32c.extend(crc, chunk)
    return f"{crc:08x}"


def first_line(error: Exception) -> str:
    """The beginning of what an error's text has to say, which TensorFlow hides among the places it passed."""
    passed = ("Graph execution error:", "Detected at", "File ")
    told = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().startswith(passed)]
    return (told or [type(error).__name__])[0][:300]


def _entry(step: int, value: float) -> dict:
    return {"step": step, "value": value, "checkpoint": f"ckpt-{step}"}


def _step_of(path: str) -> int:
    return int(path.rsplit("-", 1)[1])


def _write_text(path: str, text: str) -> None:
    partial = path + ".partial"
    with tf.io.gfile.GFile(partial, "w") as file:
        file.write(text)
    tf.io.gfile.rename(partial, path, overwrite=True)
