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
# The turn by an angle, in RGB, is the first plus its cosine times the second plus its sine times the third.
_TURN_NONE = _FROM_YIQ @ np.diag(np.array([1, 0, 0], "f4")) @ _TO_YIQ
_TURN_COS = _FROM_YIQ @ np.diag(np.array([0, 1, 1], "f4")) @ _TO_YIQ
_TURN_SIN = _FROM_YIQ @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]], "f4") @ _TO_YIQ
_GRAY = np.tile(_LUMA, (3, 1))


def decode_image(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 [size, size, 3] of a record's JPEG, decoded the exact way (not the fast one) so that machines agree."""
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, [size, size, 3])


def record_seed(seed: int, epoch: tf.Tensor, source_id: tf.Tensor) -> tf.Tensor:
    """A stateless seed [2] for all draws of one record in one epoch."""
    identity = tf.strings.to_hash_bucket_fast(source_id, 2**62)
    return tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), identity]), epoch)


def flip_targets(
    anchors: tf.Tensor, offsets: tf.Tensor, ignored: tf.Tensor, permutation: tf.Tensor, vertical: bool = False
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Targets of the mirrored image: each anchor is its mirror image and tx, or ty, changes its sign."""
    mirror = tf.constant([-1.0, 1.0, 1.0, 1.0] if vertical else [1.0, -1.0, 1.0, 1.0])
    return tf.gather(permutation, anchors), offsets * mirror, tf.gather(permutation, ignored)


def draw_colors(seed: tf.Tensor) -> tf.Tensor:
    """What is drawn for one picture's colours: float32 [4] in [-1, 1)."""
    return tf.random.stateless_uniform([4], tf.cast(seed, tf.int64), minval=-1.0, maxval=1.0)


def make_color_maps(draws: tf.Tensor, config: AugmentationConfig) -> tf.Tensor:
    """float32 [..., 3, 4] of draws [..., 4]: brightness, contrast, saturation, hue as one affine map of RGB in [-1, 1].

    One small matrix a picture replaces four passes over its pixels; it is applied on the device.
    """
    ranges = [2.0 * config.brightness, config.contrast, config.saturation, 2.0 * np.pi * config.hue]
    brightness, contrast, saturation, angle = tf.unstack((draws * ranges)[..., None, None], axis=-3)
    # No matrix product: what becomes of one picture must not depend on how many are in the batch.
    hue = _TURN_NONE + tf.cos(angle) * _TURN_COS + tf.sin(angle) * _TURN_SIN
    matrix = (1.0 + contrast) * ((1.0 + saturation) * hue - saturation * _GRAY)
    return tf.concat([matrix, tf.repeat(brightness, 3, axis=-2)], axis=-1)


def apply_color_map(images: tf.Tensor, color_maps: tf.Tensor) -> tf.Tensor:
    """Images float32 [B, H, W, 3] in [-1, 1] under color_maps [B, 3, 4], clipped to the range; on the device."""
    flat = tf.reshape(images, [tf.shape(images)[0], -1, 3])
    mapped = tf.matmul(flat, color_maps[:, :, :3], transpose_b=True) + color_maps[:, None, :, 3]
    return tf.clip_by_value(tf.reshape(mapped, tf.shape(images)), -1.0, 1.0)
