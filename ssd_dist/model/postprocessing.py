"""From the network's outputs to detections: softmax, decode, non-maximum suppression in each class.

logits [B, A, C + 1], offsets [B, A, 4]
  -> the candidates with the highest odds, each an anchor with a class
  -> boxes -> suppression within each class -> the best `max_detections`

Who suppresses whom hangs on the order of scores, and of TensorFlow, TFLite and ONNX Runtime each has its own way with
equal ones. So the order is made where it is clear, from odds, and handed on as ranks, of which no two are equal.
"""

from typing import NamedTuple

import tensorflow as tf

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import AnchorConfig, Config, EvalConfig

# Pairs of anchor and class that reach suppression; SSD's own code keeps 400 a class (Liu et al. 2016, section 3).
CANDIDATES = 1000
# Suppression sees each class at a scale of its own on each axis: as many powers of two.
SCALES = 64


class DetectionBatch(NamedTuple):
    """Detections of B images, best first, padded to `max_detections` D.

    Attributes:
      boxes: float32 [B, D, 4], clipped to the image.
      labels: int32 [B, D], 1-based.
      scores: float32 [B, D], 0 for padding.
    """

    boxes: tf.Tensor
    labels: tf.Tensor
    scores: tf.Tensor


def detect(
    outputs: dict[str, tf.Tensor], anchors: tf.Tensor, anchor_config: AnchorConfig, config: EvalConfig
) -> DetectionBatch:
    """Detections from the network's outputs; all in float32."""
    odds = compute_odds(tf.cast(outputs["logits"], tf.float32))[..., 1:]
    class_count = odds.shape[-1]
    flat = tf.reshape(odds, [tf.shape(odds)[0], -1])
    top, index = tf.math.top_k(flat, k=min(CANDIDATES, flat.shape[-1] or CANDIDATES))
    anchor, label = index // class_count, index % class_count
    offsets = tf.gather(tf.cast(outputs["offsets"], tf.float32), anchor, batch_dims=1)
    boxes = decode_offsets(offsets, tf.gather(anchors, anchor), anchor_config)
    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    # odds / (1 + odds) would be NaN for infinite odds.
    return suppress(boxes, label + 1, 1.0 / (1.0 + 1.0 / top), config)


def compute_odds(logits: tf.Tensor) -> tf.Tensor:
    """P / (1 - p) of each class [..., K], where p is the softmax of logits [..., K].

    In the order of p, and still apart where p is not: float32 has no number between 0.99999994 and 1.
    """
    weight = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    # The largest is 1 exactly. What is small is summed without it, lest it be lost.
    first = tf.cast(tf.equal(weight, 1.0), tf.float32)
    small = weight - first
    others = (tf.reduce_sum(first, -1, keepdims=True) - first) + (tf.reduce_sum(small, -1, keepdims=True) - small)
    return weight / others


def suppress(boxes: tf.Tensor, labels: tf.Tensor, scores: tf.Tensor, config: EvalConfig) -> DetectionBatch:
    """Greedy non-maximum suppression within each class of candidates [B, K], best first; equal scores keep their order.

    Labels are below 4,096: 64 scales of each axis. A box of no area is none.
    """
    count = tf.shape(scores)[1]
    # Clipped to nothing, it overlaps with no other and would never be suppressed.
    wanted = (scores > config.score_threshold) & tf.reduce_all(boxes[..., 2:] > boxes[..., :2], axis=-1)
    ranks = tf.where(wanted, tf.cast(count - tf.range(count), tf.float32), 0.0)

    def choose(image: DetectionBatch, ranks: tf.Tensor) -> DetectionBatch:
        index, count = tf.image.non_max_suppression_padded(
            set_classes_apart(image.boxes, image.labels),
            ranks,
            config.max_detections,
            iou_threshold=config.nms_iou,
            score_threshold=0.0,
            pad_to_max_output_size=True,
        )
        index = tf.ensure_shape(index, [config.max_detections])
        real = tf.range(config.max_detections) < count
        return DetectionBatch(
            boxes=tf.where(real[:, None], tf.gather(image.boxes, index), 0.0),
            labels=tf.where(real, tf.gather(image.labels, index), 0),
            scores=tf.where(real, tf.gather(image.scores, index), 0.0),
        )

    candidates = DetectionBatch(boxes, labels, scores)
    if boxes.shape[0] == 1:
        # No loop around one image: the converters to TFLite and ONNX do badly with it.
        one = choose(*tf.nest.map_structure(lambda value: value[0], (candidates, ranks)))
        return DetectionBatch(*(value[None] for value in one))
    kinds = DetectionBatch(tf.float32, tf.int32, tf.float32)
    return tf.map_fn(lambda parts: choose(*parts), (candidates, ranks), fn_output_signature=kinds)


def set_classes_apart(boxes: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Boxes [..., 4] in 0..1 moved so that those of different labels [...] cannot touch, and IoUs within a class stay.

    1..2 times another power of two for each class is a place of its own, and scaling an axis leaves IoU as it is. A
    shift by the label would cost bits: at label 80 a coordinate near 160 is known to 1.5e-5, a box of 6 pixels of 300
    to 0.1 % of its side. Powers of two round nothing; none is below 1, since TensorFlow takes tiny areas for empty.
    """
    # Computed, not looked up: the converter to float16 makes 65504 of every constant above it.
    y, x = (tf.pow(2.0, tf.cast(power, tf.float32)) for power in (labels // SCALES, labels % SCALES))
    return (1.0 + boxes) * tf.stack([y, x, y, x], axis=-1)


def decode_offsets(offsets: tf.Tensor, anchors: tf.Tensor, config: AnchorConfig) -> tf.Tensor:
    """Boxes [..., 4] from offsets [..., 4] at anchors [..., 4]; graph twin of `core.boxes.decode_boxes`."""
    low, high = tf.split(anchors, 2, axis=-1)
    shift, scale = tf.split(offsets, 2, axis=-1)
    size = high - low
    center = (low + high) / 2.0 + shift * config.center_variance * size
    # exp is kept from overflowing: e^10 anchor sizes are past any image.
    half = tf.exp(tf.minimum(scale * config.size_variance, 10.0)) * size / 2.0
    return tf.concat([center - half, center + half], axis=-1)


def anchor_tensor(config: Config) -> tf.Tensor:
    """The anchors [A, 4] of the config as a constant."""
    return tf.constant(generate_anchors(config.anchors, config.model.input_size))
