"""Batch normalization in groups of images, whose statistics do not depend on the layout of the cluster.

Each group of `model.batch_norm_group` images is normalized with its own statistics (ghost batch norm, Hoffer et al.
2017). A replica computes the groups among its images without communication. A group of the whole global batch is
synchronized between the replicas. `training/batch_division.py` checks that the groups fit the layout, and gives every
group the same images in all layouts.

The moving statistics are equal on all replicas after each step, because the trainer averages them together with the
gradients: they follow the mean over all groups. So the evaluated model is the saved model, and an interrupted run
resumes with exactly the statistics it had. Keras's own layer keeps different statistics on each replica and averages
them when it saves.
"""

from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras import layers


class GroupedBatchNormalization(layers.BatchNormalization):
    """`BatchNormalization` over the last axis; training uses the statistics of groups of images.

    A batch of at most `group` images is one group. If it has fewer, the images of all replicas are one group.
    """

    def __init__(self, group: int, **options: Any) -> None:
        """Creates the layer.

        Args:
          group: number of images that share their statistics.
          **options: arguments of `BatchNormalization`.
        """
        super().__init__(**options)
        self._group = group

    def add_weight(self, *args: Any, **options: Any) -> tf.Variable:
        """Creates a weight; reads moving statistics from the first replica, because all replicas hold the same."""
        if options.get("synchronization") == tf.VariableSynchronization.ON_READ:
            options["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
        return super().add_weight(*args, **options)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal layer."""
        return {**super().get_config(), "group": self._group}

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalizes [B, ..., C]; uses the moving statistics if frozen or not in training.

        Raises:
          ValueError: if the batch is larger than a group and not a multiple of it, or its size is unknown on several
            replicas.
        """
        if not training:
            return super().call(inputs, training=training)
        if not self.trainable:
            # Not fused: on GPUs the fused kernel has no deterministic gradient when the statistics are constant.
            return self._normalize(tf.cast(inputs, self.moving_mean.dtype), self.moving_mean, self.moving_variance)
        images = inputs.shape[0]
        context = tf.distribute.get_replica_context()
        if images is None and context is not None and context.num_replicas_in_sync > 1:
            raise ValueError(
                f"{self.name}: the batch size is unknown, so images cannot be divided into batch-norm groups; build "
                "the model with a fixed batch size"
            )
        if images is not None and images < self._group and context is not None and context.num_replicas_in_sync > 1:
            return self._normalize_synchronized(inputs, context)
        return self._normalize_groups(inputs)

    def _normalize_groups(self, inputs: tf.Tensor) -> tf.Tensor:
        images = inputs.shape[0]
        count, rest = (1, 0) if images is None or images <= self._group else divmod(images, self._group)
        if rest:
            raise ValueError(f"{self.name}: {inputs.shape[0]} images cannot be divided into groups of {self._group}")
        groups = [self._normalize_group(images) for images in tf.split(inputs, count)]
        outputs, means, variances = zip(*groups, strict=True)
        self._update_moving_statistics(tf.add_n(means) / count, tf.add_n(variances) / count)
        return tf.concat(outputs, axis=0)

    def _normalize_group(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the normalized images of one group, their mean, and the variance for the moving statistics."""
        if self.fused:
            outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                inputs, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
            )
            return outputs, mean, variance
        values = tf.cast(inputs, self.moving_mean.dtype)
        mean, variance = tf.nn.moments(values, list(range(len(inputs.shape) - 1)))
        return self._normalize(values, mean, variance), mean, variance

    def _normalize_synchronized(self, inputs: tf.Tensor, context: tf.distribute.ReplicaContext) -> tf.Tensor:
        """Normalizes with the statistics of the images of all replicas.

        Each layer makes one all-reduce, of mean and second moment together, where Keras's own layer makes three. The
        moments are computed around the moving mean, because the difference of two large squares would lose precision.
        """
        values = tf.cast(inputs, self.moving_mean.dtype)
        center = tf.stop_gradient(self.moving_mean)
        local_mean, local_variance = tf.nn.moments(values, list(range(len(inputs.shape) - 1)))
        shift = local_mean - center
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack([shift, local_variance + shift * shift]))
        shift, second_moment = tf.unstack(sums / context.num_replicas_in_sync)
        mean, variance = center + shift, tf.maximum(second_moment - shift * shift, 0.0)
        # The fused kernel, which normalizes the same images on one replica, keeps the unbiased variance.
        size = context.num_replicas_in_sync * inputs.shape.num_elements() // inputs.shape[-1]
        unbiased = variance * (size / max(size - 1, 1)) if self.fused else variance
        self._update_moving_statistics(mean, unbiased)
        return self._normalize(values, mean, variance)

    def _normalize(self, values: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        normalized = tf.nn.batch_normalization(values, mean, variance, self.beta, self.gamma, self.epsilon)
        return tf.cast(normalized, self.compute_dtype)

    def _update_moving_statistics(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        self.moving_mean.assign_add((1.0 - self.momentum) * (mean - self.moving_mean))
        self.moving_variance.assign_add((1.0 - self.momentum) * (variance - self.moving_variance))


def get_moving_statistics(model: tf_keras.Model) -> list[tf.Variable]:
    """Returns the moving means and variances of all batch norms that are not frozen."""
    norms = [layer for layer in model.submodules if isinstance(layer, layers.BatchNormalization) and layer.trainable]
    return [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]
