"""AdamW and SGD on packed parameter groups; one overflow anywhere skips the step everywhere.

    gradients of this replica -> pack -> all-reduce (sum) -> finite? -> unscale -> clip by global norm -> update -> EMA

The gradients are summed, not averaged: the loss is already divided by the count of the whole global batch. All state
is mirrored: every replica computes the same update in place, and nothing but the gradients is communicated.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from ssd_dist.core.config import OptimizerConfig
from ssd_dist.training.ema import ExponentialMovingAverage
from ssd_dist.training.parameter_groups import ParameterGroup
from ssd_dist.training.precision import LossScale

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


def adamw_update(
    gradient: tf.Tensor, first: tf.Tensor, second: tf.Tensor, step: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Adam's direction and its new moments (Kingma and Ba 2015, algorithm 1); `step` counts from 1.

    The direction is m_hat / (sqrt(v_hat) + epsilon); AdamW adds the decay outside (Loshchilov and Hutter 2019).
    """
    first = first + (1.0 - BETA_1) * (gradient - first)
    second = second + (1.0 - BETA_2) * (gradient * gradient - second)
    count = tf.cast(step, tf.float32)
    corrected = tf.sqrt(second / (1.0 - tf.pow(BETA_2, count)))
    return first / (1.0 - tf.pow(BETA_1, count)) / (corrected + EPSILON), first, second


def sgd_update(
    gradient: tf.Tensor, velocity: tf.Tensor, momentum: float, nesterov: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Momentum's direction and its new velocity v = momentum * v + g (Sutskever et al. 2013, with the rate outside)."""
    velocity = momentum * velocity + gradient
    return (gradient + momentum * velocity if nesterov else velocity), velocity


def clip_factor(norm: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """What makes gradients of a global norm have at most `clip_norm` (Pascanu et al. 2013); 0 is no limit."""
    return clip_norm / tf.maximum(norm, clip_norm) if clip_norm > 0 else tf.ones_like(norm)


class GradientSum:
    """Packed gradients of the parts of a batch, each replica's own; empty between steps, so in no checkpoint."""

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        self._totals = [
            tf.Variable(
                tf.zeros([group.size]),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
                name=f"{group.name}_sum",
            )
            for group in groups
        ]

    def add(self, packed: Sequence[tf.Tensor]) -> None:
        """Adds one part's gradients; in replica context."""
        for total, part in zip(self._totals, packed, strict=True):
            total.assign_add(part)

    def take(self) -> list[tf.Tensor]:
        """The sums, which are cleared; in replica context."""
        packed = [tf.identity(total) for total in self._totals]
        with tf.control_dependencies(packed):
            for total in self._totals:
                total.assign(tf.zeros_like(total))
        return packed


class DistributedOptimizer(tf.Module):
    """The optimizer's state and its one public step, called in replica context. Create it in strategy scope."""

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        config: OptimizerConfig,
        schedule: Callable[[tf.Tensor], tf.Tensor],
        loss_scale: LossScale,
        ema: ExponentialMovingAverage | None,
        accumulate_steps: int = 1,
    ) -> None:
        super().__init__(name="optimizer")
        self._groups = tuple(groups)
        self._config = config
        self._schedule = schedule
        self._loss_scale = loss_scale
        self._ema = ema
        self.applied_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="applied_steps")
        slots = {"adamw": ("first", "second"), "sgd": ("velocity",)}[config.name]
        self.slots = {
            group.name: [tf.Variable(tf.zeros([group.size]), trainable=False, name=f"{group.name}_{s}") for s in slots]
            for group in self._groups
        }
        self._sum = GradientSum(self._groups) if accumulate_steps > 1 else None

    @property
    def variables_to_train(self) -> list[tf.Variable]:
        """The variables whose gradients `apply` takes, in its order."""
        return [variable for group in self._groups for variable in group.variables]

    def current_learning_rate(self) -> tf.Tensor:
        """The rate of the next update."""
        return self._schedule(self.applied_steps)

    def apply(self, gradients: Sequence[tf.Tensor | None], others: Sequence[tf.Tensor] = ()) -> list[tf.Tensor]:
        """Reduces this replica's scaled gradients over all replicas and updates weights, slots, scale and EMA.

        Returns:
          The sums over replicas of `others`, float32 tensors that travel in the same all-reduce.
        """
        return self._apply_packed(self._pack(gradients), others)

    def accumulate(self, gradients: Sequence[tf.Tensor | None]) -> None:
        """Adds this replica's scaled gradients to those of the batch's earlier parts; no communication."""
        self._sum.add(self._pack(gradients))

    def apply_accumulated(self, others: Sequence[tf.Tensor] = ()) -> list[tf.Tensor]:
        """`apply` for the sum of what was accumulated, which is cleared."""
        return self._apply_packed(self._sum.take(), others)

    def _pack(self, gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
        packed = []
        start = 0
        for group in self._groups:
            packed.append(group.pack(gradients[start : start + len(group.variables)]))
            start += len(group.variables)
        return packed

    def _apply_packed(self, packed: list[tf.Tensor], others: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        # In two: the head's gradients, half of all, travel while the backbone's are still being computed.
        early = sum(group.early for group in self._groups)
        parts = [part for part in (packed[:early], [*packed[early:], *others]) if part]
        reduced = [one for part in parts for one in context.all_reduce(tf.distribute.ReduceOp.SUM, part)]
        context.merge_call(self._update_replicas, args=(reduced[: len(packed)],))
        return reduced[len(packed) :]

    def _update_replicas(self, strategy: tf.distribute.Strategy, reduced: list[tf.Tensor]) -> None:
        # On each device, with that device's copies of all variables: no communication from here on.
        strategy.extended.update(self.applied_steps, lambda _, flat: self._update(flat), args=(reduced,), group=True)

    def _update(self, reduced: list[tf.Tensor]) -> tf.Tensor:
        # A finite sum of squares needs finite terms; overflow of the sum itself is past any use as well.
        norm = tf.linalg.global_norm(reduced)
        finite = tf.math.is_finite(norm)
        inverse_scale = 1.0 / self._loss_scale.scale
        factor = inverse_scale * clip_factor(norm * inverse_scale, self._config.clip_norm)
        tf.cond(finite, lambda: self._apply_update([flat * factor for flat in reduced]), lambda: False)
        self._loss_scale.update(finite)
        return finite

    def _apply_update(self, gradients: list[tf.Tensor]) -> bool:
        rate = self.current_learning_rate()
        step = self.applied_steps.assign_add(1, read_value=True)
        updated = []
        for group, gradient in zip(self._groups, gradients, strict=True):
            weights = group.pack()
            direction = self._direction(gradient, self.slots[group.name], step)
            if group.weight_decay > 0:
                direction += group.weight_decay * weights
            updated.append(weights - rate * group.lr_scale * direction)
            group.assign(updated[-1])
        if self._ema is not None:
            self._ema.update(step, updated)
        return True

    def _direction(self, gradient: tf.Tensor, slots: list[tf.Variable], step: tf.Tensor) -> tf.Tensor:
        if self._config.name == "adamw":
            direction, first, second = adamw_update(gradient, slots[0], slots[1], step)
            slots[0].assign(first)
            slots[1].assign(second)
            return direction
        direction, velocity = sgd_update(gradient, slots[0], self._config.momentum, self._config.nesterov)
        slots[0].assign(velocity)
        return direction
