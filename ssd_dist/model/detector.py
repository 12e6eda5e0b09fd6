"""Builds the detector: backbone, extra feature levels and prediction heads (Liu et al. 2016, figure 2).

image [B, S, S, 3] in [-1, 1]
  -> backbone: 38, 19, 10 cells per side -> extra levels: 5, 3, 1
  -> one class head and one box head on each of the six levels
  -> logits [B, A, C + 1], offsets [B, A, 4]; anchors ordered by level, row, column, shape as in core.anchors
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras import layers

from ssd_dist.core.anchors import anchors_per_cell, feature_sizes, last_level_is_unpadded
from ssd_dist.core.config import AnchorConfig, BackboneConfig, ModelConfig, QuantizationConfig
from ssd_dist.model.backbone import build_backbone
from ssd_dist.model.batch_norm import GroupedBatchNormalization
from ssd_dist.model.convolutions import choose_convolution
from ssd_dist.model.quantization import simulate_quantization

NO_QUANTIZATION = QuantizationConfig()
# Epsilon of every batch normalization, Keras's MobileNetV2 included.
BATCH_NORM_EPSILON = 1e-3


def build_detector(
    model: ModelConfig,
    backbone: BackboneConfig,
    anchors: AnchorConfig,
    class_count: int,
    quantization: QuantizationConfig = NO_QUANTIZATION,
) -> tf_keras.Model:
    """Builds the network; its outputs are float32 under any Keras policy.

    Args:
      model: input size, width, head style, momentum and group of the batch norms.
      backbone: the weights of the backbone and whether it is trained.
      anchors: the anchors, which set the number of predictions per cell.
      class_count: number of classes C, background not included.
      quantization: whether the network rounds as its int8 file does; then its weights are new.

    Returns:
      A model from images [B, S, S, 3] to `logits` [B, A, C + 1] and `offsets` [B, A, 4].

    Raises:
      CheckpointError: if the backbone's weights cannot be loaded.
    """
    builder = _LayerBuilder(model)
    size = model.input_size
    image = tf_keras.Input((size, size, 3), name="image")
    if quantization.aware:
        # Rounding must not change the statistics that the levels of folded kernels depend on. With one scale per
        # layer, a channel that rounds to zero would lose its variance and grow until no level is left for the others.
        backbone = backbone.model_copy(update={"freeze_batch_norm": True})
    taps = build_backbone(backbone, model)(image)
    features = builder.add_extra_levels(taps, feature_sizes(size))
    shapes = anchors_per_cell(anchors)
    logits = [
        builder.predict(feature, count, class_count + 1, f"class_{level}")
        for level, (feature, count) in enumerate(zip(features, shapes, strict=True))
    ]
    offsets = [
        builder.predict(feature, count, 4, f"box_{level}")
        for level, (feature, count) in enumerate(zip(features, shapes, strict=True))
    ]
    outputs = {
        "logits": layers.Concatenate(axis=1, dtype="float32", name="logits")(logits),
        "offsets": layers.Concatenate(axis=1, dtype="float32", name="offsets")(offsets),
    }
    detector = tf_keras.Model(image, outputs, name="detector")
    return simulate_quantization(detector, quantization, model.batch_norm_group) if quantization.aware else detector


def normalize_image(image: tf.Tensor) -> tf.Tensor:
    """Converts pixels [..., 3] in [0, 255] to float32 in [-1, 1], the range MobileNetV2 was trained on."""
    return tf.cast(image, tf.float32) * (1.0 / 127.5) - 1.0


class _LayerBuilder:
    """Adds the layers of the extra levels and heads, in the style of `model.head` (ssd or ssdlite)."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def add_extra_levels(self, taps: Sequence[tf.Tensor], sizes: Sequence[int]) -> list[tf.Tensor]:
        """Adds three stride-2 levels; the last one has no padding, so that 3 cells (4 at 512 pixels) become 1."""
        features = list(taps)
        extra_channels = self._config.extra_channels
        for index, channels in enumerate(extra_channels):
            below = sizes[index + 2]
            last = index == len(extra_channels) - 1
            padding = "valid" if last and last_level_is_unpadded(below) else "same"
            # With stride 2, a kernel of 3 on an even number of cells would skip the last row and column.
            kernel = 4 if padding == "valid" and below % 2 == 0 else 3
            # On one cell, both strides give the same cell. oneDNN's kernel gradient in bfloat16 is wrong for stride 2.
            strides = 2 if below > 1 else 1
            x = self._convolve(features[-1], channels // 2, 1, f"extra_{index}_squeeze")
            if self._config.head == "ssdlite":
                x = self._convolve_depthwise(x, f"extra_{index}_depthwise", kernel, strides=strides, padding=padding)
                x = self._convolve(x, channels, 1, f"extra_{index}")
            else:
                x = self._convolve(x, channels, kernel, f"extra_{index}", strides=strides, padding=padding)
            features.append(x)
        return features

    def predict(self, feature: tf.Tensor, shapes: int, depth: int, name: str) -> tf.Tensor:
        """Adds a head that predicts [B, cells * shapes, depth] of one level, in float32."""
        kernel = 3
        if self._config.head == "ssdlite":
            feature = self._convolve_depthwise(feature, f"{name}_depthwise")
            kernel = 1
        x = _create_convolution(
            layers.Conv2D,
            filters=shapes * depth,
            kernel_size=kernel,
            kernel_initializer=tf_keras.initializers.TruncatedNormal(stddev=0.03),
            name=name,
        )(feature)
        return layers.Reshape((-1, depth), dtype="float32", name=f"{name}_reshape")(x)

    def _convolve(self, x: tf.Tensor, channels: int, kernel: int, name: str, **options: Any) -> tf.Tensor:
        kind = {"filters": channels, "kernel_size": kernel, "kernel_initializer": "he_normal"}
        x = _create_convolution(layers.Conv2D, use_bias=False, name=name, **kind | options)(x)
        return self._normalize(x, name)

    def _convolve_depthwise(self, x: tf.Tensor, name: str, kernel: int = 3, **options: Any) -> tf.Tensor:
        kind = {"kernel_size": kernel, "depthwise_initializer": "he_normal"}
        x = _create_convolution(layers.DepthwiseConv2D, use_bias=False, name=name, **kind | options)(x)
        return self._normalize(x, name)

    def _normalize(self, x: tf.Tensor, name: str) -> tf.Tensor:
        x = GroupedBatchNormalization(
            self._config.batch_norm_group,
            momentum=self._config.batch_norm_momentum,
            epsilon=BATCH_NORM_EPSILON,
            name=f"{name}_bn",
        )(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x)


def _create_convolution(kind: type[layers.Layer], **options: Any) -> layers.Layer:
    """Creates a convolution, with padding `same` by default, of the class with the fastest gradients."""
    options = {"padding": "same"} | options
    return choose_convolution(kind, options)(**options)
