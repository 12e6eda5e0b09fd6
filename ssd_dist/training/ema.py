"""Exponential moving average (EMA) of the weights: the model that is evaluated and exported.

Each replica updates its own averages in place after each applied step, without communication. The copies of the weights
are equal bit for bit, so the averages are too. Batch-norm statistics already are moving averages; they are used as they
are and not averaged again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tensorflow as tf

from ssd_dist.core.config import EmaConfig
from ssd_dist.training.parameter_groups import ParameterGroup


def ema_decay(updates: tf.Tensor, decay: float) -> tf.Tensor:
    """Returns min(decay, (1 + n) / (10 + n)) after n updates, so that the initial weights are forgotten quickly."""
    count = tf.cast(updates, tf.float32)
    return tf.minimum(decay, (1.0 + count) / (10.0 + count))


class ExponentialMovingAverage(tf.Module):
    """Averages of all parameter groups, one packed vector per group. Create it in strategy scope."""

    def __init__(self, groups: Sequence[ParameterGroup], config: EmaConfig) -> None:
        super().__init__(name="ema")
        self._groups = tuple(groups)
        self._config = config
        self.updates = tf.Variable(0, trainable=False, dtype=tf.int64, name="updates")
        self.averages = {
            group.name: tf.Variable(group.pack(), trainable=False, name=f"{group.name}_average")
            for group in self._groups
        }

    def update(self, step: tf.Tensor, weights: Sequence[tf.Tensor]) -> None:
        """Updates the averages; call in an update context.

        Args:
          step: int64 scalar, the number of applied steps, counted from 1.
          weights: the packed weights of each group after that step.
        """
        if self._config.update_every == 1:
            self._average(step, weights)
        else:
            tf.cond(step % self._config.update_every == 0, lambda: self._average(step, weights), lambda: False)

    def restart(self) -> None:
        """Sets the averages to the model's current weights; call in strategy scope, before the first update."""
        for group in self._groups:
            self.averages[group.name].assign(group.pack())

    @contextmanager
    def eval_context(self) -> Iterator[None]:
        """Replaces the model's weights with the averages inside the context and restores them bit for bit on exit.

        The weights are restored on every exit, exceptions included.
        """
        backup = [[tf.identity(variable.read_value()) for variable in group.variables] for group in self._groups]
        try:
            self.assign_to_model()
            yield
        finally:
            for group, weights in zip(self._groups, backup, strict=True):
                for variable, value in zip(group.variables, weights, strict=True):
                    variable.assign(value)

    def assign_to_model(self) -> None:
        """Replaces the model's weights with the averages permanently; use `eval_context` during training."""
        for group in self._groups:
            group.assign(self.averages[group.name].read_value())

    def _average(self, step: tf.Tensor, weights: Sequence[tf.Tensor]) -> bool:
        # Up to warmup_steps the averages equal the weights.
        decay = tf.where(step <= self._config.warmup_steps, 0.0, ema_decay(self.updates, self._config.decay))
        for group, packed in zip(self._groups, weights, strict=True):
            average = self.averages[group.name]
            average.assign_add((1.0 - decay) * (packed - average))
        self.updates.assign_add(tf.cast(step > self._config.warmup_steps, tf.int64))
        return True
