"""Batch normalisation with the statistics of each replica's batch or of the global batch.

With both layers the moving statistics are equal on all replicas after each step, because the trainer averages them
together with the gradients. So the evaluated model is the saved model, and an interrupted run resumes with exactly the
statistics it had. Keras's own layer keeps different statistics on each replica and averages them when it saves.
"""

from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras import layers


class ReplicaBatchNormalization(layers.BatchNormalization):
    """`BatchNormalization` over the last axis; training uses the statistics of each replica's batch."""

    def add_weight(self, *args: Any, **options: Any) -> tf.Variable:
        """Creates a weight; reads moving statistics from the first replica, because all replicas hold the same."""
        if options.get("synchronization") == tf.VariableSynchronization.ON_READ:
            options["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
        return super().add_weight(*args, **options)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalises [B, ..., C]; uses the moving statistics if frozen or not in training."""
        if not training or self.trainable:
            return super().call(inputs, training=training)
        # Not fused: on GPUs the fused kernel has no deterministic gradient when the statistics are constant.
        return self._normalize(tf.cast(inputs, self.moving_mean.dtype), self.moving_mean, self.moving_variance)

    def _normalize(self, values: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        normalized = tf.nn.batch_normalization(values, mean, variance, self.beta, self.gamma, self.epsilon)
        return tf.cast(normalized, self.compute_dtype)


class SyncBatchNormalization(ReplicaBatchNormalization):
    """`BatchNormalization` over the last axis; training uses the statistics of the global batch.

    Each layer makes one all-reduce, of mean and second moment together, where Keras's own layer makes three. The
    moments are computed around the moving mean, because the difference of two large squares would lose precision.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalises [B, ..., C]; uses the moving statistics if frozen or not in training."""
        context = tf.distribute.get_replica_context()
        if not training or not self.trainable or context is None:
            return super().call(inputs, training=training)
        values = tf.cast(inputs, self.moving_mean.dtype)
        center = tf.stop_gradient(self.moving_mean)
        local_mean, local_variance = tf.nn.moments(values, list(range(len(inputs.shape) - 1)))
        shift = local_mean - center
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack([shift, local_variance + shift * shift]))
        shift, second_moment = tf.unstack(sums / context.num_replicas_in_sync)
        mean, variance = center + shift, tf.maximum(second_moment - shift * shift, 0.0)
        self.moving_mean.assign_add((1.0 - self.momentum) * (mean - self.moving_mean))
        self.moving_variance.assign_add((1.0 - self.momentum) * (variance - self.moving_variance))
        return self._normalize(values, mean, variance)


def get_moving_statistics(model: tf_keras.Model) -> list[tf.Variable]:
    """Returns the moving means and variances of all batch norms that are not frozen."""
    norms = [layer for layer in model.submodules if isinstance(layer, layers.BatchNormalization) and layer.trainable]
    return [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]
