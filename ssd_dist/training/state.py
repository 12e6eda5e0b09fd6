"""Everything a run changes while it trains, built in one place: model, optimizer, EMA, loss scale, step."""

from dataclasses import dataclass
from functools import partial

import orbit
import tensorflow as tf
import tf_keras

from ssd_dist.cluster.collectives import share_initial_weights
from ssd_dist.core.config import Config
from ssd_dist.model.detector import build_detector
from ssd_dist.training.ema import ExponentialMovingAverage
from ssd_dist.training.optimizer import DistributedOptimizer
from ssd_dist.training.parameter_groups import group_parameters
from ssd_dist.training.precision import AMPContext, LossScale
from ssd_dist.training.schedule import learning_rate

# What each replica sums up between two reports; each is of the global batch once summed over replicas.
REPORTED_SUMS = ("loss", "loss/cls", "loss/loc", "positives", "negatives")


@dataclass(frozen=True)
class TrainState:
    """The parts of a run's state; `step` counts batches, the optimizer counts applied updates.

    `evaluated` is the last step that was evaluated; `recoveries` counts how often the run went back after a blow-up.
    `report_totals` float64 holds `REPORTED_SUMS` and the number of steps since the last report.
    """

    model: tf_keras.Model
    optimizer: DistributedOptimizer
    ema: ExponentialMovingAverage | None
    loss_scale: LossScale
    step: tf.Variable
    evaluated: tf.Variable
    recoveries: tf.Variable
    report_totals: tf.Variable

    def checkpoint(self) -> tf.train.Checkpoint:
        """All of it, as one thing to save and restore."""
        return tf.train.Checkpoint(**{part: value for part, value in vars(self).items() if value is not None})


def create_state(config: Config, class_count: int, total_steps: int) -> TrainState:
    """A new state from the config; call in strategy scope, with the Keras policy and the seeds set."""
    model = build_detector(config, class_count)
    share_initial_weights(model.variables)
    groups = group_parameters(model, config.optimizer, config.backbone)
    ema = ExponentialMovingAverage(groups, config.ema) if config.ema.enabled else None
    loss_scale = AMPContext(config.amp).create_loss_scale()
    schedule = partial(learning_rate, base_lr=config.optimizer.lr, total_steps=total_steps, config=config.schedule)
    optimizer = DistributedOptimizer(groups, config.optimizer, schedule, loss_scale, ema, config.train.accumulate_steps)
    evaluated = tf.Variable(0, trainable=False, dtype=tf.int64, name="evaluated")
    recoveries = tf.Variable(0, trainable=False, dtype=tf.int64, name="recoveries")
    totals = tf.Variable(tf.zeros([len(REPORTED_SUMS) + 1], tf.float64), trainable=False, name="report_totals")
    step = orbit.utils.create_global_step()
    return TrainState(model, optimizer, ema, loss_scale, step, evaluated, recoveries, totals)
