"""Everything a run changes while it trains and saves in its checkpoints."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import orbit
import tensorflow as tf
import tf_keras

from ssd_dist.training.ema import ExponentialMovingAverage
from ssd_dist.training.loss_scale import LossScale, LossScaleOptimizer

# What each replica sums between two training reports. Summed over replicas each is a value of the global batch.
REPORTED_SUMS = ("loss", "loss/cls", "loss/loc", "positives", "negatives")


@dataclass(frozen=True)
class TrainState:
    """The variables of a run.

    Attributes:
      model: the detector.
      optimizer: the optimizer with its loss scale; it counts applied updates.
      ema: the averaged weights; None if `ema.enabled` is false.
      step: int64 variable, the number of batches.
      evaluated: int64 variable, the last step that was evaluated.
      recoveries: int64 variable, how often the run returned to an earlier checkpoint after a divergence.
      report_totals: float64 variable: `REPORTED_SUMS` and the number of steps since the last training report.
    """

    model: tf_keras.Model
    optimizer: LossScaleOptimizer
    ema: ExponentialMovingAverage | None
    step: tf.Variable
    evaluated: tf.Variable
    recoveries: tf.Variable
    report_totals: tf.Variable

    @classmethod
    def create(
        cls, model: tf_keras.Model, optimizer: LossScaleOptimizer, ema: ExponentialMovingAverage | None
    ) -> "TrainState":
        """Creates the state of a new run, with all counters at 0; call in strategy scope."""
        return cls(
            model=model,
            optimizer=optimizer,
            ema=ema,
            step=orbit.utils.create_global_step(),
            evaluated=tf.Variable(0, trainable=False, dtype=tf.int64, name="evaluated"),
            recoveries=tf.Variable(0, trainable=False, dtype=tf.int64, name="recoveries"),
            report_totals=tf.Variable(
                tf.zeros([len(REPORTED_SUMS) + 1], tf.float64), trainable=False, name="report_totals"
            ),
        )

    @property
    def loss_scale(self) -> LossScale:
        """The loss scale of the optimizer."""
        return self.optimizer.loss_scale

    @property
    def current_step(self) -> int:
        """The number of batches the run has trained on."""
        return int(self.step.numpy())

    @property
    def evaluated_step(self) -> int:
        """The last step that was evaluated; 0 if none was."""
        return int(self.evaluated.numpy())

    def checkpoint(self) -> tf.train.Checkpoint:
        """Returns the whole state as one checkpoint; the files contain its names, so renaming one breaks old runs."""
        parts = {
            "model": self.model,
            "optimizer": self.optimizer.inner_optimizer,
            "loss_scale": self.loss_scale,
            "step": self.step,
            "evaluated": self.evaluated,
            "recoveries": self.recoveries,
            "report_totals": self.report_totals,
        }
        if self.ema is not None:
            parts["ema"] = self.ema
        return tf.train.Checkpoint(**parts)

    def eval_context(self, use_ema: bool) -> AbstractContextManager[None]:
        """Returns a context in which the model holds the weights to evaluate; its exit restores the trained weights.

        Args:
          use_ema: whether to evaluate the averaged weights; without EMA the trained weights are evaluated.
        """
        return self.ema.eval_context() if self.ema is not None and use_ema else nullcontext()
