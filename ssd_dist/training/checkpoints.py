"""What a run leaves on disk to go on from, and the best model it has seen.

    RUN/checkpoints/ckpt-<step>   weights, optimizer, EMA, loss scale, step: everything
    RUN/best/ckpt-<step>          the evaluated weights of the best step
    RUN/best/best.json            its step, metric and value, written last

Saving is collective (batch-norm statistics are averaged over replicas), so every worker saves: the chief to the real
folder, the others to a temporary one. All restore the chief's.
"""

import json
import os
import tempfile
from pathlib import Path

import tensorflow as tf
import tf_keras

from ssd_dist.core.errors import CheckpointError

BEST_FILE = "best.json"


class CheckpointStore:
    """The resumable checkpoints of a run."""

    def __init__(self, checkpoint: tf.train.Checkpoint, model_dir: str, keep: int, is_chief: bool) -> None:
        self._checkpoint = checkpoint
        self._shared = os.path.join(model_dir, "checkpoints")
        directory = self._shared if is_chief else tempfile.mkdtemp(prefix="ssd_dist_worker_")
        self._manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep=keep)

    def restore_latest(self) -> str | None:
        """Restores the newest checkpoint and returns its path; None if the run is new.

        Raises:
          CheckpointError: if it is of another model or damaged.
        """
        path = tf.train.latest_checkpoint(self._shared)
        if path is not None:
            restore_checkpoint(self._checkpoint, path)
        return path

    def save(self, step: int) -> None:
        """Saves the state after `step` steps; called on all workers together."""
        self._manager.save(checkpoint_number=step)


class BestModel:
    """The best weights by the metric the config names; a resumed run goes on where the value stands."""

    def __init__(self, model: tf_keras.Model, model_dir: str, metric: str, is_chief: bool) -> None:
        self._checkpoint = tf.train.Checkpoint(model=model)
        self._shared = Path(model_dir) / "best"
        self._directory = self._shared if is_chief else Path(tempfile.mkdtemp(prefix="ssd_dist_worker_"))
        self._metric = metric
        self.best = read_best(model_dir)

    def offer(self, step: int, value: float) -> bool:
        """Keeps the model's present weights if `value` is the best so far; called on all workers together."""
        if self.best is not None and value <= self.best["value"]:
            return False
        previous = self.best
        path = self._checkpoint.write(str(self._directory / f"ckpt-{step}"))
        self.best = {"step": step, "metric": self._metric, "value": value, "checkpoint": os.path.basename(path)}
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / f"{BEST_FILE}.partial"
        partial.write_text(json.dumps(self.best) + "\n")
        partial.rename(self._directory / BEST_FILE)
        if previous is not None and previous["checkpoint"] != self.best["checkpoint"]:
            for file in self._directory.glob(f"{previous['checkpoint']}.*"):
                file.unlink()
        return True


def read_best(model_dir: str) -> dict | None:
    """`best.json` of a run; None if there is no best model yet.

    Raises:
      CheckpointError: if it cannot be read.
    """
    path = Path(model_dir) / "best" / BEST_FILE
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); take it away to start a new best") from None


def restore_checkpoint(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Restores every object of `checkpoint` from `path`.

    Raises:
      CheckpointError: if the file is missing, damaged or of another model.
    """
    try:
        # `read`, not `restore`: the latter also wants a save counter, which only a manager's checkpoints have.
        checkpoint.read(path).assert_existing_objects_matched()
    except AssertionError as error:
        raise CheckpointError(f"checkpoint {path} is of another model: {first_line(error)}") from None
    except (ValueError, IndexError, tf.errors.OpError) as error:
        what = "is of another model" if "shape" in str(error) else "cannot be read"
        raise CheckpointError(
            f"checkpoint {path} {what}: {first_line(error)}; use the config it was trained with, or another model_dir"
        ) from None


def first_line(error: Exception) -> str:
    """The beginning of an error's text, which TensorFlow makes long."""
    return str(error).split("\n", 1)[0][:300]
