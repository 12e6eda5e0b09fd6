"""Computes targets during training for `data.targets: online`, with a new crop or expansion per image and epoch.

    plain record -> sample a crop (Liu et al. 2016, sections 2.2 and 3.6) -> pixels and boxes of the crop -> match

Precomputed augmented copies cost less per step. Online targets allow trying anchors, matching settings or more
augmentation without running prepare again. Crops follow the rules of `pipelines/crops.py`, but are sampled inside the
graph from stateless seeds.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from ssd_dist.core.config import AnchorConfig, AugmentationConfig, MatchingConfig
from ssd_dist.core.crop_sampling import DRAWS, EXPAND_PROBABILITY, FILL, LARGEST_ASPECT, OVERLAPS, TRIALS
from ssd_dist.core.records import BOX_KEYS
from ssd_dist.data.augmentation import record_seed
from ssd_dist.data.batch import SparseTargets
from ssd_dist.data.decoding import IMAGE_FEATURES, decode_jpeg
from ssd_dist.data.graph_matching import GraphMatcher

_INTS = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
_FLOATS = tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True)
OBJECT_FEATURES: dict[str, Any] = {
    **dict.fromkeys(BOX_KEYS, _FLOATS),
    "image/object/class/label": _INTS,
    "image/object/is_crowd": _INTS,
}


class GraphObjects(NamedTuple):
    """Boxes float32 [N, 4], labels int64 [N] and crowd flags bool [N] of one image."""

    boxes: tf.Tensor
    labels: tf.Tensor
    is_crowd: tf.Tensor


class OnlineTargets:
    """Augments and matches single images inside the input pipeline."""

    def __init__(
        self,
        augmentation: AugmentationConfig,
        anchors: AnchorConfig,
        matching: MatchingConfig,
        input_size: int,
        seed: int,
    ) -> None:
        self._matcher = GraphMatcher(anchors, input_size, matching)
        self._augmentation = augmentation
        self._size = input_size
        self._seed = seed

    def make(self, record: tf.Tensor, epoch: tf.Tensor) -> tuple[tf.Tensor, SparseTargets, tf.Tensor]:
        """Returns pixels uint8 [S, S, 3], targets and image id of a crop sampled from the record of a whole image."""
        features = tf.io.parse_single_example(record, IMAGE_FEATURES | OBJECT_FEATURES)
        image = decode_jpeg(features["image/encoded"], self._size)
        objects = parse_objects(features)
        if self._augmentation.crop:
            seed = record_seed(self._seed, epoch, features["image/source_id"])
            crop = sample_crop(objects.boxes, seed, self._augmentation)
            image, objects = render_crop(image, crop), crop_objects(objects, crop)
        targets = self._matcher.match(objects.boxes, objects.labels, objects.is_crowd)
        return image, targets, features["image/source_id"]


def parse_objects(features: dict[str, tf.Tensor]) -> GraphObjects:
    """Returns the objects of a record parsed with `OBJECT_FEATURES`."""
    return GraphObjects(
        boxes=tf.stack([features[key] for key in BOX_KEYS], axis=-1),
        labels=features["image/object/class/label"],
        is_crowd=features["image/object/is_crowd"] != 0,
    )


def sample_crop(boxes: tf.Tensor, seed: tf.Tensor, config: AugmentationConfig) -> tf.Tensor:
    """Samples a crop [4] in units of the image: expands with probability 0.5, then crops around boxes [N, 4]."""
    canvas = _expand(tf.random.fold_in(seed, 11), config.largest_expansion)
    crops, valid = _draw_crops(canvas, tf.random.fold_in(seed, 12), config.smallest_crop)
    levels = tf.random.stateless_uniform([DRAWS], tf.random.fold_in(seed, 13), 0, len(OVERLAPS), tf.int32)
    # -1 means "use the whole canvas".
    overlaps = tf.gather(tf.constant([-1.0 if value is None else value for value in OVERLAPS]), levels)[:, None]
    suits = valid & (_highest_overlap(crops, boxes) >= tf.maximum(overlaps, 0.0))
    # Take the first draw that uses the whole canvas or has a suitable crop, and the first suitable crop of that draw.
    whole_canvas = overlaps[:, 0] < 0
    settled = whole_canvas | tf.reduce_any(suits, axis=1)
    draw = tf.argmax(tf.cast(settled, tf.int32))
    crop = crops[draw, tf.argmax(tf.cast(suits[draw], tf.int32))]
    return tf.where(tf.reduce_any(settled) & ~whole_canvas[draw], crop, canvas)


def render_crop(image: tf.Tensor, crop: tf.Tensor) -> tf.Tensor:
    """Resizes a crop of an image uint8 [S, S, 3] to uint8 [S, S, 3], bilinear; fills the area outside the image.

    Downscaling is anti-aliased, as it is for evaluation images.
    """
    size = image.shape[0]
    low, length = crop[:2], crop[2:] - crop[:2]
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=[size, size],
        scale=1.0 / length,
        translation=-low / length * size,
        kernel_type="triangle",
        antialias=True,
    )[0]
    # The centers of the crop's pixels, in units of the image.
    centers = low + (tf.range(size, dtype=tf.float32)[:, None] + 0.5) / size * length
    rows, columns = tf.unstack((centers > 0) & (centers < 1), axis=1)
    shown = rows[:, None] & columns
    pixels = tf.where(shown[..., None], pixels, tf.constant(FILL, tf.float32))
    return tf.cast(tf.round(pixels), tf.uint8)


def crop_objects(objects: GraphObjects, crop: tf.Tensor) -> GraphObjects:
    """Returns the objects whose center lies in the crop, clipped to it, and the crowds that overlap it."""
    corner, length = tf.tile(crop[:2], [2]), tf.tile(crop[2:] - crop[:2], [2])
    shifted = (objects.boxes - corner) / length
    clipped = tf.clip_by_value(shifted, 0.0, 1.0)
    visible = tf.reduce_all(clipped[:, 2:] > clipped[:, :2], axis=1)
    centers = (shifted[:, :2] + shifted[:, 2:]) / 2
    inside = tf.reduce_all((centers > 0) & (centers < 1), axis=1)
    keep = visible & (inside | objects.is_crowd)
    return GraphObjects(*(tf.boolean_mask(part, keep) for part in (clipped, objects.labels, objects.is_crowd)))


def _expand(seed: tf.Tensor, largest: float) -> tf.Tensor:
    coin, ratio, y, x = tf.unstack(tf.random.stateless_uniform([4], seed))
    ratio = tf.where(coin < EXPAND_PROBABILITY, 1.0 + ratio * (largest - 1.0), 1.0)
    corner = -tf.stack([y, x]) * (ratio - 1.0)
    return tf.concat([corner, corner + ratio], 0)


def _draw_crops(canvas: tf.Tensor, seed: tf.Tensor, smallest: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Samples crops [DRAWS, TRIALS, 4] of the canvas and whether each lies within it and overlaps the image."""
    scale, turn, y, x = tf.unstack(tf.random.stateless_uniform([4, DRAWS, TRIALS], seed))
    scale = smallest + scale * (1.0 - smallest)
    aspect = 1.0 + tf.abs(2.0 * turn - 1.0) * (LARGEST_ASPECT - 1.0)
    aspect = tf.sqrt(tf.where(turn < 0.5, 1.0 / aspect, aspect))
    sides = tf.stack([scale / aspect, scale * aspect], -1)
    length = canvas[2:] - canvas[:2]
    low = canvas[:2] + tf.stack([y, x], -1) * (1.0 - sides) * length
    high = low + sides * length
    valid = tf.reduce_all((sides <= 1.0) & (high > 0.0) & (low < 1.0), axis=-1)
    return tf.concat([low, high], -1), valid


def _highest_overlap(crops: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Returns the highest IoU [D, T] of each crop with any box; -1 if it contains no box center, 1 without boxes."""
    low, high = crops[..., None, :2], crops[..., None, 2:]
    intersection = tf.reduce_prod(
        tf.maximum(tf.minimum(high, boxes[:, 2:]) - tf.maximum(low, boxes[:, :2]), 0.0), axis=-1
    )
    areas = tf.reduce_prod(high - low, axis=-1) + tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    held = tf.reduce_any(tf.reduce_all((low < centers) & (centers < high), axis=-1), axis=-1)
    best = tf.where(held, tf.reduce_max(intersection / (areas - intersection), axis=-1), -1.0)
    return tf.where(tf.shape(boxes)[0] > 0, best, tf.ones_like(best))
