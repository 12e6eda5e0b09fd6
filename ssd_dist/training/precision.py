"""Mixed precision: the Keras policy, the loss scale, and the ops that compute in float32.

AMPContext.setup_policy()        before the model is built
AMPContext.wrap_optimizer(...)   adds the loss scale and the finite check of loss_scale.py
PrecisionConfig                  which ops compute in float32
"""

from dataclasses import dataclass

import tensorflow as tf
import tf_keras

from ssd_dist.core.config import OPS_ALWAYS_IN_FP32, AmpConfig
from ssd_dist.training.loss_scale import LossScale, LossScaleOptimizer
from ssd_dist.training.optimizer import PackedOptimizer

INITIAL_SCALE = 2.0**15


@dataclass(frozen=True)
class PrecisionConfig:
    """Decides per op whether it computes in float32, whatever the Keras policy is.

    Attributes:
      force_fp32: the ops of `amp.force_fp32`. The ops `OPS_ALWAYS_IN_FP32` do not depend on it.
    """

    force_fp32: tuple[str, ...]

    def should_force_fp32(self, op: str) -> bool:
        """Returns whether `op` (`loss`, `iou`, `decode`, `nms` or `mining`) computes in float32."""
        return op in OPS_ALWAYS_IN_FP32 or op in self.force_fp32

    def cast(self, op: str, values: tf.Tensor) -> tf.Tensor:
        """Casts `values` to float32 if `op` computes in float32.

        Otherwise casts them to the 16-bit type of a mixed Keras policy; without one, returns them unchanged.
        """
        if self.should_force_fp32(op):
            return tf.cast(values, tf.float32)
        policy = tf_keras.mixed_precision.global_policy()
        is_mixed = policy.compute_dtype != policy.variable_dtype
        return tf.cast(values, policy.compute_dtype) if is_mixed else values


@dataclass(frozen=True)
class AMPContext:
    """Sets up automatic mixed precision from the `amp` section of the config."""

    config: AmpConfig

    @property
    def policy(self) -> str:
        """Name of the Keras policy: `float32`, `mixed_float16` or `mixed_bfloat16`."""
        return self.config.policy if self.config.enabled else "float32"

    @property
    def precision(self) -> PrecisionConfig:
        """The `PrecisionConfig`, which decides which ops compute in float32."""
        return PrecisionConfig(self.config.force_fp32)

    @property
    def overflow_is_expected(self) -> bool:
        """Whether gradients may overflow in a healthy run: only float16 has a range that small."""
        return self.policy == "mixed_float16"

    def setup_policy(self) -> None:
        """Sets the global Keras policy; call once, before the model is built."""
        tf_keras.mixed_precision.set_global_policy(self.policy)

    def wrap_optimizer(self, optimizer: PackedOptimizer) -> LossScaleOptimizer:
        """Adds loss scaling to an optimizer; call in strategy scope.

        The scale is dynamic or fixed (`amp.loss_scale`) for float16, and 1 for bfloat16 and float32, whose range is
        large enough without scaling.
        """
        return LossScaleOptimizer(optimizer, self._create_loss_scale())

    def _create_loss_scale(self) -> LossScale:
        if self.policy != "mixed_float16":
            return LossScale(1.0, dynamic=False)
        if self.config.loss_scale == "dynamic":
            return LossScale(INITIAL_SCALE, dynamic=True)
        return LossScale(float(self.config.loss_scale), dynamic=False)
