"""Mixed precision: when the scale moves, how far, and what stays float32."""

from types import SimpleNamespace

import pytest
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import AmpConfig
from ssd_dist.training.divergence import OverflowReport
from ssd_dist.training.precision import AMPContext, LossScale, PrecisionConfig


def state_of(scale: LossScale) -> tuple[float, int, int]:
    return float(scale.scale), int(scale.good_steps), int(scale.skipped_steps)


def test_an_overflow_halves_and_restarts_the_count():
    scale = LossScale(1024.0, dynamic=True)
    for _ in range(5):
        scale.update(tf.constant(True))
    assert state_of(scale) == (1024.0, 5, 0)
    scale.update(tf.constant(False))
    assert state_of(scale) == (512.0, 0, 1)
    scale.update(tf.constant(False))
    assert state_of(scale) == (256.0, 0, 2)


def test_two_thousand_good_steps_in_a_row_double():
    scale = LossScale(8.0, dynamic=True)
    update = tf.function(scale.update)
    for _ in range(1999):
        update(tf.constant(True))
    assert state_of(scale) == (8.0, 1999, 0)
    update(tf.constant(True))
    assert state_of(scale) == (16.0, 0, 0)


def test_an_overflow_before_that_starts_the_wait_anew():
    scale = LossScale(8.0, dynamic=True)
    scale.good_steps.assign(1998)
    for finite in (True, False, True):
        scale.update(tf.constant(finite))
    assert state_of(scale) == (4.0, 1, 1)


def test_the_scale_stays_within_1_and_2_to_the_24():
    low = LossScale(1.0, dynamic=True)
    low.update(tf.constant(False))
    assert state_of(low) == (1.0, 0, 1)
    high = LossScale(2.0**24, dynamic=True)
    high.good_steps.assign(1999)
    high.update(tf.constant(True))
    assert state_of(high) == (2.0**24, 0, 0)


def test_a_fixed_scale_counts_skipped_steps_and_stays():
    scale = LossScale(128.0, dynamic=False)
    for finite in (True, False, False, True):
        scale.update(tf.constant(finite))
    assert state_of(scale) == (128.0, 0, 2)


@pytest.mark.parametrize(
    ("config", "policy", "initial", "dynamic"),
    [
        (AmpConfig(), "float32", 1.0, False),
        (AmpConfig(enabled=True), "mixed_float16", 2.0**15, True),
        (AmpConfig(enabled=True, loss_scale=64.0), "mixed_float16", 64.0, False),
        # bfloat16 has the range of float32: nothing to scale.
        (AmpConfig(enabled=True, policy="mixed_bfloat16"), "mixed_bfloat16", 1.0, False),
        (AmpConfig(policy="mixed_bfloat16"), "float32", 1.0, False),
    ],
)
def test_the_context_follows_the_config(config, policy, initial, dynamic):
    context = AMPContext(config)
    assert context.policy == policy
    scale = context.create_loss_scale()
    assert float(scale.scale) == initial
    scale.update(tf.constant(False))
    assert (float(scale.scale) < initial) == dynamic


def test_install_sets_the_keras_policy():
    before = tf_keras.mixed_precision.global_policy()
    try:
        AMPContext(AmpConfig(enabled=True)).install()
        layer = tf_keras.layers.Dense(2)
        assert layer(tf.zeros([1, 3])).dtype == tf.float16
        assert layer.kernel.dtype == tf.float32
        AMPContext(AmpConfig()).install()
        assert tf_keras.layers.Dense(2)(tf.zeros([1, 3])).dtype == tf.float32
    finally:
        tf_keras.mixed_precision.set_global_policy(before)


def test_only_the_named_ops_are_forced():
    precision = PrecisionConfig(("loss", "nms"))
    half = tf.zeros([2], tf.float16)
    assert precision.should_force_fp32("loss")
    assert not precision.should_force_fp32("mining")
    assert precision.cast("nms", half).dtype == tf.float32
    assert precision.cast("decode", half).dtype == tf.float16
    assert set(AmpConfig().force_fp32) == {"loss", "iou", "decode", "nms", "mining"}


def test_overflows_are_told_where_the_scale_can_fall_no_further():
    scale, said = LossScale(4.0, dynamic=True), []
    run = SimpleNamespace(
        state=SimpleNamespace(loss_scale=scale),
        progress=SimpleNamespace(say=said.append),
        overflows_are_usual=True,
    )
    report = OverflowReport(run)
    for step, overflows, lines in ((10, 1, 0), (20, 3, 1), (30, 0, 1), (40, 2, 2)):
        for _ in range(overflows):
            scale.update(tf.constant(False))
        report.look(step)
        assert len(said) == lines, said
    assert "step 20" in said[0]
    assert "3 steps overflowed" in said[0]
    assert "floor, 1:" in said[0]
    assert "2 steps overflowed" in said[1]
