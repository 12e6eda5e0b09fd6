"""Fixed-point sums over parts and replicas: no order and no division between replicas changes a bit."""

import math
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from support.replicas import collect_rows, mirrored, share_rows, trace

from ssd_dist.training.part_sums import choose_units, create_part_sums, sum_in_units

SIZE, SUMMANDS = 300, 12
RNG = np.random.default_rng(7)
# Gradients of one parameter group differ by many orders of magnitude.
WIDE = (RNG.standard_normal((SUMMANDS, SIZE)) * 2.0 ** RNG.integers(-60, 10, (SUMMANDS, SIZE))).astype(np.float32)
FLOAT32_MAX, SMALLEST = np.finfo(np.float32).max, np.float32(2.0**-149)


def sum_parts(rows: np.ndarray, replicas: int, is_exact: bool = True) -> np.ndarray:
    """Returns the float32 sum [size] of rows [summands, size], divided equally between replicas, on each replica."""
    strategy = mirrored(replicas)
    parts, size = len(rows) // replicas, rows.shape[1]
    with strategy.scope():
        sums = create_part_sums(strategy, [size, 1], parts, is_exact)

    def run(mine: tf.Tensor) -> tf.Tensor:
        for part in range(parts):
            sums.add(tf.constant(part), [mine[part], tf.ones([1])])
        vector, count = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums.take())
        tf.debugging.assert_equal(count, tf.cast([len(rows)], count.dtype))
        return tf.cast(vector, tf.float32)[None]

    return collect_rows(strategy, trace(run, replicas)(share_rows(strategy, rows)))


@pytest.mark.usefixtures("four_cpus")
def test_every_order_and_every_division_between_replicas_gives_the_same_bits() -> None:
    (expected,) = sum_parts(WIDE, 1)
    for replicas in (1, 2, 4):
        for copy in sum_parts(WIDE[RNG.permutation(SUMMANDS)], replicas):
            np.testing.assert_array_equal(copy, expected)
    # Plain float32 sums of the same values depend on the order.
    assert np.any(sum_parts(WIDE[::-1], 1, is_exact=False) != sum_parts(WIDE, 1, is_exact=False))


@pytest.mark.usefixtures("four_cpus")
def test_the_sum_is_nearer_to_the_true_sum_than_float32_can_express() -> None:
    total = sum_parts(WIDE, 2)[0]
    # Each summand is rounded to the unit, about 2^-49 of the largest value; the total is rounded to float32.
    unit = float(choose_units(tf.constant(np.abs(WIDE).max()), SUMMANDS))
    for column, value in zip(WIDE.T, total, strict=True):
        true = math.fsum(column.tolist())
        assert abs(float(value) - true) <= SUMMANDS * unit / 2 + abs(true) * 2.0**-24


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize("is_exact", [True, False])
def test_elements_that_are_not_finite_stay_so_and_change_no_other(is_exact: bool) -> None:
    broken = WIDE.copy()
    broken[5, 10], broken[7, 20], broken[2, 30], broken[3, 30] = np.nan, np.inf, np.inf, -np.inf
    total, expected = (sum_parts(rows, 2, is_exact)[0] for rows in (broken, WIDE))
    changed = [10, 20, 30]
    assert np.isnan(total[10])
    assert np.isposinf(total[20])
    assert np.isnan(total[30])
    np.testing.assert_array_equal(np.delete(total, changed), np.delete(expected, changed))


@pytest.mark.parametrize("summands", [1, 2, 3, 64, 1000])
@pytest.mark.parametrize("largest", [0.0, SMALLEST, 2.0**-126, 1e-30, 0.75, 1.0, 3.5, 1e30, FLOAT32_MAX])
def test_sums_of_the_largest_value_are_exact_in_float64(largest: float, summands: int) -> None:
    unit = Fraction(float(choose_units(tf.constant(largest, tf.float32), summands)))
    assert unit > 0
    assert summands * Fraction(float(np.float32(largest))) / unit <= 2**53
    # With half of the unit, the largest values of this exponent would be too large.
    if unit > Fraction(2) ** -126:
        assert 2 * (1 << (summands - 1).bit_length()) * Fraction(float(np.float32(largest))) / unit > 2**52


def test_rows_are_rounded_to_the_unit_as_python_rounds_fractions() -> None:
    unit = 2.0**-10
    total = sum_in_units(tf.constant(WIDE), tf.constant(unit)).numpy()
    for column, value in zip(WIDE.T, total, strict=True):
        assert Fraction(float(value)) == sum(round(Fraction(float(x)) / Fraction(unit)) for x in column) * Fraction(
            unit
        )
