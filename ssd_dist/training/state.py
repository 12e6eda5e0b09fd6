"""Everything a run changes while it trains, built in one place: model, optimizer, EMA, loss scale, step."""

from dataclasses import dataclass
from functools import partial

import orbit
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import Config
from ssd_dist.model.detector import build_detector
from ssd_dist.training.ema import ExponentialMovingAverage
from ssd_dist.training.optimizer import DistributedOptimizer
from ssd_dist.training.packing import group_parameters
from ssd_dist.training.precision import AMPContext, LossScale
from ssd_dist.training.schedule import learning_rate


@dataclass(frozen=True)
class TrainState:
    """The parts of a run's state; `step` counts batches, the optimizer counts applied updates."""

    model: tf_keras.Model
    optimizer: DistributedOptimizer
    ema: ExponentialMovingAverage | None
    loss_scale: LossScale
    step: tf.Variable

    def checkpoint(self) -> tf.train.Checkpoint:
        """All of it, as one thing to save and restore."""
        parts = {"model": self.model, "optimizer": self.optimizer, "loss_scale": self.loss_scale, "step": self.step}
        return tf.train.Checkpoint(**parts, **({} if self.ema is None else {"ema": self.ema}))


def create_state(config: Config, class_count: int, total_steps: int) -> TrainState:
    """A new state from the config; call in strategy scope, with the Keras policy and the seeds set."""
    model = build_detector(config, class_count)
    groups = group_parameters(model, config.optimizer, config.backbone)
    ema = ExponentialMovingAverage(groups, config.ema) if config.ema.enabled else None
    loss_scale = AMPContext(config.amp).create_loss_scale()
    schedule = partial(learning_rate, base_lr=config.optimizer.lr, total_steps=total_steps, config=config.schedule)
    optimizer = DistributedOptimizer(groups, config.optimizer, schedule, loss_scale, ema)
    return TrainState(model, optimizer, ema, loss_scale, orbit.utils.create_global_step())
