"""Batch normalisation whose statistics are those of the global batch, on any number of replicas.

One all-reduce a layer, of mean and second moment together, where Keras's own takes three. The moments are taken around
the moving mean: the difference of two large squares would lose the digits in which replicas must agree.
"""

import tensorflow as tf
from tf_keras import layers


class SyncBatchNormalization(layers.BatchNormalization):
    """`BatchNormalization` over the last axis with statistics of the global batch in training."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalises [B, ..., C]; a frozen layer, or one out of training, uses its moving statistics."""
        context = tf.distribute.get_replica_context()
        if not training or not self.trainable or context is None:
            return super().call(inputs, training=training and context is None)
        values = tf.cast(inputs, tf.float32)
        center = tf.stop_gradient(self.moving_mean)
        local_mean, local_variance = tf.nn.moments(values, list(range(len(inputs.shape) - 1)))
        shift = local_mean - center
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack([shift, local_variance + shift * shift]))
        shift, second_moment = tf.unstack(sums / context.num_replicas_in_sync)
        mean, variance = center + shift, tf.maximum(second_moment - shift * shift, 0.0)
        self.moving_mean.assign_add((1.0 - self.momentum) * (mean - self.moving_mean))
        self.moving_variance.assign_add((1.0 - self.momentum) * (variance - self.moving_variance))
        normalized = tf.nn.batch_normalization(values, mean, variance, self.beta, self.gamma, self.epsilon)
        return tf.cast(normalized, self.compute_dtype)
