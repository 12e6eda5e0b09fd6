"""The multibox loss (Liu et al. 2016, equations 1 to 3), one value for each image.

    logits, offsets of the network and the sparse targets
      -> cross-entropy of positives and of background -> mining chooses the negatives
      -> smooth L1 of the positives
      -> two sums for each image

Positives are gathered, so nothing dense is built but what the softmax needs anyway. Nothing here communicates: the
counts of the global batch come in as arguments, already summed over replicas.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from ssd_dist.core.config import LossConfig
from ssd_dist.data.batch import SparseTargets
from ssd_dist.training.targets import TargetCounts, candidate_mask, positive_mask

Miner = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class ImageLosses(NamedTuple):
    """Sums over the anchors of each image, not yet normalised.

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
    """Losses of a batch.

    Args:
      logits: float [B, A, C + 1], class 0 is background.
      offsets: float [B, A, 4], predicted.
      targets: the sparse targets.
      config: beta and label smoothing are used here.
      mine: (background losses [B, A], candidates bool [B, A]) -> chosen bool [B, A].
    """
    mask = positive_mask(targets)
    index = tf.maximum(targets.anchors, 0)
    candidates = candidate_mask(targets, logits.shape[1])

    log_partition = tf.reduce_logsumexp(logits, axis=-1)
    background = cross_entropy(log_partition, logits[..., 0], logits, config.label_smoothing)
    negatives = mine(background, candidates)

    at_positives = tf.gather(logits, index, batch_dims=1)
    of_label = tf.gather(at_positives, tf.maximum(targets.labels, 0), batch_dims=2)
    partition = tf.gather(log_partition, index, batch_dims=1)
    foreground = cross_entropy(partition, of_label, at_positives, config.label_smoothing)

    at_positives = tf.gather(offsets, index, batch_dims=1)
    distance = smooth_l1(at_positives - tf.cast(targets.offsets, offsets.dtype), config.beta)
    return ImageLosses(
        classification=_sum_where(mask, foreground) + _sum_where(negatives, background),
        localization=_sum_where(mask, tf.reduce_sum(distance, axis=-1)),
        negatives=negatives,
    )


def reduce_losses(
    losses: tf.Tensor, counts: TargetCounts, totals: TargetCounts, images: int, config: LossConfig
) -> tf.Tensor:
    """This replica's share of the loss, a scalar; summed over replicas it is the loss of the global batch.

    Divides by the normaliser, clamped to 1 only after the counts were summed: clamping on each replica would make the
    result depend on their number. With `reduction: none` the share is the sum, whose gradient is that of the vector.

    Args:
      losses: [B], one of the sums of `ImageLosses`.
      counts: of each image, [B]; `quota` holds the mined negatives.
      totals: the same summed over the global batch, scalars.
      images: number of images in the global batch.
      config: normalizer, normalize_per and reduction.
    """
    per_image = config.normalize_per == "image"
    divisor = {
        "positives": counts.positives if per_image else totals.positives,
        "classified": counts.positives + counts.quota if per_image else totals.positives + totals.quota,
        "images": 1 if per_image else images,
    }[config.normalizer]
    share = tf.reduce_sum(losses / tf.maximum(tf.cast(divisor, losses.dtype), 1.0))
    return share / images if config.reduction == "mean" else share


def cross_entropy(log_partition: tf.Tensor, logit: tf.Tensor, logits: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Softmax cross-entropy from its parts: log sum exp(logits), the logit of the label, and all logits [..., K].

    With smoothing e the target is (1 - e) on the label plus e / K on every class (Szegedy et al. 2016, section 7).
    """
    if not label_smoothing:
        return log_partition - logit
    mean = tf.reduce_mean(logits, axis=-1)
    return log_partition - (1.0 - label_smoothing) * logit - label_smoothing * mean


def smooth_l1(difference: tf.Tensor, beta: float) -> tf.Tensor:
    """d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere (Girshick 2015, equation 3, with a scale)."""
    size = tf.abs(difference)
    # A product without branches: nothing overflows, and the gradient, inside / beta, is exact for the smallest d.
    inside = tf.minimum(size, beta)
    return inside / beta * (size - 0.5 * inside)


def _sum_where(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.where(mask, values, tf.zeros_like(values)), axis=1)
