"""Decides which differences between an export and its checkpoint can come from rounding.

Two implementations of one network add numbers in different orders, so their outputs differ by rounding. How much
depends on the network; it is measured: float32 outputs are compared with those of the same network in float64. A
detection that differs is explained by rounding if the export's list is a valid result of NMS for outputs within that
tolerance:

    added    it is one of the checkpoint's candidates, and overlaps no other detection of the export by more than
             `nms_iou`
    lost     the export has a detection of at least its score that overlaps it by `nms_iou` or more, or its score is at
             one of the limits: the score threshold, the last of `max_detections`, the last of `CANDIDATES`

Greedy NMS has only one result that satisfies both for every candidate, so a wrong list of detections is not explained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras
from tf_keras import layers

from ssd_dist.core.boxes import FloatArray, IntArray, decode_boxes, iou_matrix
from ssd_dist.evaluation.detections import Detections
from ssd_dist.export.serving import OutputDecoder
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import CANDIDATES

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Images on which the rounding error is measured.
MEASURED_IMAGES = 8
# The tolerance in rounding errors of TensorFlow on the measured images. TFLite adds long sums term by term, and its
# error was seven times as large; other images and other processors add to that.
MARGIN = 64.0
# Spacing of float32 numbers between 1 and 2.
EPSILON = 2.0**-23


@dataclass(frozen=True)
class Tolerance:
    """The largest difference of the network's raw outputs that rounding explains."""

    logits: float
    offsets: float


@dataclass(frozen=True)
class Candidates:
    """The (anchor, class) pairs of one image, as the checkpoint computes them, and how far rounding moves them.

    Attributes:
      boxes: float32 [K, 4], clipped to the image.
      labels: int64 [K], 1-based.
      log_odds: float64 [K], log(p / (1 - p)) of the score p.
      nms_boxes: float32 [K, 4], the boxes whose overlap NMS compares.
      nms_labels: int64 [K], equal for the boxes of which NMS keeps one.
      lowest: log odds of the last candidate that NMS receives.
      box_tolerance: float64 [K], of each coordinate.
      log_odds_tolerance: of the difference of the log odds of two candidates.
      ranks_by_score: whether the NMS of the export compares float32 scores, of which many near 1 are equal.
    """

    boxes: FloatArray
    labels: IntArray
    log_odds: Float64Array
    nms_boxes: FloatArray
    nms_labels: IntArray
    lowest: float
    box_tolerance: Float64Array
    log_odds_tolerance: float
    ranks_by_score: bool

    def may_rank_before(self, first: Float64Array, second: Float64Array) -> BoolArray:
        """Returns whether the export may rank candidates of log odds `first` before those of log odds `second`."""
        near = self.log_odds_tolerance
        may = first >= second - near
        if self.ranks_by_score:
            # Softmax rounds a score by up to two float32 spacings of itself.
            may |= compute_scores(first + near) >= compute_scores(second) * (1.0 - 2 * EPSILON)
        return may


