"""Random flips and color changes of a training batch; the precomputed targets stay valid.

    images, targets -> flip (pixels and, by permutation, anchors) -> draw color maps, which the device applies

Draws depend only on (seed, epoch, record). Operations are batched where possible: small operations per image took a
fifth of the input pipeline's time (docs/performance.md).
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from ssd_dist.core.anchors import flip_permutation
from ssd_dist.core.config import AnchorConfig, AugmentationConfig
from ssd_dist.data.batch import PADDING, SparseTargets, TrainBatch

# Luma weights of ITU-R BT.601; a hue change rotates colors around the gray axis.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]], "f4")
_FROM_YIQ = np.linalg.inv(_TO_YIQ).astype(np.float32)
# Hue rotation by an angle, in RGB: _ROTATION_FIXED + cos(angle) * _ROTATION_COS + sin(angle) * _ROTATION_SIN.
_ROTATION_FIXED = _FROM_YIQ @ np.diag(np.array([1, 0, 0], "f4")) @ _TO_YIQ
_ROTATION_COS = _FROM_YIQ @ np.diag(np.array([0, 1, 1], "f4")) @ _TO_YIQ
_ROTATION_SIN = _FROM_YIQ @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]], "f4") @ _TO_YIQ
_GRAY = np.tile(_LUMA, (3, 1))
# A multiple of the values that one iteration of TensorFlow's widest vector loop computes: 4 x 16 with AVX-512.
_VECTOR = 64


class Augmenter:
    """Flips the images and targets of a batch and draws its color maps."""

    def __init__(self, augmentation: AugmentationConfig, anchors: AnchorConfig, input_size: int, seed: int) -> None:
        self._augmentation = augmentation
        self._seed = seed
        self._flips = [
            (vertical, tf.constant(flip_permutation(anchors, input_size, vertical), tf.int32))
            for vertical, enabled in ((False, augmentation.flip), (True, augmentation.flip_vertical))
            if enabled
        ]

    def __call__(
        self, images: Sequence[tf.Tensor], targets: SparseTargets, source_ids: tf.Tensor, epochs: tf.Tensor,
        positions: tf.Tensor,
    ) -> TrainBatch:  # fmt: skip
        """Augments B images, uint8 [S, S, 3] each, with their targets, ids, epochs and positions, each [B]."""
        for vertical, permutation in self._flips:
            name = "flip vertical" if vertical else "flip"
            flips = draw_uniform(self._seed, epochs, source_ids, [name])[:, 0] < 0.5
            images = flip_images(images, flips, vertical)
            targets = flip_targets(targets, flips, permutation, vertical)
        color_maps = make_color_maps(draw_colors(self._seed, epochs, source_ids), self._augmentation)
        return TrainBatch(tf.stack(images), color_maps, targets, positions)


def draw_uniform(seed: int, epochs: tf.Tensor, source_ids: tf.Tensor, purposes: Sequence[str]) -> tf.Tensor:
    """Draws float32 [B, len(purposes)] in [0, 1) by hashing the seed, epochs [B], record ids [B] and purpose.

    A hash serves a whole batch in one operation, and no record's draw depends on the other records of the batch.
    """
    keys = tf.strings.join([tf.strings.as_string(epochs), source_ids], "|")
    hashes = [tf.strings.to_hash_bucket_fast(tf.strings.join([f"{name}|{seed}|", keys]), 2**24) for name in purposes]
    # float32 represents 2**24 equidistant values in [0, 1) exactly.
    return tf.cast(tf.stack(hashes, -1), tf.float32) / 2**24


def record_seed(seed: int, epoch: tf.Tensor, source_id: tf.Tensor) -> tf.Tensor:
    """Returns the stateless seed [2] of one record in one epoch; its crop is sampled from it."""
    identity = tf.strings.to_hash_bucket_fast(source_id, 2**62)
    return tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), identity]), epoch)


def flip_images(images: Sequence[tf.Tensor], flips: tf.Tensor, vertical: bool = False) -> list[tf.Tensor]:
    """Mirrors each of B images [S, S, 3] for which `flips` [B] is true.

    Takes and returns lists, because a batch tensor would have to be copied.
    """

    def flip(image: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
        # tf.reverse moves whole pixels; a slice with a negative step is four times slower.
        return tf.cond(flipped, lambda: tf.reverse(image, [0 if vertical else 1]), lambda: image)

    return [flip(image, flipped) for image, flipped in zip(images, tf.unstack(flips), strict=True)]


def flip_targets(
    targets: SparseTargets, flips: tf.Tensor, permutation: tf.Tensor, vertical: bool = False
) -> SparseTargets:
    """Mirrors the padded targets of each of B images for which `flips` [B] is true.

    Each anchor is replaced by its mirror anchor, and tx (or ty, if vertical) changes its sign.
    """
    mirror = tf.constant([-1.0, 1.0, 1.0, 1.0] if vertical else [1.0, -1.0, 1.0, 1.0])

    def mirror_anchors(anchors: tf.Tensor) -> tf.Tensor:
        mirrored = tf.gather(permutation, tf.maximum(anchors, 0))
        return tf.where(flips[:, None] & (anchors != PADDING), mirrored, anchors)

    return targets._replace(
        anchors=mirror_anchors(targets.anchors),
        offsets=targets.offsets * tf.where(flips[:, None, None], mirror, tf.ones_like(mirror)),
        ignored=mirror_anchors(targets.ignored),
    )


def draw_colors(seed: int, epochs: tf.Tensor, source_ids: tf.Tensor) -> tf.Tensor:
    """Draws brightness, contrast, saturation and hue for a batch: float32 [B, 4] in [-1, 1)."""
    return 2.0 * draw_uniform(seed, epochs, source_ids, ["brightness", "contrast", "saturation", "hue"]) - 1.0


def make_color_maps(draws: tf.Tensor, config: AugmentationConfig) -> tf.Tensor:
    """Combines brightness, contrast, saturation and hue, draws [..., 4], into affine maps of RGB, float32 [..., 3, 4].

    The maps act on RGB in [-1, 1]. One small matrix per image replaces four passes over its pixels.
    """
    ranges = [2.0 * config.brightness, config.contrast, config.saturation, 2.0 * np.pi * config.hue]
    brightness, contrast, saturation, angle = tf.unstack((draws * ranges)[..., None, None], axis=-3)
    # Not a matrix product: its rounding could depend on the batch size, and the result of an image must not.
    cos, sin = _compute_vectorized(tf.cos, angle), _compute_vectorized(tf.sin, angle)
    hue = _ROTATION_FIXED + cos * _ROTATION_COS + sin * _ROTATION_SIN
    matrix = (1.0 + contrast) * ((1.0 + saturation) * hue - saturation * _GRAY)
    return tf.concat([matrix, tf.repeat(brightness, 3, axis=-2)], axis=-1)


def _compute_vectorized(function: Callable[[tf.Tensor], tf.Tensor], values: tf.Tensor) -> tf.Tensor:
    """Computes a function of each value, with the same bits for any number of values.

    TensorFlow computes full vectors of values with other instructions than the rest, whose last bit may differ.
    """
    count = tf.size(values)
    padded = tf.pad(tf.reshape(values, [-1]), [[0, -count % _VECTOR]])
    return tf.reshape(function(padded)[:count], tf.shape(values))


def apply_color_map(images: tf.Tensor, color_maps: tf.Tensor) -> tf.Tensor:
    """Applies color_maps [B, 3, 4] to images float32 [B, H, W, 3] in [-1, 1] and clips; runs on the device."""
    flat = tf.reshape(images, [tf.shape(images)[0], -1, 3])
    mapped = tf.matmul(flat, color_maps[:, :, :3], transpose_b=True) + color_maps[:, None, :, 3]
    return tf.clip_by_value(tf.reshape(mapped, tf.shape(images)), -1.0, 1.0)
