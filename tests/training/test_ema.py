"""The moving average of the weights equals its formula; `eval_context` restores the weights bit for bit."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference_training import ema_decay_reference, ema_reference
from support.replicas import copies, mirrored

from ssd_dist.core.config import EmaConfig
from ssd_dist.training.ema import ExponentialMovingAverage, ema_decay
from ssd_dist.training.parameter_groups import ParameterGroup

pytestmark = pytest.mark.usefixtures("four_cpus")

SHAPES = ((2, 3), (4,), ())


def create_groups(rng: np.random.Generator) -> tuple[ParameterGroup, ParameterGroup]:
    variables = [tf.Variable(rng.normal(size=shape).astype(np.float32)) for shape in SHAPES]
    return (
        ParameterGroup("kernels", tuple(variables[:1]), 1.0, 0.0),
        ParameterGroup("vectors", tuple(variables[1:]), 1.0, 0.0),
    )


def flat_weights(groups) -> np.ndarray:
    return np.concatenate([group.pack().numpy() for group in groups])


def flat_averages(ema, groups) -> np.ndarray:
    return np.concatenate([ema.averages[group.name].numpy() for group in groups])


def change_weights(groups, rng: np.random.Generator) -> None:
    for group in groups:
        for variable in group.variables:
            variable.assign_add(rng.normal(size=variable.shape).astype(np.float32))


@settings(deadline=None, max_examples=40)
@given(
    decay=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    update_every=st.integers(1, 4),
    warmup=st.integers(0, 7),
    seed=st.integers(0, 99),
)
def test_the_average_equals_the_reference(decay, update_every, warmup, seed):
    rng = np.random.default_rng(seed)
    groups = create_groups(rng)
    config = EmaConfig(decay=decay, update_every=update_every, warmup_steps=warmup)
    ema = ExponentialMovingAverage(groups, config)
    initial, trajectory, averages = flat_weights(groups), [], []
    for step in range(1, 16):
        change_weights(groups, rng)
        trajectory.append(flat_weights(groups))
        ema.update(tf.constant(step, tf.int64), [group.pack() for group in groups])
        averages.append(flat_averages(ema, groups))
    expected = ema_reference(initial, trajectory, decay, update_every, warmup)
    np.testing.assert_allclose(averages, expected, rtol=1e-5, atol=1e-5)


def test_the_average_equals_values_computed_by_hand():
    # The weight changes from 0 to 1. Decays 1/10, 2/11, 3/12 give 0.9, 1 - 0.1 x 2/11, 1 - 0.1 x 2/11 x 1/4.
    weight = tf.Variable([0.0])
    ema = ExponentialMovingAverage([ParameterGroup("g", (weight,), 1.0, 0.0)], EmaConfig(decay=0.999))
    weight.assign([1.0])
    for step, expected in enumerate([0.9, 1 - 0.2 / 11, 1 - 0.05 / 11], start=1):
        ema.update(tf.constant(step, tf.int64), [weight])
        assert float(ema.averages["g"][0]) == pytest.approx(expected, rel=1e-6)
    assert int(ema.updates) == 3


@settings(deadline=None, max_examples=30)
@given(updates=st.integers(0, 10**6), decay=st.floats(0, 0.9999))
def test_decay_equals_the_formula(updates, decay):
    expected = ema_decay_reference(updates, decay)
    assert float(ema_decay(tf.constant(updates, tf.int64), decay)) == pytest.approx(expected, rel=1e-6)


def test_during_warmup_the_average_equals_the_weights():
    rng = np.random.default_rng(0)
    groups = create_groups(rng)
    ema = ExponentialMovingAverage(groups, EmaConfig(warmup_steps=3))
    for step in range(1, 4):
        change_weights(groups, rng)
        ema.update(tf.constant(step, tf.int64), [group.pack() for group in groups])
        np.testing.assert_allclose(flat_averages(ema, groups), flat_weights(groups), rtol=1e-6, atol=1e-7)
    assert int(ema.updates) == 0


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("replicas", [1, 2])
def test_eval_context_swaps_and_restores_bit_for_bit(replicas, error):
    # Swapping by adding and subtracting would change the last bit of half of the weights.
    rng = np.random.default_rng(1)
    strategy = mirrored(replicas)
    with strategy.scope():
        groups = create_groups(rng)
        ema = ExponentialMovingAverage(groups, EmaConfig())
        for group in groups:
            ema.averages[group.name].assign(rng.normal(size=group.size).astype(np.float32))
    variables = [variable for group in groups for variable in group.variables]
    before = [copies(strategy, variable) for variable in variables]
    averages = {group.name: ema.averages[group.name].numpy() for group in groups}

    def evaluate() -> None:
        with ema.eval_context():
            for group in groups:
                parts = group.unpack(tf.constant(averages[group.name]))
                for variable, part in zip(group.variables, parts, strict=True):
                    for copy in copies(strategy, variable):
                        np.testing.assert_array_equal(copy, part)
            if error is not None:
                raise error

    if error is None:
        evaluate()
    else:
        with pytest.raises(error):
            evaluate()
    for variable, values in zip(variables, before, strict=True):
        np.testing.assert_array_equal(copies(strategy, variable), values)
    for group in groups:
        np.testing.assert_array_equal(ema.averages[group.name], averages[group.name])


def test_a_swap_that_fails_halfway_is_undone(monkeypatch):
    groups = create_groups(np.random.default_rng(2))
    ema = ExponentialMovingAverage(groups, EmaConfig())
    ema.averages["kernels"].assign(tf.zeros([6]))
    before = flat_weights(groups)

    def fail(*_):
        raise RuntimeError("halfway")

    with monkeypatch.context() as patch:
        patch.setattr(
            type(groups[1]), "unpack", lambda group, flat: fail() if group is groups[1] else [tf.zeros([2, 3])]
        )
        with pytest.raises(RuntimeError, match="halfway"), ema.eval_context():
            raise AssertionError("not reached")
    np.testing.assert_array_equal(flat_weights(groups), before)


def test_assign_to_model_is_permanent():
    groups = create_groups(np.random.default_rng(3))
    ema = ExponentialMovingAverage(groups, EmaConfig())
    for group in groups:
        ema.averages[group.name].assign(tf.range(group.size, dtype=tf.float32))
    ema.assign_to_model()
    np.testing.assert_array_equal(flat_weights(groups), flat_averages(ema, groups))


@pytest.mark.parametrize("update_every", [1, 2])
def test_each_replica_keeps_the_same_average_bit_for_bit(update_every):
    # The averages must be updated once per step, not once per replica.
    rng = np.random.default_rng(4)
    strategy = mirrored(2)
    with strategy.scope():
        groups = create_groups(rng)
        ema = ExponentialMovingAverage(groups, EmaConfig(decay=0.9, update_every=update_every))

    def update_all(step):
        strategy.extended.update(
            ema.updates, lambda _, s: ema.update(s, [group.pack() for group in groups]), args=(step,), group=True
        )

    def replica_step(step):
        tf.distribute.get_replica_context().merge_call(lambda _, s: update_all(s), args=(step,))

    run = tf.function(lambda step: strategy.run(partial(replica_step, step)))
    initial, trajectory = flat_weights(groups), []
    for step in range(1, 7):
        change_weights(groups, rng)
        trajectory.append(flat_weights(groups))
        run(tf.constant(step, tf.int64))
    expected = ema_reference(initial, trajectory, 0.9, update_every)[-1]
    np.testing.assert_allclose(flat_averages(ema, groups), expected, rtol=1e-5, atol=1e-6)
    for group in groups:
        first, second = copies(strategy, ema.averages[group.name])
        np.testing.assert_array_equal(first, second)
    assert [int(copy) for copy in copies(strategy, ema.updates)] == [6 // update_every] * 2
