"""The assembled detector: backbone, extra feature levels, heads (Liu et al. 2016, figure 2).

image [B, S, S, 3] in [-1, 1]
  -> backbone: 38, 19, 10 -> extra levels: 5, 3, 1
  -> a class head and a box head on each of the six
  -> logits [B, A, C + 1], offsets [B, A, 4]; anchors ordered level, row, column, shape as core.anchors has them
"""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras
from tf_keras import layers

from ssd_dist.core.anchors import anchors_per_cell, feature_sizes, last_level_is_unpadded
from ssd_dist.core.config import Config, ModelConfig
from ssd_dist.model.backbone import build_backbone
from ssd_dist.model.batch_norm import ReplicaBatchNormalization, SyncBatchNormalization
from ssd_dist.model.convolutions import choose_convolution

EXTRA_CHANNELS = (512, 256, 256)


def build_detector(config: Config, class_count: int) -> tf_keras.Model:
    """The whole network for `class_count` classes besides background; outputs are float32 under any policy."""
    builder = _Builder(config.model, config.train.sync_batch_norm)
    backbone = build_backbone(config.backbone, config.model, config.train.sync_batch_norm)
    size = config.model.input_size
    image = tf_keras.Input((size, size, 3), name="image")
    features = builder.add_extra_levels(backbone(image), feature_sizes(size))
    shapes = anchors_per_cell(config.anchors)
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
    return tf_keras.Model(image, outputs, name="detector")


def normalize_image(image: tf.Tensor) -> tf.Tensor:
    """uint8 or float pixels [..., 3] in [0, 255] to float32 in [-1, 1], the range MobileNetV2 was trained on."""
    return tf.cast(image, tf.float32) * (1.0 / 127.5) - 1.0


class _Builder:
    """The repeated pieces, in the style that `model.head` names."""

    def __init__(self, config: ModelConfig, sync_batch_norm: bool) -> None:
        self._config = config
        self._sync_batch_norm = sync_batch_norm

    def add_extra_levels(self, taps: Sequence[tf.Tensor], sizes: Sequence[int]) -> list[tf.Tensor]:
        """Three stride-2 levels on top of the taps; the last without padding, so that 3 or, at 512, 4 become 1."""
        features = list(taps)
        for index, channels in enumerate(EXTRA_CHANNELS):
            below = sizes[index + 2]
            last = index == len(EXTRA_CHANNELS) - 1
            padding = "valid" if last and last_level_is_unpadded(below) else "same"
            # A kernel of 3 on an even number of cells would not see the last row and column.
            kernel = 4 if padding == "valid" and below % 2 == 0 else 3
            x = self._convolve(features[-1], channels // 2, 1, f"extra_{index}_squeeze")
            if self._config.head == "ssdlite":
                x = self._convolve_depthwise(x, f"extra_{index}_depthwise", kernel, strides=2, padding=padding)
                x = self._convolve(x, channels, 1, f"extra_{index}")
            else:
                x = self._convolve(x, channels, kernel, f"extra_{index}", strides=2, padding=padding)
            features.append(x)
        return features

    def predict(self, feature: tf.Tensor, shapes: int, depth: int, name: str) -> tf.Tensor:
        """Predictions [B, cells * shapes, depth] of one level, in float32."""
        kernel = 3
        if self._config.head == "ssdlite":
            feature = self._convolve_depthwise(feature, f"{name}_depthwise")
            kernel = 1
        x = _make(
            layers.Conv2D,
            filters=shapes * depth,
            kernel_size=kernel,
            kernel_initializer=tf_keras.initializers.TruncatedNormal(stddev=0.03),
            name=name,
        )(feature)
        return layers.Reshape((-1, depth), dtype="float32", name=f"{name}_reshape")(x)

    def _convolve(self, x: tf.Tensor, channels: int, kernel: int, name: str, **options) -> tf.Tensor:
        kind = {"filters": channels, "kernel_size": kernel, "kernel_initializer": "he_normal"}
        x = _make(layers.Conv2D, use_bias=False, name=name, **kind | options)(x)
        return self._normalize(x, name)

    def _convolve_depthwise(self, x: tf.Tensor, name: str, kernel: int = 3, **options) -> tf.Tensor:
        kind = {"kernel_size": kernel, "depthwise_initializer": "he_normal"}
        x = _make(layers.DepthwiseConv2D, use_bias=False, name=name, **kind | options)(x)
        return self._normalize(x, name)

    def _normalize(self, x: tf.Tensor, name: str) -> tf.Tensor:
        kind = SyncBatchNormalization if self._sync_batch_norm else ReplicaBatchNormalization
        x = kind(momentum=self._config.batch_norm_momentum, epsilon=1e-3, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x)


def _make(kind: type[layers.Layer], **options) -> layers.Layer:
    """A convolution, padded if not said otherwise, of the class that is cheapest here."""
    options = {"padding": "same"} | options
    return choose_convolution(kind, options)(**options)
