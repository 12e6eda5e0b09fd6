"""Mixed precision: which numbers stay float32, and how small gradients survive float16.

    loss * scale -> gradients -> all-reduce -> finite? -> / scale -> clip -> apply
                                      |no
                                      `-> skip the step on every replica, halve the scale

The verdict is taken on the reduced gradients, so one replica's overflow is everybody's (Micikevicius et al. 2018).
"""

from dataclasses import dataclass

import tensorflow as tf
import tf_keras

from ssd_dist.core.config import AmpConfig

INITIAL_SCALE = 2.0**15
GROWTH_STEPS = 2000
MINIMUM_SCALE, MAXIMUM_SCALE = 1.0, 2.0**24


@dataclass(frozen=True)
class PrecisionConfig:
    """Answers, op by op, whether float32 is forced under mixed precision."""

    force_fp32: tuple[str, ...]

    def should_force_fp32(self, op: str) -> bool:
        """Whether `op` (loss, iou, decode, nms or mining) computes in float32 whatever the policy."""
        return op in self.force_fp32

    def cast(self, op: str, values: tf.Tensor) -> tf.Tensor:
        """`values` as `op` wants them: float32 if forced, as they are otherwise."""
        return tf.cast(values, tf.float32) if self.should_force_fp32(op) else values


class LossScale(tf.Module):
    """The factor that keeps float16 gradients from vanishing; dynamic, fixed, or 1 without float16.

    Dynamic: halved on every overflow, doubled after 2,000 good steps, kept within [1, 2^24].
    """

    def __init__(self, initial: float, dynamic: bool) -> None:
        super().__init__(name="loss_scale")
        self._dynamic = dynamic
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="scale")
        self.good_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_steps")
        self.skipped_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped_steps")

    def at_floor(self) -> bool:
        """Whether the scale cannot fall any more."""
        return not self._dynamic or float(self.scale.numpy()) <= MINIMUM_SCALE

    def update(self, finite: tf.Tensor) -> None:
        """Notes one step's verdict, a bool scalar equal on all replicas; runs inside an update context."""
        self.skipped_steps.assign_add(tf.cast(~finite, tf.int64))
        if not self._dynamic:
            return
        good = tf.where(finite, self.good_steps + 1, 0)
        grown = good >= GROWTH_STEPS
        scale = tf.where(finite, tf.where(grown, self.scale * 2.0, self.scale), self.scale / 2.0)
        self.scale.assign(tf.clip_by_value(scale, MINIMUM_SCALE, MAXIMUM_SCALE))
        self.good_steps.assign(tf.where(grown, tf.zeros_like(good), good))


@dataclass(frozen=True)
class AMPContext:
    """All there is to mixed precision in a run: the Keras policy, the loss scale, the forced ops."""

    config: AmpConfig

    @property
    def policy(self) -> str:
        """Name of the Keras policy."""
        return self.config.policy if self.config.enabled else "float32"

    @property
    def precision(self) -> PrecisionConfig:
        """Which ops are forced to float32."""
        return PrecisionConfig(self.config.force_fp32)

    def install(self) -> None:
        """Sets the global Keras policy; call once, before the model is built."""
        tf_keras.mixed_precision.set_global_policy(self.policy)

    def create_loss_scale(self) -> LossScale:
        """The loss scale of this policy: bfloat16 and float32 have the range to do without. Call in strategy scope."""
        if self.policy != "mixed_float16":
            return LossScale(1.0, dynamic=False)
        if self.config.loss_scale == "dynamic":
            return LossScale(INITIAL_SCALE, dynamic=True)
        return LossScale(float(self.config.loss_scale), dynamic=False)
