"""Hard-negative mining (Liu et al. 2016, section 2.2): the background anchors with the highest loss.

    losses [B, A], candidates [B, A], how many  ->  bool [B, A]

The choice is exact: the count is met, equal losses go by position, and it carries no gradient. `image` scope chooses in
each image; `global` scope chooses the hardest of the whole global batch, over all replicas, by a radix select.
"""

import tensorflow as tf

# Three digits of the 32 bits of a float: 11 + 11 + 10.
_DIGITS = ((21, 11), (10, 11), (0, 10))


def mine_per_image(losses: tf.Tensor, candidates: tf.Tensor, quota: tf.Tensor) -> tf.Tensor:
    """Chooses `quota` [B] candidates of highest loss in each row of losses [B, A]; ties by anchor index."""
    masked = _mask(losses, candidates)
    most = tf.maximum(tf.reduce_max(quota), 1)
    top = tf.math.top_k(masked, most).values
    threshold = tf.gather(top, tf.maximum(quota - 1, 0)[:, None], batch_dims=1)
    above = masked > threshold
    remaining = quota - tf.reduce_sum(tf.cast(above, tf.int32), axis=1)
    tied = (masked == threshold) & candidates
    rank = tf.cumsum(tf.cast(tied, tf.int32), axis=1)
    chosen = above | (tied & (rank <= remaining[:, None]))
    return chosen & (quota > 0)[:, None]


def mine_global(
    losses: tf.Tensor, candidates: tf.Tensor, quota: tf.Tensor, positions: tf.Tensor, global_batch_size: int
) -> tf.Tensor:
    """Chooses the `quota` hardest candidates of the global batch; called on every replica with its own rows.

    The threshold is found digit by digit: a histogram of the next digit of the float bits among the losses that share
    the digits found so far, summed over replicas, tells in which bin the quota-th highest loss lies. Ties at the
    threshold go by image position, then by anchor index, so the choice is that of one replica on the whole batch.

    Args:
      losses: float32 [B, A] of this replica.
      candidates: bool [B, A].
      quota: int32 scalar, how many to choose in the whole global batch, at most its candidates; the same everywhere.
      positions: int32 [B], the place of each image in the global batch.
      global_batch_size: images over all replicas.
    """
    keys = _sortable_bits(_mask(losses, candidates))
    remaining = tf.cast(quota, tf.float64)
    prefix = tf.zeros([], tf.int64)
    within = candidates
    for shift, bits in _DIGITS:
        digit = tf.bitwise.bitwise_and(tf.bitwise.right_shift(keys, shift), (1 << bits) - 1)
        histogram = _sum_over_replicas(_count_digits(digit, within, 1 << bits))
        from_above = tf.cumsum(histogram, reverse=True)
        # The lowest bin at and above which there are still enough; with a quota of 0 the highest bin of all.
        enough = tf.cast(from_above >= tf.maximum(remaining, 1.0), tf.int64)
        chosen = tf.maximum(tf.reduce_sum(enough) - 1, 0)
        remaining -= from_above[chosen] - histogram[chosen]
        prefix = tf.bitwise.bitwise_or(prefix, tf.bitwise.left_shift(chosen, shift))
        within &= digit == chosen
    above = candidates & (keys > prefix)
    tied = within
    return (above | _first_tied(tied, remaining, positions, global_batch_size)) & (quota > 0)


def _first_tied(tied: tf.Tensor, count: tf.Tensor, positions: tf.Tensor, global_batch_size: int) -> tf.Tensor:
    """The first `count` of the tied anchors of the global batch, by image position, then by anchor index."""
    here = tf.reduce_sum(tf.cast(tied, tf.float64), axis=1)
    by_position = tf.scatter_nd(positions[:, None], here, [global_batch_size])
    before = tf.gather(tf.cumsum(_sum_over_replicas(by_position), exclusive=True), positions)
    rank = before[:, None] + tf.cumsum(tf.cast(tied, tf.float64), axis=1)
    return tied & (rank <= count)


def _mask(losses: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
    losses = tf.stop_gradient(tf.cast(losses, tf.float32))
    # NaN would compare false with everything and quietly leave the quota unmet.
    losses = tf.where(tf.math.is_nan(losses), float("inf"), losses)
    return tf.where(candidates, losses, float("-inf"))


def _sortable_bits(values: tf.Tensor) -> tf.Tensor:
    """int64 keys in [0, 2^32) that order as the float32 values do; -0 and 0 are one."""
    # Not `values + 0.0`: the graph optimizer takes that for nothing to do, and -0 keeps its sign.
    values = tf.where(values == 0.0, tf.zeros_like(values), values)
    bits = tf.cast(tf.bitcast(values, tf.uint32), tf.int64)
    negative = bits >= 1 << 31
    return tf.where(negative, (1 << 32) - 1 - bits, bits + (1 << 31))


def _count_digits(digit: tf.Tensor, within: tf.Tensor, bins: int) -> tf.Tensor:
    """float64 [bins] histogram; float64 counts exactly to 2^53 and every collective takes it."""
    # Not bincount, of which GPUs have no deterministic kernel.
    return tf.math.unsorted_segment_sum(tf.cast(within, tf.float64), digit, bins)


def _sum_over_replicas(values: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)
