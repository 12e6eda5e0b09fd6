"""What changes a training batch on the fly and keeps its targets valid: flips and colours.

    pictures, targets -> flip (pixels and, by permutation, anchors) -> draw the colour maps, applied on the device

Draws depend on (seed, epoch, record) alone. What can be done for a whole batch is: small operations for each picture
took a fifth of the input's time (docs/performance.md).
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from ssd_dist.core.anchors import flip_permutation
from ssd_dist.core.config import AugmentationConfig, Config
from ssd_dist.data.batch import PADDING, SparseTargets, TrainBatch

# Luma weights of ITU-R BT.601; hue turns colours around the grey axis.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]], "f4")
_FROM_YIQ = np.linalg.inv(_TO_YIQ).astype(np.float32)
# The turn by an angle, in RGB, is the first plus its cosine times the second plus its sine times the third.
_TURN_NONE = _FROM_YIQ @ np.diag(np.array([1, 0, 0], "f4")) @ _TO_YIQ
_TURN_COS = _FROM_YIQ @ np.diag(np.array([0, 1, 1], "f4")) @ _TO_YIQ
_TURN_SIN = _FROM_YIQ @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]], "f4") @ _TO_YIQ
_GRAY = np.tile(_LUMA, (3, 1))


class Augmenter:
    """Flips pictures and targets and draws colour maps, all of a batch at once."""

    def __init__(self, config: Config) -> None:
        augmentation = config.data.augmentation
        self._augmentation = augmentation
        self._seed = config.train.seed
        self._flips = [
            (vertical, tf.constant(flip_permutation(config.anchors, config.model.input_size, vertical), tf.int32))
            for vertical, asked in ((False, augmentation.flip), (True, augmentation.flip_vertical))
            if asked
        ]

    def __call__(
        self, pictures: Sequence[tf.Tensor], targets: SparseTargets, source_ids: tf.Tensor, epochs: tf.Tensor,
        positions: tf.Tensor,
    ) -> TrainBatch:  # fmt: skip
        """A batch of B pictures uint8 [S, S, 3] and what belongs to each: ids, epochs and positions [B]."""
        for vertical, permutation in self._flips:
            name = "flip vertical" if vertical else "flip"
            flips = draw_uniform(self._seed, epochs, source_ids, [name])[:, 0] < 0.5
            pictures = flip_images(pictures, flips, vertical)
            targets = flip_targets(targets, flips, permutation, vertical)
        color_maps = make_color_maps(draw_colors(self._seed, epochs, source_ids), self._augmentation)
        return TrainBatch(tf.stack(pictures), color_maps, targets, positions)


def draw_uniform(seed: int, epochs: tf.Tensor, source_ids: tf.Tensor, purposes: Sequence[str]) -> tf.Tensor:
    """float32 [B, len(purposes)] in [0, 1) for a batch of records: hashes of seed, epochs [B], ids [B] and purpose.

    A hash, not a generator: one operation draws for the whole batch, and no record's draw depends on its neighbours.
    """
    keys = tf.strings.join([tf.strings.as_string(epochs), source_ids], "|")
    hashes = [tf.strings.to_hash_bucket_fast(tf.strings.join([f"{name}|{seed}|", keys]), 2**24) for name in purposes]
    # As many buckets as float32 tells apart.
    return tf.cast(tf.stack(hashes, -1), tf.float32) / 2**24


def record_seed(seed: int, epoch: tf.Tensor, source_id: tf.Tensor) -> tf.Tensor:
    """A stateless seed [2] for what is drawn by the dozen of one record in one epoch: its window."""
    identity = tf.strings.to_hash_bucket_fast(source_id, 2**62)
    return tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), identity]), epoch)


def flip_images(pictures: Sequence[tf.Tensor], flips: tf.Tensor, vertical: bool = False) -> list[tf.Tensor]:
    """Those of B pictures [S, S, 3] mirrored whose flips [B] are true; a list, for a batch would have to be copied."""

    def flip(picture: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
        # tf.reverse moves whole pixels; a slice with a negative step is four times slower.
        return tf.cond(flipped, lambda: tf.reverse(picture, [0 if vertical else 1]), lambda: picture)

    return [flip(picture, flipped) for picture, flipped in zip(pictures, tf.unstack(flips), strict=True)]


def flip_targets(
    targets: SparseTargets, flips: tf.Tensor, permutation: tf.Tensor, vertical: bool = False
) -> SparseTargets:
    """Padded targets of B pictures, of which those with true flips [B] are mirrored.

    Each anchor becomes its mirror image and tx, or ty, changes its sign.
    """
    mirror = tf.constant([-1.0, 1.0, 1.0, 1.0] if vertical else [1.0, -1.0, 1.0, 1.0])

    def move(anchors: tf.Tensor) -> tf.Tensor:
        moved = tf.gather(permutation, tf.maximum(anchors, 0))
        return tf.where(flips[:, None] & (anchors != PADDING), moved, anchors)

    return targets._replace(
        anchors=move(targets.anchors),
        offsets=targets.offsets * tf.where(flips[:, None, None], mirror, tf.ones_like(mirror)),
        ignored=move(targets.ignored),
    )


def draw_colors(seed: int, epochs: tf.Tensor, source_ids: tf.Tensor) -> tf.Tensor:
    """What is drawn for the colours of a batch: float32 [B, 4] in [-1, 1)."""
    return 2.0 * draw_uniform(seed, epochs, source_ids, ["brightness", "contrast", "saturation", "hue"]) - 1.0


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
