"""Computes detections from the network's outputs: softmax, box decoding, non-maximum suppression (NMS) per class.

logits [B, A, C + 1], offsets [B, A, 4]
  -> candidates: the (anchor, class) pairs with the highest odds
  -> boxes -> NMS within each class -> the best `max_detections`

The result of NMS depends on the order of the scores, and TensorFlow, TFLite and ONNX Runtime each break ties
differently. So candidates are sorted by their odds, which differ even where float32 probabilities round to the same
value, and NMS receives ranks, which are all distinct.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import AnchorConfig, EvalConfig

# Number of (anchor, class) pairs that enter NMS; the authors' code keeps 400 per class (Liu et al. 2016, section 3).
CANDIDATES = 1000
# Number of scales (powers of two) per axis that keep the classes apart in NMS.
SCALES = 64


class DetectionBatch(NamedTuple):
    """Detections on B images, sorted by descending score and padded to D = `max_detections`.

    Attributes:
      boxes: float32 [B, D, 4], clipped to the image.
      labels: int32 [B, D], 1-based.
      scores: float32 [B, D], 0 for padding.
    """

    boxes: tf.Tensor
    labels: tf.Tensor
    scores: tf.Tensor


def detect(
    outputs: dict[str, tf.Tensor], anchors: tf.Tensor, anchor_config: AnchorConfig, eval_config: EvalConfig
) -> DetectionBatch:
    """Computes detections from the network's outputs, in float32.

    Args:
      outputs: `logits` [B, A, C + 1] and `offsets` [B, A, 4].
      anchors: float32 [A, 4].
      anchor_config: the variances of the box encoding.
      eval_config: score threshold, IoU threshold of NMS and maximum number of detections.
    """
    odds = compute_odds(tf.cast(outputs["logits"], tf.float32))[..., 1:]
    class_count = odds.shape[-1]
    flat = tf.reshape(odds, [tf.shape(odds)[0], -1])
    top, index = tf.math.top_k(flat, k=min(CANDIDATES, flat.shape[-1] or CANDIDATES))
    anchor, label = index // class_count, index % class_count
    offsets = tf.gather(tf.cast(outputs["offsets"], tf.float32), anchor, batch_dims=1)
    boxes = decode_offsets(offsets, tf.gather(anchors, anchor), anchor_config)
    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    # odds / (1 + odds) would be NaN for infinite odds.
    return non_max_suppression(boxes, label + 1, 1.0 / (1.0 + 1.0 / top), eval_config)


def compute_odds(logits: tf.Tensor) -> tf.Tensor:
    """Computes the odds p / (1 - p) of each class [..., K], where p is the softmax of logits [..., K].

    Odds have the same order as p, and distinguish values of p that round to 1: float32 has no number between
    0.99999994 and 1.
    """
    weight = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    # The largest weight is exactly 1. Small weights are summed separately: added to 1, they would be rounded away.
    first = tf.cast(tf.equal(weight, 1.0), tf.float32)
    small = weight - first
    others = (tf.reduce_sum(first, -1, keepdims=True) - first) + (tf.reduce_sum(small, -1, keepdims=True) - small)
    return weight / others


def non_max_suppression(boxes: tf.Tensor, labels: tf.Tensor, scores: tf.Tensor, config: EvalConfig) -> DetectionBatch:
    """Applies greedy non-maximum suppression within each class; equal scores keep their order.

    A box is removed if its IoU with a kept box of its class is above `config.nms_iou`; a box whose IoU equals the
    threshold is kept.

    Args:
      boxes: float32 [B, K, 4] in 0..1, sorted by descending score. Boxes without area are dropped.
      labels: int32 [B, K], below 4,096 (64 scales on each of two axes).
      scores: float32 [B, K].
      config: score threshold, IoU threshold and maximum number of detections.
    """
    count = tf.shape(scores)[1]
    # A box clipped to no area overlaps no other box, so NMS would never remove it.
    eligible = (scores > config.score_threshold) & tf.reduce_all(boxes[..., 2:] > boxes[..., :2], axis=-1)
    ranks = tf.where(eligible, tf.cast(count - tf.range(count), tf.float32), 0.0)
    # TensorFlow's function and the operation that TFLite replaces it with remove boxes from the threshold on, so they
    # get the next larger float32.
    smallest_removed = float(np.nextafter(np.float32(config.nms_iou), np.float32(np.inf)))

    def select_detections(image: DetectionBatch, ranks: tf.Tensor) -> DetectionBatch:
        index, count = tf.image.non_max_suppression_padded(
            separate_classes(image.boxes, image.labels),
            ranks,
            config.max_detections,
            iou_threshold=smallest_removed,
            score_threshold=0.0,
            pad_to_max_output_size=True,
        )
        index = tf.ensure_shape(index, [config.max_detections])
        is_detection = tf.range(config.max_detections) < count
        return DetectionBatch(
            boxes=tf.where(is_detection[:, None], tf.gather(image.boxes, index), 0.0),
            labels=tf.where(is_detection, tf.gather(image.labels, index), 0),
            scores=tf.where(is_detection, tf.gather(image.scores, index), 0.0),
        )

    candidates = DetectionBatch(boxes, labels, scores)
    if boxes.shape[0] == 1:
        # No loop for a single image: the TFLite and ONNX converters handle loops badly.
        result = select_detections(*tf.nest.map_structure(lambda value: value[0], (candidates, ranks)))
        return DetectionBatch(*(value[None] for value in result))
    dtypes = DetectionBatch(tf.float32, tf.int32, tf.float32)
    return tf.map_fn(lambda parts: select_detections(*parts), (candidates, ranks), fn_output_signature=dtypes)


def separate_classes(boxes: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Moves boxes [..., 4] in 0..1 so that boxes of different labels [...] never overlap; IoUs within a class are kept.

    Coordinates are shifted to 1..2, then each axis is multiplied by a power of two. The pair of powers is unique to the
    label, so the classes occupy disjoint regions, and scaling an axis does not change IoUs. Adding an offset per label
    would lose precision: at label 80, a coordinate near 160 has a resolution of 1.5e-5, which is 0.1 % of the side of a
    6 pixel box in a 300 pixel image. Multiplying by powers of two does not round. All powers are at least 1, because
    TensorFlow treats tiny areas as empty.
    """
    # Computed, not read from a table: the float16 converter replaces every constant above 65504 by 65504.
    y, x = (tf.pow(2.0, tf.cast(power, tf.float32)) for power in (labels // SCALES, labels % SCALES))
    return (1.0 + boxes) * tf.stack([y, x, y, x], axis=-1)


def decode_offsets(offsets: tf.Tensor, anchors: tf.Tensor, config: AnchorConfig) -> tf.Tensor:
    """Decodes offsets [..., 4] at anchors [..., 4] to boxes [..., 4]; graph version of `core.boxes.decode_boxes`."""
    low, high = tf.split(anchors, 2, axis=-1)
    shift, scale = tf.split(offsets, 2, axis=-1)
    size = high - low
    center = (low + high) / 2.0 + shift * config.center_variance * size
    # The limit keeps exp from overflowing; a box of e^10 anchor sizes is larger than any image.
    half = tf.exp(tf.minimum(scale * config.size_variance, 10.0)) * size / 2.0
    return tf.concat([center - half, center + half], axis=-1)


def create_anchor_tensor(config: AnchorConfig, input_size: int) -> tf.Tensor:
    """Creates a constant float32 [A, 4] with the anchors of an input size in pixels."""
    return tf.constant(generate_anchors(config, input_size))
