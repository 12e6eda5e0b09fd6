"""One serialized record to what a training step takes: uint8 pixels, sparse targets, a colour map.

    record -> parse -> decode JPEG -> flip (pixels and, by permutation, anchors) -> draw the colour map

Draws depend on (seed, epoch, record) alone. The pixels stay uint8 and the targets sparse until they are on the device.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from ssd_dist.core.config import AugmentationConfig

LIST_OF_INTS = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
LIST_OF_FLOATS = tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True)

IMAGE_FEATURES: dict[str, Any] = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/source_id": tf.io.FixedLenFeature([], tf.string),
}
TARGET_FEATURES: dict[str, Any] = {
    "target/positive/anchor": LIST_OF_INTS,
    "target/positive/label": LIST_OF_INTS,
    "target/positive/box": LIST_OF_FLOATS,
    "target/ignored/anchor": LIST_OF_INTS,
}
# Luma weights of ITU-R BT.601; hue turns colours around the grey axis.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]], "f4")
_FROM_YIQ = np.linalg.inv(_TO_YIQ).astype(np.float32)


def decode_image(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 [size, size, 3] of a record's JPEG, decoded the exact way (not the fast one) so that machines agree."""
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, [size, size, 3])


def record_seed(seed: int, epoch: tf.Tensor, source_id: tf.Tensor) -> tf.Tensor:
    """A stateless seed [2] for all draws of one record in one epoch."""
    identity = tf.strings.to_hash_bucket_fast(source_id, 2**62)
    return tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), identity]), epoch)


def flip_targets(
    anchors: tf.Tensor, offsets: tf.Tensor, ignored: tf.Tensor, permutation: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Targets of the mirrored image: each anchor is its mirror image and tx changes its sign."""
    mirror = tf.constant([1.0, -1.0, 1.0, 1.0])
    return tf.gather(permutation, anchors), offsets * mirror, tf.gather(permutation, ignored)


def draw_color_map(seed: tf.Tensor, config: AugmentationConfig) -> tf.Tensor:
    """float32 [3, 4]: brightness, contrast, saturation and hue as one affine map of RGB in [-1, 1].

    One small matrix a picture replaces four passes over its pixels; it is applied on the device.
    """
    draws = tf.random.stateless_uniform([4], tf.cast(seed, tf.int64), minval=-1.0, maxval=1.0)
    brightness = 2.0 * config.brightness * draws[0]
    contrast = 1.0 + config.contrast * draws[1]
    saturation = 1.0 + config.saturation * draws[2]
    angle = 2.0 * np.pi * config.hue * draws[3]
    cos, sin = tf.cos(angle), tf.sin(angle)
    turn = tf.stack([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    hue = tf.constant(_FROM_YIQ) @ turn @ tf.constant(_TO_YIQ)
    gray = tf.tile(tf.constant(_LUMA)[None], [3, 1])
    matrix = contrast * (saturation * hue + (1.0 - saturation) * gray)
    return tf.concat([matrix, tf.fill([3, 1], brightness)], axis=1)


def apply_color_map(images: tf.Tensor, color_maps: tf.Tensor) -> tf.Tensor:
    """Images float32 [B, H, W, 3] in [-1, 1] under color_maps [B, 3, 4], clipped to the range; on the device."""
    flat = tf.reshape(images, [tf.shape(images)[0], -1, 3])
    mapped = tf.matmul(flat, color_maps[:, :, :3], transpose_b=True) + color_maps[:, None, :, 3]
    return tf.clip_by_value(tf.reshape(mapped, tf.shape(images)), -1.0, 1.0)
