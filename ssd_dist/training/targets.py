"""Computes masks and counts from the sparse targets of a batch, on the device.

They depend only on the labels, so they are computed, and the counts all-reduced, before the forward pass.
"""

from typing import NamedTuple

import tensorflow as tf

from ssd_dist.core.config import MiningConfig
from ssd_dist.data.batch import SparseTargets


def positive_mask(targets: SparseTargets) -> tf.Tensor:
    """Returns bool [B, P]: which entries are positives and not padding."""
    return targets.anchors >= 0


def candidate_mask(targets: SparseTargets, anchor_count: int) -> tf.Tensor:
    """Returns bool [B, A]: the background anchors, the candidates of mining; A is `anchor_count`."""
    taken = tf.concat([targets.anchors, targets.ignored], axis=1)
    rows = tf.broadcast_to(tf.range(tf.shape(taken)[0])[:, None], tf.shape(taken))
    # Padding is scattered into an extra column, which is cut off. Unlike boolean_mask this keeps shapes static.
    columns = tf.where(taken >= 0, taken, anchor_count)
    shape = tf.stack([tf.shape(taken)[0], anchor_count + 1])
    taken_count = tf.scatter_nd(tf.stack([rows, columns], axis=-1), tf.ones_like(taken), shape)
    return taken_count[:, :anchor_count] == 0


class TargetCounts(NamedTuple):
    """Anchor counts of a batch, known from its labels.

    Attributes:
      positives: int32 [B].
      candidates: int32 [B], background anchors.
      quota: int32 [B], the number of negatives that mining selects in `image` scope.
    """

    positives: tf.Tensor
    candidates: tf.Tensor
    quota: tf.Tensor

    def totals(self) -> tf.Tensor:
        """Returns int32 [3]: the three counts summed over the batch, to be all-reduced."""
        return tf.stack([tf.reduce_sum(count) for count in self])


def count_targets(targets: SparseTargets, anchor_count: int, config: MiningConfig) -> TargetCounts:
    """Counts positives, candidates and the mining quota of each image; `anchor_count` is A."""
    positives = count_rows(positive_mask(targets))
    candidates = anchor_count - positives - count_rows(targets.ignored >= 0)
    return TargetCounts(positives, candidates, negative_quota(positives, candidates, config))


def negative_quota(positives: tf.Tensor, candidates: tf.Tensor, config: MiningConfig, images: int = 1) -> tf.Tensor:
    """Computes min(max(floor(ratio * positives), min_negatives_per_image * images), candidates), elementwise, int32."""
    # Bounded before the cast: with a very large ratio (all negatives) the product does not fit into int32.
    wanted = tf.minimum(tf.floor(config.ratio * tf.cast(positives, tf.float32)), tf.cast(candidates, tf.float32))
    least = min(config.min_negatives_per_image * images, tf.int32.max)
    return tf.minimum(tf.maximum(tf.cast(wanted, tf.int32), least), candidates)


def count_rows(mask: tf.Tensor) -> tf.Tensor:
    """Returns int32 [B]: the number of true entries of each row."""
    return tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
