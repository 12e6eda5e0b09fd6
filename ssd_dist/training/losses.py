"""The multibox loss (Liu et al. 2016, equations 1 to 3), one value per image.

    network logits and offsets, sparse targets
      -> cross-entropy of positives and of background -> mining selects the negatives
      -> smooth L1 of the positives
      -> two sums per image

The losses of positives are computed on gathered anchors, so the softmax is the only dense computation. Nothing in this
module communicates: counts of the global batch are arguments, already summed over replicas.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import tensorflow as tf

from ssd_dist.core.config import LossConfig
from ssd_dist.data.batch import SparseTargets
from ssd_dist.training.part_sums import round_for_exact_sum
from ssd_dist.training.targets import TargetCounts, candidate_mask, positive_mask

# (background losses [B, A], candidates bool [B, A]) -> mined negatives bool [B, A]
Miner: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class ImageLosses(NamedTuple):
    """Sums over the anchors of each image, before normalization.

    Attributes:
      classification: [B], cross-entropy of positives and mined negatives.
      localization: [B], smooth L1 of positives.
      negatives: bool [B, A], the mined anchors.
    """

    classification: tf.Tensor
    localization: tf.Tensor
    negatives: tf.Tensor


def multibox_losses(
    logits: tf.Tensor, offsets: tf.Tensor, targets: SparseTargets, config: LossConfig, mine: Miner
) -> ImageLosses:
    """Computes the classification and localization losses of each image.

    Args:
      logits: float [B, A, C + 1]; class 0 is background.
      offsets: float [B, A, 4], predicted.
      targets: the sparse targets.
      config: only `beta` and `label_smoothing` are used here.
      mine: selects the negatives from the background losses and the candidates.
    """
    mask = positive_mask(targets)
    index = tf.maximum(targets.anchors, 0)
    candidates = candidate_mask(targets, logits.shape[1])

    log_partition, background = background_losses(logits, config)
    negatives = mine(background, candidates)

    positive_logits = tf.gather(logits, index, batch_dims=1)
    label_logits = tf.gather(positive_logits, tf.maximum(targets.labels, 0), batch_dims=2)
    positive_partition = tf.gather(log_partition, index, batch_dims=1)
    foreground = cross_entropy(positive_partition, label_logits, positive_logits, config.label_smoothing)

    positive_offsets = tf.gather(offsets, index, batch_dims=1)
    box_losses = smooth_l1_loss(positive_offsets, tf.cast(targets.offsets, offsets.dtype), config.beta)
    return ImageLosses(
        classification=_sum_positives(mask, foreground) + _sum_where(negatives, background),
        localization=_sum_positives(mask, tf.reduce_sum(box_losses, axis=-1)),
        negatives=negatives,
    )


def background_losses(logits: tf.Tensor, config: LossConfig) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log sum exp of the logits and the cross-entropy of the label background, both [B, A]."""
    log_partition = tf.reduce_logsumexp(logits, axis=-1)
    return log_partition, cross_entropy(log_partition, logits[..., 0], logits, config.label_smoothing)


def reduce_losses(
    losses: tf.Tensor, counts: TargetCounts, totals: TargetCounts, images: int, config: LossConfig
) -> tf.Tensor:
    """Computes this replica's share of the loss, a scalar; the sum over replicas is the loss of the global batch.

    Divides by the normalizer, which is clamped to at least 1 after the counts are summed over replicas. Clamping on
    each replica would make the result depend on the number of replicas. With `reduction: none` the share is the sum of
    the per-image losses, because the gradient of a vector is the gradient of its sum.

    Args:
      losses: [B], one of the sums of `ImageLosses`.
      counts: per image, [B]; `quota` holds the number of mined negatives.
      totals: the same counts summed over the global batch, scalars.
      images: number of images in the global batch.
      config: `normalizer`, `normalize_per` and `reduction` are used.
    """
    per_image = config.normalize_per == "image"
    divisor = {
        "positives": counts.positives if per_image else totals.positives,
        "classified": counts.positives + counts.quota if per_image else totals.positives + totals.quota,
        "images": 1 if per_image else images,
    }[config.normalizer]
    # float16 has no counts above 65,504: an infinite divisor would give a loss of 0.
    losses = losses if losses.dtype == tf.float64 else tf.cast(losses, tf.float32)
    share = tf.reduce_sum(losses / tf.maximum(tf.cast(divisor, losses.dtype), 1.0))
    return share / images if config.reduction == "mean" else share


def cross_entropy(log_partition: tf.Tensor, logit: tf.Tensor, logits: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Computes softmax cross-entropy from precomputed parts.

    With smoothing e the target distribution is (1 - e) on the label plus e / K on each of the K classes (Szegedy et
    al. 2016, section 7).

    Args:
      log_partition: [...], log sum exp(logits).
      logit: [...], the logit of the label.
      logits: [..., K], all logits; used only with label smoothing.
      label_smoothing: e, from 0 to below 1.
    """
    if not label_smoothing:
        return log_partition - logit
    mean = tf.reduce_mean(logits, axis=-1)
    return log_partition - (1.0 - label_smoothing) * logit - label_smoothing * mean


def smooth_l1_loss(
    predictions: tf.Tensor, targets: tf.Tensor, beta: float = 1.0, reduction: Literal["none", "sum", "mean"] = "none"
) -> tf.Tensor:
    """Computes d^2 / (2 beta) where |d| < beta and |d| - beta / 2 elsewhere, with d = predictions - targets.

    Girshick 2015, equation 3, with a scale. The training loss uses `none`: it masks padded anchors, and `reduce_losses`
    divides by counts of the global batch.

    Args:
      predictions: float tensor.
      targets: float tensor of the same shape and type.
      beta: above 0; where the loss changes from quadratic to linear.
      reduction: `none` returns one loss per element; `sum` and `mean` return a scalar over all elements.
    """
    size = tf.abs(predictions - targets)
    # A product without branches: nothing overflows, and the gradient, clipped / beta, is exact for the smallest d.
    clipped = tf.minimum(size, beta)
    losses = clipped / beta * (size - 0.5 * clipped)
    return {"none": tf.identity, "sum": tf.reduce_sum, "mean": tf.reduce_mean}[reduction](losses)


def _sum_positives(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Sums the values [B, P] of each row where `mask` is true; the padding of the rows has no effect on the bits.

    Rows are padded to the longest of the replica's batch, and the order of float32 additions depends on their length.
    """

    @tf.custom_gradient
    def sum_rows(rows: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        total = tf.reduce_sum(round_for_exact_sum(tf.cast(rows, tf.float64)), axis=1)
        return tf.cast(total, rows.dtype), lambda gradient: tf.broadcast_to(gradient[:, None], tf.shape(rows))

    return _sum_where(mask, values) if values.dtype == tf.float64 else sum_rows(_select(mask, values))


def _sum_where(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(_select(mask, values), axis=1)


def _select(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.where(mask, values, tf.zeros_like(values))
