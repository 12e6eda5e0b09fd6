"""Repeats the images of rare classes (Gupta et al. 2019, section 4.1) without changing the length of an epoch.

    r(class) = max(1, sqrt(threshold / share of the images with the class)),  r(image) = max over its classes

An image appears in proportion to its repeat factor r. The records of a shard are resampled with these weights, as many
as before, so that steps, shards and manifests do not depend on the threshold.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

_LABELS = {"image/object/class/label": tf.io.RaggedFeature(tf.int64)}
# Factors are stored as integers, because the sum of integers does not depend on the order of the additions.
UNIT = 2**16


class Appearances(NamedTuple):
    """N appearances of records.

    Attributes:
      indices: int32 [N], the record of each.
      repetitions: int64 [N], how many earlier appearances show the same record.
    """

    indices: tf.Tensor
    repetitions: tf.Tensor


def compute_repeat_factors(images_per_class: Mapping[str, int], images: int, threshold: float) -> tuple[int, ...]:
    """Returns the repeat factor of each label in units of 1 / `UNIT`, the background first; empty if all are 1.

    Args:
      images_per_class: the number of images with each class, in the order of the labels.
      images: the number of images.
      threshold: the share of the images below which a class is repeated.

    >>> compute_repeat_factors({"fish": 90, "shark": 10}, images=100, threshold=0.4)
    (65536, 65536, 131072)
    """
    shares = [count / images for count in images_per_class.values()]
    factors = [math.sqrt(threshold / share) if 0 < share < threshold else 1.0 for share in shares]
    return (UNIT, *(round(UNIT * factor) for factor in factors)) if max(factors, default=1.0) > 1.0 else ()


def resample(records: tf.Tensor, factors: Sequence[int], seed: tf.Tensor) -> Appearances:
    """Chooses as many appearances as there are records, in the order of the records.

    Systematic sampling: a record with the share p of the sum of all factors appears floor(N p) or ceil(N p) times, N p
    in the mean.

    Args:
      records: serialized records, string [N].
      factors: the repeat factor of each label, from `compute_repeat_factors`.
      seed: a stateless seed [2].
    """
    labels = tf.io.parse_example(records, _LABELS)["image/object/class/label"]
    # The factor of an image without objects is 1.
    weights = tf.reduce_max(tf.gather(tf.constant(factors, tf.int64), labels), axis=1)
    weights = tf.maximum(weights, UNIT)
    ends, count = tf.cumsum(weights), tf.size(records, tf.int64)
    offset = tf.random.stateless_uniform([], seed, 0, ends[-1], tf.int64)
    # Point k lies at (offset + k * sum) / N; record i covers the points in [ends[i-1], ends[i]).
    points = offset + tf.range(count) * ends[-1]
    indices = tf.searchsorted(ends * count, points, side="right")
    first = tf.searchsorted(indices, indices, side="left")
    return Appearances(indices, tf.range(count) - tf.cast(first, tf.int64))
