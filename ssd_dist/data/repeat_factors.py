"""Repeats the images of rare classes (Gupta et al. 2019, section 4.1) without changing the length of an epoch.

    r(class) = max(1, sqrt(threshold / share of the images with the class)),  r(image) = max over its classes

The records of a shard, or of each block of a large one, are resampled with the weights r(image), as many as before.
Steps, shards and manifests therefore do not depend on the threshold.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

# Factors are stored as integers, because the sum of integers does not depend on the order of the additions.
UNIT = 2**16
# An image of a class that occurs once, which is often a labeling error, must not fill an epoch.
LARGEST_FACTOR = 4.0
_INTS = tf.io.RaggedFeature(tf.int64)
_LABELS, _IS_CROWD = "image/object/class/label", "image/object/is_crowd"


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
    # A class without images has a factor of 1.
    ratios = [threshold * images / count if count else 1.0 for count in images_per_class.values()]
    factors = [min(math.sqrt(max(ratio, 1.0)), LARGEST_FACTOR) for ratio in ratios]
    return (UNIT, *(round(UNIT * factor) for factor in factors)) if max(factors, default=1.0) > 1.0 else ()


def resample(records: tf.Tensor, factors: Sequence[int], seed: tf.Tensor) -> Appearances:
    """Chooses as many appearances as there are records, in the order of the records.

    Systematic sampling: a record with the share p of the sum of all factors appears floor(N p) or ceil(N p) times, and
    N p times on average.

    Args:
      records: serialized records, string [N].
      factors: the repeat factor of each label, from `compute_repeat_factors`.
      seed: a stateless seed [2].
    """
    objects = tf.io.parse_example(records, {_LABELS: _INTS, _IS_CROWD: _INTS})
    # Training ignores crowds; label 0 has a factor of 1.
    labels = objects[_LABELS] * tf.cast(objects[_IS_CROWD] == 0, tf.int64)
    # Without objects, the maximum is the lowest integer.
    weights = tf.maximum(tf.reduce_max(tf.gather(tf.constant(factors, tf.int64), labels), axis=1), UNIT)
    ends, count = tf.cumsum(weights), tf.size(records, tf.int64)
    offset = tf.random.stateless_uniform([], seed, 0, ends[-1], tf.int64)
    # Point k lies at (offset + k * sum) / N; record i covers the points in [ends[i-1], ends[i]).
    points = offset + tf.range(count) * ends[-1]
    indices = tf.searchsorted(ends * count, points, side="right")
    first = tf.searchsorted(indices, indices, side="left")
    return Appearances(indices, tf.range(count) - tf.cast(first, tf.int64))
