"""From the sparse targets of a batch to masks and counts, on the device.

Everything here depends on the labels alone, so it runs (and its counts are all-reduced) before the forward pass.
"""

from typing import NamedTuple

import tensorflow as tf

from ssd_dist.core.config import MiningConfig
from ssd_dist.data.batch import SparseTargets


def positive_mask(targets: SparseTargets) -> tf.Tensor:
    """Bool [B, P]: which entries are positives and not padding."""
    return targets.anchors >= 0


def candidate_mask(targets: SparseTargets, anchor_count: int) -> tf.Tensor:
    """Bool [B, A]: the background anchors, those that mining may choose from."""
    taken = tf.concat([targets.anchors, targets.ignored], axis=1)
    rows = tf.broadcast_to(tf.range(tf.shape(taken)[0])[:, None], tf.shape(taken))
    # Padding lands in an extra column that is cut off: no boolean_mask, so shapes stay static on the device.
    columns = tf.where(taken >= 0, taken, anchor_count)
    shape = tf.stack([tf.shape(taken)[0], anchor_count + 1])
    marks = tf.scatter_nd(tf.stack([rows, columns], axis=-1), tf.ones_like(taken), shape)
    return marks[:, :anchor_count] == 0


class TargetCounts(NamedTuple):
    """What the labels of a batch say, before any forward pass.

    Attributes:
      positives: int32 [B].
      candidates: int32 [B], background anchors.
      quota: int32 [B], negatives that mining takes in `image` scope.
    """

    positives: tf.Tensor
    candidates: tf.Tensor
    quota: tf.Tensor

    def totals(self) -> tf.Tensor:
        """int32 [3]: sums of the three over the batch, ready to be all-reduced."""
        return tf.stack([tf.reduce_sum(count) for count in self])


def count_targets(targets: SparseTargets, anchor_count: int, config: MiningConfig) -> TargetCounts:
    """Counts of each image of the batch; `anchor_count` is A."""
    positives = count_rows(positive_mask(targets))
    candidates = anchor_count - positives - count_rows(targets.ignored >= 0)
    return TargetCounts(positives, candidates, negative_quota(positives, candidates, config))


def negative_quota(positives: tf.Tensor, candidates: tf.Tensor, config: MiningConfig, images: int = 1) -> tf.Tensor:
    """int32: min(max(floor(ratio * positives), min_negatives_per_image * images), candidates), elementwise."""
    # Bounded before the cast: a large ratio, for all negatives, is no int32.
    wanted = tf.minimum(tf.floor(config.ratio * tf.cast(positives, tf.float32)), tf.cast(candidates, tf.float32))
    return tf.minimum(tf.maximum(tf.cast(wanted, tf.int32), config.min_negatives_per_image * images), candidates)


def count_rows(mask: tf.Tensor) -> tf.Tensor:
    """int32 [B]: true entries of each row."""
    return tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
