"""From the network's outputs to detections: softmax, decode, non-maximum suppression in each class.

logits [B, A, C + 1], offsets [B, A, 4]
  -> the candidates with the highest scores, each an anchor with a class
  -> boxes -> suppression within each class -> the best `max_detections`
"""

from typing import NamedTuple

import tensorflow as tf

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import AnchorConfig, Config, EvalConfig

# Pairs of anchor and class that reach suppression; SSD's own code keeps 400 a class (Liu et al. 2016, section 3).
CANDIDATES = 1000


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
    scores = tf.nn.softmax(tf.cast(outputs["logits"], tf.float32), axis=-1)[..., 1:]
    class_count = scores.shape[-1]
    flat = tf.reshape(scores, [tf.shape(scores)[0], -1])
    top, index = tf.math.top_k(flat, k=min(CANDIDATES, flat.shape[-1] or CANDIDATES))
    anchor, label = index // class_count, index % class_count
    offsets = tf.gather(tf.cast(outputs["offsets"], tf.float32), anchor, batch_dims=1)
    boxes = decode_offsets(offsets, tf.gather(anchors, anchor), anchor_config)
    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    return suppress(boxes, label + 1, top, config)


def suppress(boxes: tf.Tensor, labels: tf.Tensor, scores: tf.Tensor, config: EvalConfig) -> DetectionBatch:
    """Greedy non-maximum suppression within each class of candidates [B, K] sorted by score.

    Boxes of different classes are moved apart, so one pass serves all classes.
    """
    # Boxes lie in [0, 1]: a shift of 2 a class keeps classes from touching.
    apart = boxes + 2.0 * tf.cast(labels, tf.float32)[..., None]

    def choose(image: DetectionBatch, apart: tf.Tensor) -> DetectionBatch:
        index, count = tf.image.non_max_suppression_padded(
            apart,
            image.scores,
            config.max_detections,
            iou_threshold=config.nms_iou,
            score_threshold=config.score_threshold,
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
        one = choose(*tf.nest.map_structure(lambda value: value[0], (candidates, apart)))
        return DetectionBatch(*(value[None] for value in one))
    kinds = DetectionBatch(tf.float32, tf.int32, tf.float32)
    return tf.map_fn(lambda parts: choose(*parts), (candidates, apart), fn_output_signature=kinds)


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
