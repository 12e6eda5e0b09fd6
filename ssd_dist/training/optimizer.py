"""AdamW and SGD on packed parameter groups.

    reduced, unscaled and clipped gradients -> direction -> weights, slots, EMA

All state is mirrored: every replica computes the same update in place. `LossScaleOptimizer` (loss_scale.py) reduces the
gradients over replicas and calls the update.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from ssd_dist.core.config import OptimizerConfig
from ssd_dist.training.ema import ExponentialMovingAverage
from ssd_dist.training.parameter_groups import ParameterGroup

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


def adamw_update(
    gradient: tf.Tensor, first: tf.Tensor, second: tf.Tensor, step: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes Adam's update direction and new moments (Kingma and Ba 2015, algorithm 1).

    The direction is m_hat / (sqrt(v_hat) + epsilon); decoupled weight decay is added by the caller (AdamW, Loshchilov
    and Hutter 2019).

    Args:
      gradient: float32 [size].
      first: first moment, float32 [size].
      second: second moment, float32 [size].
      step: the number of this update, counted from 1.

    Returns:
      (direction, new first moment, new second moment).
    """
    first = first + (1.0 - BETA_1) * (gradient - first)
    second = second + (1.0 - BETA_2) * (gradient * gradient - second)
    count = tf.cast(step, tf.float32)
    corrected = tf.sqrt(second / (1.0 - tf.pow(BETA_2, count)))
    return first / (1.0 - tf.pow(BETA_1, count)) / (corrected + EPSILON), first, second


def sgd_update(
    gradient: tf.Tensor, velocity: tf.Tensor, momentum: float, nesterov: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the update direction and new velocity of SGD with momentum.

    velocity = momentum * velocity + gradient (Sutskever et al. 2013, with the learning rate applied by the caller).

    Returns:
      (direction, new velocity).
    """
    velocity = momentum * velocity + gradient
    return (gradient + momentum * velocity if nesterov else velocity), velocity


def clip_factor(norm: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """Returns the factor that limits gradients of global norm `norm` to `clip_norm`; 0 disables clipping.

    Pascanu et al. 2013.
    """
    return clip_norm / tf.maximum(norm, clip_norm) if clip_norm > 0 else tf.ones_like(norm)


class PackedOptimizer(tf.Module):
    """AdamW or SGD on packed parameter groups, with the EMA of the weights. Create it in strategy scope.

    Attributes:
      applied_steps: int64 variable, the number of applied updates.
      slots: the optimizer's variables by group name: two moments for AdamW, the velocity for SGD.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        config: OptimizerConfig,
        schedule: Callable[[tf.Tensor], tf.Tensor],
        ema: ExponentialMovingAverage | None = None,
    ) -> None:
        super().__init__(name="optimizer")
        self._groups = tuple(groups)
        self._config = config
        self._schedule = schedule
        self._ema = ema
        self.applied_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="applied_steps")
        slots = {"adamw": ("first", "second"), "sgd": ("velocity",)}[config.name]
        self.slots = {
            group.name: [tf.Variable(tf.zeros([group.size]), trainable=False, name=f"{group.name}_{s}") for s in slots]
            for group in self._groups
        }

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The parameter groups, in the order in which gradients are packed."""
        return self._groups

    def current_learning_rate(self) -> tf.Tensor:
        """Returns the learning rate of the next update."""
        return self._schedule(self.applied_steps)

    def clip_factor(self, norm: tf.Tensor) -> tf.Tensor:
        """Returns the factor that limits gradients of global norm `norm` to `optimizer.clip_norm`."""
        return clip_factor(norm, self._config.clip_norm)

    def update(self, gradients: Sequence[tf.Tensor]) -> None:
        """Updates weights, slots, step count and EMA; call in an update context.

        Args:
          gradients: float32 [size] of each group: reduced over replicas, unscaled and clipped.
        """
        rate = self.current_learning_rate()
        step = self.applied_steps.assign_add(1, read_value=True)
        updated = []
        for group, gradient in zip(self._groups, gradients, strict=True):
            weights = group.pack()
            direction = self._compute_direction(gradient, self.slots[group.name], step)
            if group.weight_decay > 0:
                direction += group.weight_decay * weights
            updated.append(weights - rate * group.lr_scale * direction)
            group.assign(updated[-1])
        if self._ema is not None:
            self._ema.update(step, updated)

    def _compute_direction(self, gradient: tf.Tensor, slots: list[tf.Variable], step: tf.Tensor) -> tf.Tensor:
        if self._config.name == "adamw":
            direction, first, second = adamw_update(gradient, slots[0], slots[1], step)
            slots[0].assign(first)
            slots[1].assign(second)
            return direction
        direction, velocity = sgd_update(gradient, slots[0], self._config.momentum, self._config.nesterov)
        slots[0].assign(velocity)
        return direction
