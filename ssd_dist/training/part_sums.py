"""Sums vectors over the parts of a step: float32 sums, or fixed-point sums whose order has no effect.

    vectors of part 1, 2, ... of this replica -> take -> all-reduce over replicas (optimizer) -> float32

The sum of several floating-point numbers depends on their order, because each addition rounds. Fixed-point numbers with
a common unit are added without rounding, so all orders and all divisions between replicas give the same bits (Demmel
and Nguyen 2015, "Parallel reproducible summation", with one unit instead of several bins). The unit of a vector follows
from its largest value in all parts of all replicas and from the number of summands. Float64 represents these numbers
exactly, and every collective adds float64.
"""

from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf

# Bits of a float64 integer, and of the fraction of a float32.
_FLOAT64_BITS, _FLOAT32_FRACTION_BITS = 53, 23
_LARGEST_EXPONENT = 254


class PartSums(Protocol):
    """Sums of vectors over the parts of a step, separately on each replica."""

    def add(self, part: tf.Tensor, vectors: Sequence[tf.Tensor]) -> None:
        """Adds the float32 vectors of part `part`, an int32 scalar from 0; call in replica context."""

    def take(self) -> list[tf.Tensor]:
        """Returns the sums over all parts, to be summed over replicas; call in replica context."""


class FloatSums:
    """Sums in float32, in the order of the parts. Create it in strategy scope."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Creates sums for vectors of these sizes."""
        self._sums = [_create_variable([size]) for size in sizes]

    def add(self, part: tf.Tensor, vectors: Sequence[tf.Tensor]) -> None:
        """See `PartSums`."""
        for total, vector in zip(self._sums, vectors, strict=True):
            total.assign(tf.where(part == 0, vector, total + vector))

    def take(self) -> list[tf.Tensor]:
        """See `PartSums`."""
        return [tf.identity(total) for total in self._sums]


class PartRows:
    """One float32 tensor for each part of a step, on each replica. Create it in strategy scope."""

    def __init__(self, strategy: tf.distribute.Strategy, parts: int, shape: Sequence[int]) -> None:
        """Creates zeros for `parts` tensors of shape `shape`."""
        # TensorFlow assigns single rows only to plain variables, so each replica uses its own copy directly.
        self._copies = strategy.experimental_local_results(_create_variable([parts, *shape]))

    def assign(self, part: tf.Tensor, value: tf.Tensor) -> None:
        """Stores the tensor of a part; call in replica context."""
        self._find_copy()[part].assign(value)

    def read(self) -> tf.Tensor:
        """Returns the tensors of all parts, [parts, ...]; call in replica context."""
        return self._find_copy().read_value()

    def _find_copy(self) -> tf.Variable:
        replica = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
        return self._copies[replica % len(self._copies)]


class FixedPointSums:
    """Fixed-point sums: values are rounded to a common unit and then added exactly, so the order has no effect.

    Keeps the vectors of all parts in memory until `take`. Create it in strategy scope.
    """

    def __init__(self, strategy: tf.distribute.Strategy, sizes: Sequence[int], parts: int) -> None:
        """Creates sums for vectors of these sizes in `parts` parts of each replica."""
        self._summands = parts * strategy.num_replicas_in_sync
        self._vectors = [PartRows(strategy, parts, [size]) for size in sizes]
        self._largest = PartRows(strategy, parts, [len(sizes)])

    def add(self, part: tf.Tensor, vectors: Sequence[tf.Tensor]) -> None:
        """See `PartSums`."""
        for rows, vector in zip(self._vectors, vectors, strict=True):
            rows.assign(part, vector)
        self._largest.assign(part, tf.stack([find_largest(vector) for vector in vectors]))

    def take(self) -> list[tf.Tensor]:
        """See `PartSums`."""
        largest = max_over_replicas(tf.reduce_max(self._largest.read(), axis=0))
        units = tf.unstack(choose_units(largest, self._summands))
        return [sum_in_units(rows.read(), unit) for rows, unit in zip(self._vectors, units, strict=True)]


def create_part_sums(strategy: tf.distribute.Strategy, sizes: Sequence[int], parts: int, is_exact: bool) -> PartSums:
    """Creates sums of vectors of these sizes over the parts of each replica; call in strategy scope."""
    return FixedPointSums(strategy, sizes, parts) if is_exact else FloatSums(sizes)


def find_largest(vector: tf.Tensor) -> tf.Tensor:
    """Returns the largest absolute value of the finite elements; 0 if there are none."""
    return tf.reduce_max(tf.where(tf.math.is_finite(vector), tf.abs(vector), 0.0)) if vector.shape[0] else tf.zeros([])


def max_over_replicas(values: tf.Tensor) -> tf.Tensor:
    """Returns the elementwise maximum of non-negative values over all replicas, by an all-reduce that can only add."""
    context = tf.distribute.get_replica_context()
    replica = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
    return tf.reduce_max(context.all_reduce(tf.distribute.ReduceOp.SUM, replica[:, None] * values[None]), axis=0)


def choose_units(largest: tf.Tensor, summands: int) -> tf.Tensor:
    """Returns the units in which sums of `summands` values of at most `largest` are exact in float64.

    Args:
      largest: float32 tensor, finite and not negative.
      summands: number of values of each sum.

    Returns:
      Float32 powers of two, at least 2^-126. One value is less than 2^53 / summands units.
    """
    # The biased exponent e of a float32: the value is below 2^(e - 126).
    exponent = tf.bitwise.right_shift(tf.bitcast(largest, tf.int32), _FLOAT32_FRACTION_BITS)
    bits = _FLOAT64_BITS - (summands - 1).bit_length()
    return _power_of_two(tf.clip_by_value(exponent + 1 - bits, 1, _LARGEST_EXPONENT))


def sum_in_units(rows: tf.Tensor, unit: tf.Tensor) -> tf.Tensor:
    """Sums float32 rows [parts, size], rounded to multiples of `unit`, without further rounding.

    Returns:
      Float64 [size]; elements that are not finite in any row stay so.
    """
    # A product with a power of two is exact; a float32 of more than 2^24 units is already a multiple of one.
    inverse = 1.0 / unit

    def add_row(part: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return part + 1, total + tf.cast(tf.round(rows[part] * inverse), tf.float64)

    _, total = tf.while_loop(
        lambda part, _: part < rows.shape[0],
        add_row,
        [tf.constant(0), tf.zeros([rows.shape[1]], tf.float64)],
        parallel_iterations=1,
    )
    return total * tf.cast(unit, tf.float64)


def round_for_exact_sum(losses: tf.Tensor) -> tf.Tensor:
    """Rounds float64 losses to multiples of 2^-30: sums below 2^23 are then exact, whatever their order."""
    return tf.round(losses * 2.0**30) / 2.0**30


def _power_of_two(biased_exponent: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.bitwise.left_shift(biased_exponent, _FLOAT32_FRACTION_BITS), tf.float32)


def _create_variable(shape: Sequence[int]) -> tf.Variable:
    """Creates a variable with a value of its own on each replica; it is not part of a checkpoint."""
    return tf.Variable(
        tf.zeros(shape),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )
