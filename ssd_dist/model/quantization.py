"""Simulates 8-bit integers in a detector, so that training adapts to them (`quantization.aware`).

    kernel      -> 255 levels, symmetric around 0, one scale per output channel or per tensor
    activation  -> 256 levels between two limits, the moving averages of its extremes

The int8 TFLite file of the detector rounds at the same places to the same levels (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3). Rounding has the gradient of
the identity, and 0 where a value lies outside of the limits.

The export folds each batch normalization into the kernel before it, which multiplies every output channel by a factor.
Levels per channel are multiplied with it, so the unfolded kernel is rounded here. Levels per tensor depend on the
factors: they are taken from the moving variance, as by the export.

tensorflow-model-optimization 0.8.1 is not used: it supports neither nested models nor layers of other packages.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras import layers

from ssd_dist.core.config import QuantizationConfig
from ssd_dist.model.batch_norm import GroupedBatchNormalization
from ssd_dist.model.convolutions import (
    PointwiseConv2D,
    SameDepthwiseConv2D,
    choose_convolution,
    convolve_depthwise,
    convolve_pointwise,
)
from ssd_dist.model.layer_names import find_following_norm, find_only_follower

LIMITS_NAME = "limits"
LIMITS_MOMENTUM = 0.99
# Kernels are rounded to -127..127 times their scale.
KERNEL_LEVELS = 127
# In int8 a pixel p is p - 128, so the network gets (p - 128) / 127.5: half a level less than without rounding.
PIXEL_SCALE, ZERO_PIXEL = 1.0 / 127.5, 128.0
PIXEL_LIMITS = (-ZERO_PIXEL * PIXEL_SCALE, (255.0 - ZERO_PIXEL) * PIXEL_SCALE)

# Returns the factor by which the export multiplies each output channel of a kernel.
ReadScale = Callable[[], tf.Tensor]


class RoundedOutput:
    """Mixin for layers: rounds the output to 256 levels.

    In training, each group of images is observed as by `GroupedBatchNormalization`, and the limits move towards the
    mean over the groups. All groups are rounded with the limits of the step before, so that the result does not depend
    on the layout of the cluster. The first step is not rounded; it sets the limits.
    """

    def __init__(self, images: int, **options: Any) -> None:
        """Creates the layer.

        Args:
          images: number of images that are observed together.
          **options: arguments of the layer.
        """
        super().__init__(**options)
        self._images = images

    def build(self, input_shape: Any) -> None:
        """Creates the weights; replicas hold the same limits after each step, as moving statistics do."""
        super().build(input_shape)  # type: ignore[misc]
        self.limits = self.add_weight(  # type: ignore[attr-defined]
            name=LIMITS_NAME,
            shape=[2],
            initializer="zeros",
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal layer."""
        return {**super().get_config(), "images": self._images}  # type: ignore[misc]

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Computes the layer and rounds its output."""
        options = {"training": training} if isinstance(self, layers.BatchNormalization) else {}
        outputs = super().call(inputs, **options)  # type: ignore[misc]
        limits = tf.convert_to_tensor(self.limits)
        rounded = round_activation(outputs, limits)
        if not training:
            return rounded
        is_first = limits[0] == limits[1]
        observed = self._observe(outputs)
        self.limits.assign(tf.where(is_first, observed, limits + (1.0 - LIMITS_MOMENTUM) * (observed - limits)))
        return tf.where(is_first, outputs, rounded)

    def _observe(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns the mean over the groups of the lowest and the highest value; 0 always lies between the two."""
        images = outputs.shape[0]
        count = 1 if images is None or images <= self._images else images // self._images
        values = tf.reshape(tf.stop_gradient(outputs), [count, -1])
        low = tf.reduce_mean(tf.minimum(tf.reduce_min(values, axis=1), 0.0))
        high = tf.reduce_mean(tf.maximum(tf.reduce_max(values, axis=1), 0.0))
        return tf.stack([low, high])


class RoundedActivation(RoundedOutput, layers.Activation):
    """An activation, rounded."""


class RoundedAdd(RoundedOutput, layers.Add):
    """A sum, rounded."""


class RoundedBatchNormalization(RoundedOutput, GroupedBatchNormalization):
    """A batch normalization without activation after it, rounded."""


class RoundedConcatenate(RoundedOutput, layers.Concatenate):
    """The predictions of all levels, rounded with common limits."""


class RoundedReLU(RoundedOutput, layers.ReLU):
    """A ReLU, rounded."""


ROUNDED_LAYERS = {layers.Add: RoundedAdd, layers.Concatenate: RoundedConcatenate, layers.ReLU: RoundedReLU}


class RoundedConv2D(layers.Conv2D):
    """A convolution with a rounded kernel."""

    def __init__(self, per_tensor: bool, shifts_pixels: bool = False, **options: Any) -> None:
        """Creates the layer.

        Args:
          per_tensor: whether all output channels share a scale.
          shifts_pixels: whether the inputs are normalized pixels p / 127.5 - 1, of which it makes (p - 128) / 127.5.
          **options: arguments of `Conv2D`.
        """
        super().__init__(**options)
        self._per_tensor, self._shifts_pixels = per_tensor, shifts_pixels
        self._is_pointwise = choose_convolution(layers.Conv2D, options) is PointwiseConv2D
        # A function: as an attribute, the batch normalization would become part of this layer.
        self.read_fold_scale: ReadScale | None = None

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal layer."""
        return {**super().get_config(), "per_tensor": self._per_tensor, "shifts_pixels": self._shifts_pixels}

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Convolves [B, H, W, C] with the rounded kernel."""
        kernel = tf.convert_to_tensor(self.kernel)
        rounded = round_kernel(kernel, (0, 1, 2), self._per_tensor, self.read_fold_scale)
        shifted = inputs + (1.0 - ZERO_PIXEL * PIXEL_SCALE) if self._shifts_pixels else inputs
        is_fast = training and self._is_pointwise
        outputs = convolve_pointwise(shifted, rounded) if is_fast else self.convolution_op(shifted, rounded)
        return tf.nn.bias_add(outputs, self.bias) if self.use_bias else outputs


class RoundedDepthwiseConv2D(layers.DepthwiseConv2D):
    """A depthwise convolution with a rounded kernel."""

    def __init__(self, per_tensor: bool, **options: Any) -> None:
        """Creates the layer.

        Args:
          per_tensor: whether all channels share a scale.
          **options: arguments of `DepthwiseConv2D`.
        """
        super().__init__(**options)
        self._per_tensor = per_tensor
        self._is_same = choose_convolution(layers.DepthwiseConv2D, options) is SameDepthwiseConv2D
        # As in `RoundedConv2D`.
        self.read_fold_scale: ReadScale | None = None

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal layer."""
        return {**super().get_config(), "per_tensor": self._per_tensor}

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Convolves [B, H, W, C] with the rounded kernel [K, K, C, 1]."""
        kernel = tf.convert_to_tensor(self.depthwise_kernel)
        rounded = round_kernel(kernel, (0, 1), self._per_tensor, self.read_fold_scale)
        if training and self._is_same:
            outputs = convolve_depthwise(inputs, rounded)
        else:
            outputs = tf.nn.depthwise_conv2d(inputs, rounded, [1, *self.strides, 1], self.padding.upper())
        return tf.nn.bias_add(outputs, self.bias) if self.use_bias else outputs


def shift_pixels(images: tf.Tensor) -> tf.Tensor:
    """Converts pixels [..., 3] in [0, 255] to the float32 values that an int8 file gives its first convolution."""
    return (tf.cast(images, tf.float32) - ZERO_PIXEL) * PIXEL_SCALE


def round_pixels(pixels: tf.Tensor) -> tf.Tensor:
    """Rounds the output of `shift_pixels` to 8 bits.

    In the graph that the TFLite converter reads, this is the first op of the network.
    """
    return tf.quantization.fake_quant_with_min_max_args(pixels, *PIXEL_LIMITS)


@tf.custom_gradient
def round_activation(values: tf.Tensor, limits: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
    """Rounds values to 256 levels between `limits` [2], of which 0 is one, with the op that the converter reads.

    The gradient is written here, because the one of the op is not deterministic on GPUs.
    """
    low, high = limits[0], limits[1]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        # Before the limits are set, nothing is rounded.
        inside = ((values >= low) & (values <= high)) | (low == high)
        return tf.where(inside, upstream, 0.0), None

    return tf.quantization.fake_quant_with_min_max_vars(values, low, high), gradient


def round_kernel(kernel: tf.Tensor, axes: Sequence[int], per_tensor: bool, read_scale: ReadScale | None) -> tf.Tensor:
    """Rounds a kernel to 255 levels, symmetric around 0, with the gradient of the identity.

    Args:
      kernel: the kernel.
      axes: the axes over which a channel extends.
      per_tensor: whether all channels share the levels.
      read_scale: returns the factors of the channels after folding; None if nothing is folded into the kernel.
    """
    if not per_tensor:
        return _pass_gradient(partial(_round_per_channel, axes=axes), kernel)
    if read_scale is None:
        return _pass_gradient(_round_per_tensor, kernel)
    scale = tf.reshape(read_scale(), [size for axis, size in enumerate(kernel.shape) if axis not in axes])
    return tf.math.divide_no_nan(_pass_gradient(_round_per_tensor, kernel * scale), scale)


def _pass_gradient(round_values: Callable[[tf.Tensor], tf.Tensor], values: tf.Tensor) -> tf.Tensor:
    @tf.custom_gradient
    def apply(inner: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return round_values(inner), lambda upstream: upstream

    return apply(values)


def _round_per_channel(kernel: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    step = tf.reduce_max(tf.abs(kernel), axes, keepdims=True) / KERNEL_LEVELS
    return tf.round(tf.math.divide_no_nan(kernel, step)) * step


def _round_per_tensor(kernel: tf.Tensor) -> tf.Tensor:
    # The op that the converter reads: without it, the converter would round per channel.
    largest = tf.reduce_max(tf.abs(kernel))
    return tf.quantization.fake_quant_with_min_max_vars(kernel, -largest, largest, narrow_range=True)


def simulate_quantization(model: tf_keras.Model, config: QuantizationConfig, images: int) -> tf_keras.Model:
    """Returns a copy of a detector, with new weights, that rounds as its int8 TFLite file does.

    The variables have the names of those of `model`, so that `model.init_from` takes over a detector without rounding.

    Args:
      model: the detector.
      config: whether the output channels of a kernel share a scale.
      images: images of a group, whose activations are observed together.
    """

    def copy_layer(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=copy_layer)
        return _round_layer(layer, config.per_tensor, images)

    copy = tf_keras.models.clone_model(model, clone_function=copy_layer)
    for layer in copy.submodules:
        if isinstance(layer, RoundedConv2D | RoundedDepthwiseConv2D) and (norm := find_following_norm(layer)):
            layer.read_fold_scale = partial(_read_fold_scale, norm)
    return copy


def _round_layer(layer: layers.Layer, per_tensor: bool, images: int) -> layers.Layer:
    options = layer.get_config()
    if isinstance(layer, layers.DepthwiseConv2D):
        return RoundedDepthwiseConv2D(per_tensor, **options)
    if isinstance(layer, layers.Conv2D):
        is_first = isinstance(layer.inbound_nodes[0].inbound_layers, layers.InputLayer)
        return RoundedConv2D(per_tensor, shifts_pixels=is_first, **options)
    if isinstance(layer, layers.BatchNormalization):
        # With a ReLU after it, the two are one operation of the file.
        is_rounded = not isinstance(find_only_follower(layer), layers.ReLU)
        return RoundedBatchNormalization(images, **options) if is_rounded else type(layer).from_config(options)
    kind = ROUNDED_LAYERS.get(type(layer))
    return kind(images, **options) if kind else type(layer).from_config(options)


def _read_fold_scale(norm: layers.BatchNormalization) -> tf.Tensor:
    return tf.stop_gradient(norm.gamma * tf.math.rsqrt(norm.moving_variance + norm.epsilon))


def list_limits(model: tf_keras.Model) -> list[tf.Variable]:
    """Returns the limits of all rounded outputs, which the trainer averages over replicas as moving statistics."""
    return [layer.limits for layer in model.submodules if isinstance(layer, RoundedOutput)]