def compute_scores(log_odds: Float64Array) -> Float64Array:
    """Returns the scores of log odds."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-log_odds)))


def measure_tolerance(model: tf_keras.Model, images: Sequence[np.ndarray]) -> Tolerance:
    """Measures the rounding error of a float32 model on the first of the uint8 [S, S, 3] images."""
    exact_model = _copy_in_float64(model)
    errors = {"logits": 0.0, "offsets": 0.0}
    for image in images[:MEASURED_IMAGES]:
        pixels = normalize_image(image[None])
        rounded, exact = model(pixels, training=False), exact_model(pixels, training=False)
        for name, values in exact.items():
            error = float(np.abs(rounded[name].numpy() - values.numpy()).max())
            # A lucky image has no error; the outputs are rounded in any case.
            errors[name] = max(errors[name], error, EPSILON / 2 * float(np.abs(values).max()))
    return Tolerance(**{name: MARGIN * error for name, error in errors.items()})


def _copy_in_float64(model: tf_keras.Model) -> tf_keras.Model:
    def copy_layer(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=copy_layer)
        return type(layer).from_config(layer.get_config() | {"dtype": "float64"})

    copy = tf_keras.models.clone_model(model, clone_function=copy_layer)
    copy.set_weights(model.get_weights())
    return copy


def list_candidates(
    outputs: dict[str, tf.Tensor], decoder: OutputDecoder, tolerance: Tolerance, export_outputs: str = "detections"
) -> Candidates:
    """Lists the candidates of the checkpoint on one image.

    Args:
      outputs: the checkpoint's `logits` [1, A, C + 1] and `offsets` [1, A, 4].
      decoder: decodes them.
      tolerance: the rounding error of the outputs.
      export_outputs: which NMS the export applies, one of `export_options.OUTPUTS`. That of `postprocess_op`
        receives all candidates, does not clip their boxes, and is applied across classes; that of
        `detection_output` receives the best `CANDIDATES` of each class instead of those of all classes.
    """
    logits, offsets = (np.asarray(outputs[name])[0] for name in ("logits", "offsets"))
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    with np.errstate(divide="ignore"):
        log_odds = np.log(weights / (weights.sum(axis=1, keepdims=True) - weights))[:, 1:]
    config = decoder.anchor_config
    boxes = decode_boxes(offsets, decoder.anchors, config.center_variance, config.size_variance)
    anchor_sides = (decoder.anchors[:, 2:] - decoder.anchors[:, :2]).max(axis=1)
    box_sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    # d(center) = d(offset) center_variance anchor_side;  d(side) / 2 = d(offset) size_variance side / 2
    drift = tolerance.offsets * (config.center_variance * anchor_sides + config.size_variance * box_sides / 2)
    count, clipped = log_odds.shape[1], boxes.clip(0.0, 1.0)
    labels = np.tile(np.arange(1, count + 1), len(boxes))
    limited = log_odds.size > CANDIDATES and export_outputs in ("detections", "raw")
    postprocess_op = export_outputs == "postprocess_op"
    return Candidates(
        boxes=np.repeat(clipped, count, axis=0),
        labels=labels,
        log_odds=log_odds.ravel(),
        nms_boxes=np.repeat(boxes if postprocess_op else clipped, count, axis=0),
        nms_labels=np.zeros_like(labels) if postprocess_op else labels,
        lowest=np.partition(log_odds.ravel(), -CANDIDATES)[-CANDIDATES] if limited else -np.inf,
        box_tolerance=np.repeat(drift + 2 * EPSILON, count),
        # Each of the two implementations moves the log odds of each candidate by up to twice the change of a logit.
        log_odds_tolerance=4 * tolerance.logits,
        ranks_by_score=export_outputs in ("postprocess_op", "detection_output"),
    )


def explain_by_rounding(
    lost: Detections, added: Detections, found: Detections, candidates: Candidates, decoder: OutputDecoder
) -> tuple[BoolArray, BoolArray]:
    """Decides which differing detections can be explained by rounding.

    Args:
      lost: detections of the checkpoint that the export lacks.
      added: detections of the export that the checkpoint lacks.
      found: all detections of the export.
      candidates: the checkpoint's candidates on the image.
      decoder: provides the NMS settings.

    Returns:
      Two boolean arrays, one entry per detection in `lost` and in `added`: whether rounding explains the difference.
    """
    near, config = candidates.log_odds_tolerance, decoder.eval_config
    (lost_index, _), (added_index, is_candidate), (found_index, may_remove) = (
        _find_candidates(detections, candidates) for detections in (lost, added, found)
    )
    lost_odds, added_odds, found_odds = (candidates.log_odds[index] for index in (lost_index, added_index, found_index))
    with np.errstate(divide="ignore"):
        threshold = np.log(config.score_threshold) - np.log1p(-config.score_threshold)
    limit = max(threshold, candidates.lowest)

    overlap, slack = _overlaps(lost_index, found_index, candidates)
    is_before = candidates.may_rank_before(found_odds[None], lost_odds[:, None])
    removed = ((overlap >= config.nms_iou - slack) & is_before & may_remove).any(axis=1)
    full = len(found_index) == config.max_detections
    beyond_last = is_before.all(axis=1) & full
    # A box that is clipped to almost no area may be dropped.
    sides = (candidates.boxes[lost_index, 2:] - candidates.boxes[lost_index, :2]).min(axis=1, initial=np.inf)
    empty = sides <= 2 * candidates.box_tolerance[lost_index]

    overlap, slack = _overlaps(added_index, found_index, candidates)
    overlap[added_index[:, None] == found_index] = 0.0
    kept = (overlap <= config.nms_iou + slack).all(axis=1) & (added_odds >= limit - near)
    return removed | beyond_last | empty | (lost_odds <= limit + near), kept & is_candidate


def _find_candidates(detections: Detections, candidates: Candidates) -> tuple[IntArray, BoolArray]:
    """Returns the index of the most similar candidate of each detection, and whether it differs only by rounding."""
    index, similar = np.zeros(len(detections.scores), np.int64), np.zeros(len(detections.scores), np.bool_)
    for label in np.unique(detections.labels):
        rows = np.flatnonzero(candidates.labels == label)
        scores = compute_scores(candidates.log_odds[rows])
        for number in np.flatnonzero(detections.labels == label):
            # The score of softmax changes by at most half as much as the log odds, and float32 rounds it.
            excess = np.maximum(
                np.abs(candidates.boxes[rows] - detections.boxes[number]).max(axis=1) / candidates.box_tolerance[rows],
                np.abs(scores - detections.scores[number]) / (candidates.log_odds_tolerance / 2 + 2 * EPSILON),
            )
            index[number], similar[number] = rows[excess.argmin()], excess.min() <= 1
    return index, similar


def _overlaps(index: IntArray, others: IntArray, candidates: Candidates) -> tuple[Float64Array, Float64Array]:
    """Returns the IoUs of candidates [N] with others [M], 0 across classes, and how far rounding changes them."""
    overlap = iou_matrix(candidates.nms_boxes[index], candidates.nms_boxes[others])
    overlap[candidates.nms_labels[index][:, None] != candidates.nms_labels[others]] = 0.0
    sides = (candidates.nms_boxes[:, 2:] - candidates.nms_boxes[:, :2]).min(axis=1)
    # Each side changes by up to twice the tolerance of a coordinate. The sides of the intersection are at least half as
    # long where the IoU is about 0.5, so its area changes by 8 tolerances per side, and that of the union by 4.
    relative = candidates.box_tolerance / np.maximum(sides, EPSILON)
    return overlap, 12 * np.maximum(relative[index][:, None], relative[others])
