"""The checkpoints of a run: states to resume from, and the best models so far.

    RUN/checkpoints/ckpt-<step>   the complete state: weights, optimizer, EMA, loss scale, step
    RUN/best/ckpt-<step>          the evaluated weights of the best steps
    RUN/best/best.json            step, metric and value of the best model; written last

Each checkpoint has a file with the checksums of its files (`checkpoint_writer.py`). A checkpoint without a checksum
file was never finished; one whose files differ from the checksums was damaged later. Neither is used.

Only the chief saves, and all workers restore from its folder: the replicas have equal values, so nothing is gathered.
"""

import json
import os
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from ssd_dist.core.config import CheckpointConfig
from ssd_dist.core.errors import CheckpointError, RestartError, first_line
from ssd_dist.core.printable import print_warning
from ssd_dist.core.storage import write_text
from ssd_dist.runs.checkpoint_writer import CHECKSUM_SUFFIX, CheckpointWriter, checksum, remove_checkpoint
from ssd_dist.runs.gfile_storage import explain_write_errors, is_transient, retry

BEST_FILE = "best.json"
LATEST_FILE = "checkpoint"


class CheckpointStore:
    """Saves and restores the complete state of a run."""

    def __init__(
        self,
        checkpoint: tf.train.Checkpoint,
        model_dir: str,
        config: CheckpointConfig,
        is_chief: bool,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Creates the store of the run in `model_dir`; `before_write` is called before each write."""
        self._checkpoint = checkpoint
        self._directory = os.path.join(model_dir, "checkpoints")
        self._keep = config.keep
        self._is_chief = is_chief
        self._writer = CheckpointWriter(checkpoint, self._directory, config.async_save, before_write)
        self._saved_step: int | None = None

    def restore_latest(self) -> str | None:
        """Restores the newest intact checkpoint.

        Returns:
          The checkpoint's path; None if the run is new.

        Raises:
          CheckpointError: if the checkpoint belongs to a different model, or all checkpoints are damaged.
        """
        self._writer.wait()
        path = latest_checkpoint(self._directory)
        if path is not None:
            restore_checkpoint(self._checkpoint, path)
            self._saved_step = _step_of(path)
        return path

    def save(self, step: int) -> None:
        """Saves the state after `step` steps, unless it is already saved; does nothing on workers but the chief.

        Raises:
          CheckpointError: if it cannot be written; earlier checkpoints are unchanged.
        """
        if self._is_chief and self._saved_step != step:
            self._writer.write(f"ckpt-{step}", self._remove_older)
            self._saved_step = step

    def mark_outdated(self, step: int) -> None:
        """Makes the next `save` write the state of `step` again: an evaluation has changed it since it was saved.

        A single checkpoint is not written again: while it is replaced, the run would have none. If the run resumes
        from it, it repeats the evaluation, with the same result.
        """
        if self._saved_step == step and len(complete_checkpoints(self._directory)) > 1:
            self._saved_step = None

    def latest(self) -> str | None:
        """Returns the path of the newest intact checkpoint; None if there is none."""
        return latest_checkpoint(self._directory)

    def wait(self) -> None:
        """Waits until all checkpoints are on disk.

        Raises:
          CheckpointError: if a checkpoint cannot be written.
        """
        self._writer.wait()

    def _remove_older(self, newest: str) -> None:
        """Removes checkpoints beyond the number to keep, after verifying the newest one."""
        # Later checkpoints are damaged; otherwise the run would have resumed from them.
        complete = [path for path in complete_checkpoints(self._directory) if _step_of(path) <= _step_of(newest)]
        # An intact checkpoint is never removed in favor of one that the disk did not store correctly.
        problem = find_damage(newest)
        if problem is not None:
            raise CheckpointError(
                f"{problem}, directly after it was written; check the disk; earlier checkpoints are kept"
            )
        for path in complete[: -self._keep]:
            remove_checkpoint(path)
        # The file that TensorFlow's own tools read.
        write_text(
            os.path.join(self._directory, LATEST_FILE),
            f'model_checkpoint_path: "{os.path.basename(newest)}"\n'
            + "".join(f'all_model_checkpoint_paths: "{os.path.basename(path)}"\n' for path in complete[-self._keep :]),
        )


class BestModel:
    """Keeps the weights with the best values of one metric; a resumed run continues from the stored values."""

    def __init__(
        self,
        model: tf_keras.Model,
        model_dir: str,
        metric: str,
        keep: int,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Creates the store of the run in `model_dir`; `before_write` is called before each write."""
        self._directory = os.path.join(model_dir, "best")
        self._writer = CheckpointWriter(tf.train.Checkpoint(model=model), self._directory, before_write=before_write)
        self._metric = metric
        self._keep = keep
        self.best = read_best(model_dir)

    def save_if_best(self, step: int, value: float) -> bool:
        """Saves the model's current weights if `value` is among the best `keep` values so far.

        Returns:
          Whether it is the best value of all.

        Raises:
          CheckpointError: if it cannot be written; the previous best model is unchanged.
          RestartError: if the storage does not answer.
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


def read_best(model_dir: str) -> dict[str, Any] | None:
    """Reads `best.json` of a run.

    Returns:
      `step`, `value`, `checkpoint` and `metric` of the best model, and `kept`: step, value and checkpoint of all kept
      models, best first. None if there is no best model yet.

    Raises:
      CheckpointError: if the file cannot be read.
    """
    path = os.path.join(model_dir, "best", BEST_FILE)
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path) as file:
            best = json.loads(file.read())
        # Only step, metric and value are required; without "kept", the best model is the only one.
        first = _entry(best["step"], best["value"])
        return {**first, "metric": best["metric"], "kept": best.get("kept", [first])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, tf.errors.OpError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to start without a best model") from None


def locate_checkpoint(model_dir: str, checkpoint: str) -> str:
    """Returns the path of a checkpoint: "best", "last", or a path itself.

    Raises:
      CheckpointError: if the checkpoint does not exist.
    """
    if checkpoint == "best":
        best = read_best(model_dir)
        if best is None:
            raise CheckpointError(f"{model_dir} has no best model yet; use --checkpoint=last, or train with evaluation")
        path = os.path.join(model_dir, "best", best["checkpoint"])
    elif checkpoint == "last":
        found = latest_checkpoint(os.path.join(model_dir, "checkpoints"))
        if found is None:
            raise CheckpointError(f"{model_dir}/checkpoints has no checkpoint; train until the run has saved one")
        path = found
    else:
        path = checkpoint.removesuffix(".index")
    if not tf.io.gfile.exists(f"{path}.index"):
        raise CheckpointError(
            f"checkpoint {path} does not exist; --checkpoint is best, last or a path that ends in ckpt-N"
        )
    return path


def latest_checkpoint(directory: str) -> str | None:
    """Returns the newest intact checkpoint of a folder and reports damaged ones on stderr.

    Returns:
      The checkpoint's path; None if no checkpoint was ever finished.

    Raises:
      CheckpointError: if all finished checkpoints are damaged.
      RestartError: if the storage does not answer.
    """
    problems: list[str] = []
    for path in reversed(all_checkpoints(directory)):
        problem = find_damage(path)
        if problem is None:
            for text in problems:
                print_warning(f"{text}; an older checkpoint is used")
            return path
        problems.append(problem)
    # This file is written after the first checksum file. Without both, the very first checkpoint was never finished.
    any_finished = tf.io.gfile.exists(os.path.join(directory, LATEST_FILE)) or complete_checkpoints(directory)
    if problems and not any_finished:
        print_warning(f"{problems[0]}, and no checkpoint in {directory} was ever finished; a new run starts")
        return None
    if problems:
        raise CheckpointError(
            f"{problems[0]}, and no other checkpoint in {directory} is intact; delete them to start a new run"
        )
    return None


def find_damage(path: str) -> str | None:
    """Returns what is wrong with a checkpoint's files; None if they match their checksums.

    Raises:
      RestartError: if the storage does not answer, so that the state of the files is unknown.
    """
    try:
        return retry(lambda: _verify_checksums(path), f"checkpoint {path}")
    except tf.errors.NotFoundError as error:
        return f"checkpoint {path} is incomplete: {first_line(error)}"
    except (OSError, ValueError, TypeError, AttributeError, KeyError, tf.errors.OpError) as error:
        if is_transient(error):
            raise RestartError(
                f"checkpoint {path}: the storage does not answer: {first_line(error)}; start again to resume"
            ) from None
        return f"checkpoint {path} cannot be read: {first_line(error)}"


def _verify_checksums(path: str) -> str | None:
    with tf.io.gfile.GFile(path + CHECKSUM_SUFFIX) as file:
        checksums = json.loads(file.read())
    for name, expected in checksums.items():
        file_path = os.path.join(os.path.dirname(path), name)
        size = tf.io.gfile.stat(file_path).length
        if size != expected["bytes"]:
            return f"checkpoint {path} is damaged: {name} has {size} bytes instead of {expected['bytes']}"
        if checksum(file_path) != expected["crc32c"]:
            return f"checkpoint {path} is damaged: the checksum of {name} is wrong"
    return None


def complete_checkpoints(directory: str) -> list[str]:
    """Returns the paths of the checkpoints that were finished, oldest first."""
    files = tf.io.gfile.glob(os.path.join(directory, "ckpt-*" + CHECKSUM_SUFFIX))
    paths = [file.removesuffix(CHECKSUM_SUFFIX) for file in files]
    # A copy that a person or a program has made has another name.
    return sorted((path for path in paths if re.fullmatch(r"ckpt-\d+", os.path.basename(path))), key=_step_of)


def all_checkpoints(directory: str) -> list[str]:
    """Returns the paths of all checkpoints of which at least one file exists, oldest first."""
    files = tf.io.gfile.glob(os.path.join(directory, "ckpt-*"))
    found = {match.group(0) for file in files if (match := re.match(r".*ckpt-\d+(?=\.)", file))}
    return sorted(found, key=_step_of)


def restore_checkpoint(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Restores every object of `checkpoint` from `path`.

    Raises:
      CheckpointError: if the checkpoint is missing, damaged or belongs to a different model.
    """
    problem = find_damage(path)
    if problem is not None:
        raise CheckpointError(f"{problem}; use another checkpoint of the run")
    try:
        checkpoint.read(path).expect_partial().assert_existing_objects_matched()
    except AssertionError as error:
        raise CheckpointError(
            f"checkpoint {path} belongs to a different model: {first_line(error)}; use the config it was trained with"
        ) from None
    except (ValueError, IndexError, tf.errors.OpError) as error:
        what = "belongs to a different model" if "shape" in str(error) else "cannot be read"
        raise CheckpointError(
            f"checkpoint {path} {what}: {first_line(error)}; use the config it was trained with, or another model_dir"
        ) from None


def _entry(step: int, value: float) -> dict[str, Any]:
    return {"step": step, "value": value, "checkpoint": f"ckpt-{step}"}


def _step_of(path: str) -> int:
    return int(path.rsplit("-", 1)[1])
