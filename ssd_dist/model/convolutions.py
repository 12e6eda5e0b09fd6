"""Convolutions with faster gradients on CPUs; they compute the same sums in a different order.

Two of TensorFlow's CPU kernels are slower than necessary (measured on 2 cores with oneDNN; docs/performance.md). The
filter gradient of a 1x1 convolution is computed as one matrix product, which is up to 2.5 times as fast. The input
gradient of a depthwise convolution is computed as a depthwise convolution with the filter rotated by 180 degrees, which
takes a fifth less time. On GPUs, TensorFlow's own kernels are used.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tf_keras import layers

Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class PointwiseConv2D(layers.Conv2D):
    """A 1x1 convolution of stride 1 whose filter gradient is computed as a matrix product."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Convolves [B, H, W, C] as `Conv2D` does."""
        if not training:
            return super().call(inputs)
        outputs = convolve_pointwise(inputs, tf.convert_to_tensor(self.kernel))
        return tf.nn.bias_add(outputs, self.bias) if self.use_bias else outputs


class SameDepthwiseConv2D(layers.DepthwiseConv2D):
    """A depthwise convolution (stride 1, padding `same`, odd size) whose input gradient is a depthwise convolution."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Convolves [B, H, W, C] as `DepthwiseConv2D` does."""
        if not training:
            return super().call(inputs)
        outputs = convolve_depthwise(inputs, tf.convert_to_tensor(self.depthwise_kernel))
        return tf.nn.bias_add(outputs, self.bias) if self.use_bias else outputs


def choose_convolution(kind: type[layers.Layer], options: dict[str, Any]) -> type[layers.Layer]:
    """Returns the class that computes what `kind(**options)` does, with the fastest gradients on this machine."""
    if tf.config.list_logical_devices("GPU") or kind not in (layers.Conv2D, layers.DepthwiseConv2D):
        return kind
    size, strides, dilation = (
        _expand_pair(options.get(name, 1)) for name in ("kernel_size", "strides", "dilation_rate")
    )
    if strides != (1, 1) or dilation != (1, 1):
        return kind
    if kind is layers.Conv2D:
        return PointwiseConv2D if size == (1, 1) and options.get("groups", 1) == 1 else kind
    same = options.get("padding") == "same" and all(side % 2 for side in size)
    return SameDepthwiseConv2D if same and options.get("depth_multiplier", 1) == 1 else kind


@tf.custom_gradient
def convolve_pointwise(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Convolves [B, H, W, C] with a kernel [1, 1, C, D] to [B, H, W, D]."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        to_inputs = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(inputs), 1, "VALID")
        rows = tf.reshape(inputs, [-1, kernel.shape[2]])
        to_kernel = tf.matmul(rows, tf.reshape(upstream, [-1, kernel.shape[3]]), transpose_a=True)
        return to_inputs, tf.reshape(to_kernel, kernel.shape)

    return tf.nn.conv2d(inputs, kernel, 1, "VALID"), gradient


@tf.custom_gradient
def convolve_depthwise(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Convolves [B, H, W, C], padded with zeros, with a depthwise kernel [K, K, C, 1] of odd K to [B, H, W, C]."""
    ones = [1, 1, 1, 1]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        to_inputs = tf.nn.depthwise_conv2d(upstream, tf.reverse(kernel, [0, 1]), ones, "SAME")
        to_kernel = tf.nn.depthwise_conv2d_backprop_filter(inputs, kernel.shape, upstream, ones, "SAME")
        return to_inputs, to_kernel

    return tf.nn.depthwise_conv2d(inputs, kernel, ones, "SAME"), gradient


def _expand_pair(sides: int | Sequence[int]) -> tuple[int, ...]:
    return (sides, sides) if isinstance(sides, int) else tuple(sides)
