"""Mixed precision: the Keras policy, how the loss scale changes, and which ops compute in float32."""

import pytest
import tensorflow as tf
import tf_keras
from support.fake_run import RecordedProgress

from ssd_dist.core.config import AmpConfig, OptimizerConfig
from ssd_dist.training.divergence import OverflowMonitor
from ssd_dist.training.loss_scale import LossScale, LossScaleOptimizer
from ssd_dist.training.optimizer import PackedOptimizer
from ssd_dist.training.parameter_groups import ParameterGroup
from ssd_dist.training.precision import AMPContext, PrecisionConfig


def values_of(scale: LossScale) -> tuple[float, int, int]:
    return float(scale.scale), int(scale.good_steps), int(scale.skipped_steps)


def test_an_overflow_halves_the_scale_and_resets_the_count():
    scale = LossScale(1024.0, dynamic=True)
    for _ in range(5):
        scale.update(tf.constant(True))
    assert values_of(scale) == (1024.0, 5, 0)
    scale.update(tf.constant(False))
    assert values_of(scale) == (512.0, 0, 1)
    scale.update(tf.constant(False))
    assert values_of(scale) == (256.0, 0, 2)


def test_two_thousand_consecutive_good_steps_double_the_scale():
    scale = LossScale(8.0, dynamic=True)
    update = tf.function(scale.update)
    for _ in range(1999):
        update(tf.constant(True))
    assert values_of(scale) == (8.0, 1999, 0)
    update(tf.constant(True))
    assert values_of(scale) == (16.0, 0, 0)


def test_an_overflow_before_two_thousand_good_steps_restarts_the_count():
    scale = LossScale(8.0, dynamic=True)
    scale.good_steps.assign(1998)
    for finite in (True, False, True):
        scale.update(tf.constant(finite))
    assert values_of(scale) == (4.0, 1, 1)


def test_the_scale_stays_between_1_and_2_to_the_24():
    low = LossScale(1.0, dynamic=True)
    low.update(tf.constant(False))
    assert values_of(low) == (1.0, 0, 1)
    high = LossScale(2.0**24, dynamic=True)
    high.good_steps.assign(1999)
    high.update(tf.constant(True))
    assert values_of(high) == (2.0**24, 0, 0)


def test_a_fixed_scale_counts_skipped_steps_and_does_not_change():
    scale = LossScale(128.0, dynamic=False)
    for finite in (True, False, False, True):
        scale.update(tf.constant(finite))
    assert values_of(scale) == (128.0, 0, 2)


def create_optimizer() -> PackedOptimizer:
    group = ParameterGroup("kernels", (tf.Variable([1.0]),), 1.0, 0.0)
    return PackedOptimizer([group], OptimizerConfig(), lambda _: tf.constant(0.1))


@pytest.mark.parametrize(
    ("config", "policy", "initial", "dynamic", "overflow_is_expected"),
    [
        (AmpConfig(), "float32", 1.0, False, False),
        (AmpConfig(enabled=True), "mixed_float16", 2.0**15, True, True),
        (AmpConfig(enabled=True, loss_scale=64.0), "mixed_float16", 64.0, False, True),
        # bfloat16 has the range of float32 and needs no scale.
        (AmpConfig(enabled=True, policy="mixed_bfloat16"), "mixed_bfloat16", 1.0, False, False),
        (AmpConfig(policy="mixed_bfloat16"), "float32", 1.0, False, False),
    ],
)
def test_amp_context_follows_the_config(config, policy, initial, dynamic, overflow_is_expected):
    context = AMPContext(config)
    assert context.policy == policy
    assert context.overflow_is_expected == overflow_is_expected
    inner = create_optimizer()
    optimizer = context.wrap_optimizer(inner)
    assert isinstance(optimizer, LossScaleOptimizer)
    assert optimizer.inner_optimizer is inner
    assert float(optimizer.loss_scale.scale) == initial
    assert float(optimizer.scale_loss(tf.constant(3.0))) == 3.0 * initial
    optimizer.loss_scale.update(tf.constant(False))
    assert (float(optimizer.loss_scale.scale) < initial) == dynamic


def test_setup_policy_sets_the_keras_policy():
    before = tf_keras.mixed_precision.global_policy()
    try:
        AMPContext(AmpConfig(enabled=True)).setup_policy()
        layer = tf_keras.layers.Dense(2)
        assert layer(tf.zeros([1, 3])).dtype == tf.float16
        assert layer.kernel.dtype == tf.float32
        AMPContext(AmpConfig()).setup_policy()
        assert tf_keras.layers.Dense(2)(tf.zeros([1, 3])).dtype == tf.float32
    finally:
        tf_keras.mixed_precision.set_global_policy(before)


def test_the_loss_computes_in_float32_if_listed_and_the_other_ops_always_do():
    before = tf_keras.mixed_precision.global_policy()
    heads = tf.zeros([2], tf.float32)  # the output layers of the detector are float32 under every policy
    try:
        for name, width in (("float32", tf.float32), ("mixed_float16", tf.float16), ("mixed_bfloat16", tf.bfloat16)):
            tf_keras.mixed_precision.set_global_policy(name)
            assert PrecisionConfig(("loss",)).cast("loss", heads).dtype == tf.float32
            assert PrecisionConfig(()).cast("loss", heads).dtype == width
            for op in ("iou", "decode", "nms", "mining"):
                assert PrecisionConfig(()).should_force_fp32(op)
                assert PrecisionConfig(()).cast(op, tf.zeros([2], tf.float16)).dtype == tf.float32
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    # Without a mixed policy, an unlisted loss keeps its type: the float64 tests of the gradient rely on it.
    assert PrecisionConfig(()).cast("loss", tf.zeros([2], tf.float64)).dtype == tf.float64


def test_overflows_at_the_minimal_scale_are_reported():
    scale, progress = LossScale(4.0, dynamic=True), RecordedProgress()
    monitor = OverflowMonitor(scale, progress)
    for step, overflows, lines in ((10, 1, 0), (20, 3, 1), (30, 0, 1), (40, 2, 2)):
        for _ in range(overflows):
            scale.update(tf.constant(False))
        monitor.check(step)
        assert len(progress.lines) == lines, progress.lines
    first, second = progress.lines
    assert first.startswith("step 20  warning: gradients of 3 steps overflowed")
    assert "its minimum, 1;" in first
    assert "gradients of 2 steps overflowed" in second
