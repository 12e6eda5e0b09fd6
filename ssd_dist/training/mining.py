"""Hard-negative mining (Liu et al. 2016, section 2.2): selects the background anchors with the highest loss.

    losses [B, A], candidates bool [B, A], quota  ->  selected bool [B, A]

The selection is exact: it contains `quota` anchors, ties in the loss are broken by position, and it carries no
gradient. `image` scope selects within each image. `global` scope selects the hardest anchors of the whole global batch,
over all replicas, with a radix select.
"""

import tensorflow as tf

# (shift, bits) of the three digits of a 32-bit float: 11 + 11 + 10 bits.
_DIGITS = ((21, 11), (10, 11), (0, 10))


def mine_per_image(losses: tf.Tensor, candidates: tf.Tensor, quota: tf.Tensor) -> tf.Tensor:
    """Selects the candidates with the highest losses in each image; ties are broken by anchor index.

    Args:
      losses: float [B, A].
      candidates: bool [B, A].
      quota: int32 [B], how many to select in each image, at most its number of candidates.

    Returns:
      bool [B, A], the selected anchors.
    """
    masked = _mask_losses(losses, candidates)
    largest_quota = tf.maximum(tf.reduce_max(quota), 1)
    top = tf.math.top_k(masked, largest_quota).values
    threshold = tf.gather(top, tf.maximum(quota - 1, 0)[:, None], batch_dims=1)
    above = masked > threshold
    remaining = quota - tf.reduce_sum(tf.cast(above, tf.int32), axis=1)
    tied = (masked == threshold) & candidates
    rank = tf.cumsum(tf.cast(tied, tf.int32), axis=1)
    selected = above | (tied & (rank <= remaining[:, None]))
    return selected & (quota > 0)[:, None]


def mine_global(
    losses: tf.Tensor, candidates: tf.Tensor, quota: tf.Tensor, positions: tf.Tensor, global_batch_size: int
) -> tf.Tensor:
    """Selects the `quota` hardest candidates of the global batch; every replica calls it with its own images.

    The threshold is found digit by digit. Each pass builds a histogram of the next digit of the float bits, over the
    losses that share the digits found so far, and sums it over replicas; the histogram shows which bin holds the
    quota-th highest loss. Ties at the threshold are broken by image position, then by anchor index, so the selection
    is the same as on one replica with the whole batch.

    Args:
      losses: float32 [B, A] of this replica.
      candidates: bool [B, A].
      quota: int32 scalar, how many to select in the global batch, at most its candidates; equal on all replicas.
      positions: int32 [B], the position of each image in the global batch.
      global_batch_size: number of images over all replicas.

    Returns:
      bool [B, A], the selected anchors of this replica's images.
    """
    keys = _sortable_bits(_mask_losses(losses, candidates))
    remaining = tf.cast(quota, tf.float64)
    prefix = tf.zeros([], tf.int64)
    within = candidates
    for shift, bits in _DIGITS:
        digit = tf.bitwise.bitwise_and(tf.bitwise.right_shift(keys, shift), (1 << bits) - 1)
        histogram = _sum_over_replicas(_count_digits(digit, within, 1 << bits))
        from_above = tf.cumsum(histogram, reverse=True)
        # The highest bin such that it and the bins above hold `remaining` losses; with a quota of 0 the highest bin.
        enough = tf.cast(from_above >= tf.maximum(remaining, 1.0), tf.int64)
        threshold_bin = tf.maximum(tf.reduce_sum(enough) - 1, 0)
        remaining -= from_above[threshold_bin] - histogram[threshold_bin]
        prefix = tf.bitwise.bitwise_or(prefix, tf.bitwise.left_shift(threshold_bin, shift))
        within &= digit == threshold_bin
    above = candidates & (keys > prefix)
    tied = within
    return (above | _select_first_tied(tied, remaining, positions, global_batch_size)) & (quota > 0)


def _select_first_tied(tied: tf.Tensor, count: tf.Tensor, positions: tf.Tensor, global_batch_size: int) -> tf.Tensor:
    """Selects the first `count` tied anchors of the global batch, by image position, then by anchor index."""
    tied_per_image = tf.reduce_sum(tf.cast(tied, tf.float64), axis=1)
    by_position = tf.scatter_nd(positions[:, None], tied_per_image, [global_batch_size])
    before = tf.gather(tf.cumsum(_sum_over_replicas(by_position), exclusive=True), positions)
    rank = before[:, None] + tf.cumsum(tf.cast(tied, tf.float64), axis=1)
    return tied & (rank <= count)


def _mask_losses(losses: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
    """Returns the losses in float32 without gradient; -inf for anchors that are not candidates."""
    losses = tf.stop_gradient(tf.cast(losses, tf.float32))
    # A NaN compares false with everything, and the quota would silently not be met.
    losses = tf.where(tf.math.is_nan(losses), float("inf"), losses)
    return tf.where(candidates, losses, float("-inf"))


def _sortable_bits(values: tf.Tensor) -> tf.Tensor:
    """Returns int64 keys in [0, 2^32) that sort like the float32 values; -0 and 0 have the same key."""
    # Not `values + 0.0`: the graph optimizer removes that as a no-op, and -0 would keep its sign.
    values = tf.where(values == 0.0, tf.zeros_like(values), values)
    bits = tf.cast(tf.bitcast(values, tf.uint32), tf.int64)
    negative = bits >= 1 << 31
    return tf.where(negative, (1 << 32) - 1 - bits, bits + (1 << 31))


def _count_digits(digit: tf.Tensor, within: tf.Tensor, bins: int) -> tf.Tensor:
    """Returns a histogram, float64 [bins]: float64 is exact up to 2^53, and every collective supports it."""
    # Not bincount: it has no deterministic kernel on GPUs.
    return tf.math.unsorted_segment_sum(tf.cast(within, tf.float64), digit, bins)


def _sum_over_replicas(values: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)
