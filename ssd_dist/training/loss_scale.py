"""Loss scaling for distributed training: reduces the gradients, checks them, and updates the weights.

    loss * scale -> gradients of this replica -> pack -> all-reduce (sum) -> finite? -> / scale -> clip -> update
                                                                               |no
                                                                               `-> skip the step, halve the scale

The check runs on the reduced gradients, so an overflow on one replica skips the step on all replicas (Micikevicius et
al. 2018). Gradients are summed, not averaged: the loss is already divided by a count of the whole global batch.
"""

from collections.abc import Sequence

import tensorflow as tf

from ssd_dist.training.optimizer import PackedOptimizer

GROWTH_STEPS = 2000
MINIMUM_SCALE, MAXIMUM_SCALE = 1.0, 2.0**24


class LossScale(tf.Module):
    """The factor on the loss that keeps small float16 gradients above zero. Create it in strategy scope.

    A dynamic scale is halved on every overflow, doubled after 2,000 consecutive finite steps, and limited to [1, 2^24].

    Attributes:
      scale: float32 variable.
      good_steps: int64 variable, finite steps since the scale last changed.
      skipped_steps: int64 variable, steps skipped because a gradient was not finite.
    """

    def __init__(self, initial: float, dynamic: bool) -> None:
        super().__init__(name="loss_scale")
        self._dynamic = dynamic
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="scale")
        self.good_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_steps")
        self.skipped_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped_steps")

    def is_minimal(self) -> bool:
        """Returns whether the scale cannot decrease any further."""
        return not self._dynamic or float(self.scale.numpy()) <= MINIMUM_SCALE

    def update(self, finite: tf.Tensor) -> None:
        """Counts the step and adapts a dynamic scale; call in an update context.

        Args:
          finite: bool scalar, whether all reduced gradients are finite; equal on all replicas.
        """
        self.skipped_steps.assign_add(tf.cast(~finite, tf.int64))
        if not self._dynamic:
            return
        good = tf.where(finite, self.good_steps + 1, 0)
        grown = good >= GROWTH_STEPS
        scale = tf.where(finite, tf.where(grown, self.scale * 2.0, self.scale), self.scale / 2.0)
        self.scale.assign(tf.clip_by_value(scale, MINIMUM_SCALE, MAXIMUM_SCALE))
        self.good_steps.assign(tf.where(grown, tf.zeros_like(good), good))


class LossScaleOptimizer:
    """Wraps an optimizer for distributed training with scaled gradients. Create it in strategy scope.

    Its methods are called in replica context. It works for every precision: without float16 the scale is 1.

    Attributes:
      inner_optimizer: updates weights, slots and EMA from reduced gradients.
      loss_scale: the scale, which the caller multiplies the loss by.
    """

    def __init__(self, inner_optimizer: PackedOptimizer, loss_scale: LossScale) -> None:
        self.inner_optimizer = inner_optimizer
        self.loss_scale = loss_scale

    @property
    def variables_to_train(self) -> list[tf.Variable]:
        """The variables in the order in which `apply` expects their gradients."""
        return [variable for group in self.inner_optimizer.groups for variable in group.variables]

    def current_learning_rate(self) -> tf.Tensor:
        """Returns the learning rate of the next update."""
        return self.inner_optimizer.current_learning_rate()

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Multiplies the loss by the loss scale."""
        return loss * tf.cast(self.loss_scale.scale, loss.dtype)

    def apply(self, gradients: Sequence[tf.Tensor | None], others: Sequence[tf.Tensor] = ()) -> list[tf.Tensor]:
        """Sums the scaled gradients over all replicas and updates weights, slots, EMA and loss scale.

        If a reduced gradient is not finite, every replica skips the update and a dynamic scale is halved.

        Args:
          gradients: this replica's scaled gradients, in the order of `variables_to_train`; None is zero.
          others: float32 vectors to sum over replicas in the same all-reduce.

        Returns:
          The sums of `others` over all replicas.
        """
        return self.apply_packed(self.pack(gradients), others)

    def pack(self, gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
        """Packs gradients, in the order of `variables_to_train`, into one vector for each parameter group."""
        packed = []
        start = 0
        for group in self.inner_optimizer.groups:
            packed.append(group.pack(gradients[start : start + len(group.variables)]))
            start += len(group.variables)
        return packed

    def apply_packed(self, packed: Sequence[tf.Tensor], others: Sequence[tf.Tensor] = ()) -> list[tf.Tensor]:
        """Applies gradients that are packed as by `pack`; see `apply`. Float64 vectors are rounded after their sum."""
        context = tf.distribute.get_replica_context()
        # Two all-reduces: the head's gradients, half of all, are sent while the backbone's are still being computed.
        early = sum(group.early for group in self.inner_optimizer.groups)
        parts = [part for part in (packed[:early], [*packed[early:], *others]) if part]
        reduced = [value for part in parts for value in context.all_reduce(tf.distribute.ReduceOp.SUM, part)]
        reduced = [tf.cast(value, tf.float32) for value in reduced]
        context.merge_call(self._update_replicas, args=(reduced[: len(packed)],))
        return reduced[len(packed) :]

    def _update_replicas(self, strategy: tf.distribute.Strategy, reduced: list[tf.Tensor]) -> None:
        # Runs on each device with that device's copies of all variables; nothing after this line communicates.
        strategy.extended.update(
            self.inner_optimizer.applied_steps,
            lambda _, gradients: self._update(gradients),
            args=(reduced,),
            group=True,
        )

    def _update(self, reduced: list[tf.Tensor]) -> tf.Tensor:
        # The sum of squares is finite only if every term is. If the sum itself overflows, the step is skipped too.
        norm = tf.linalg.global_norm(reduced)
        finite = tf.math.is_finite(norm)
        inverse_scale = 1.0 / self.loss_scale.scale
        factor = inverse_scale * self.inner_optimizer.clip_factor(norm * inverse_scale)

        def update() -> bool:
            self.inner_optimizer.update([gradient * factor for gradient in reduced])
            return True

        tf.cond(finite, update, lambda: False)
        self.loss_scale.update(finite)
        return finite
