"""The learning-rate schedule equals its formula."""

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference_training import learning_rate_reference

from ssd_dist.core.config import ScheduleConfig
from ssd_dist.training.schedule import CosineWarmupSchedule


def rate_at(step: int, base_lr=1e-3, total=1000, warmup=100, min_lr=1e-5) -> float:
    schedule = CosineWarmupSchedule(base_lr, total, ScheduleConfig(warmup_steps=warmup, min_lr=min_lr))
    return float(schedule(tf.constant(step, tf.int64)))


@settings(deadline=None, max_examples=100)
@given(data=st.data(), total=st.integers(1, 100_000), base_lr=st.floats(1e-6, 10), share=st.floats(0, 1))
def test_the_rate_equals_the_reference(data, total, base_lr, share):
    warmup = data.draw(st.integers(0, total))
    step = data.draw(st.integers(0, total + 10))
    expected = learning_rate_reference(step, base_lr, base_lr * share, warmup, total)
    # Near the end the cosine is a difference of nearly equal numbers of the size of base_lr.
    assert rate_at(step, base_lr, total, warmup, base_lr * share) == pytest.approx(
        expected, rel=1e-5, abs=1e-6 * base_lr
    )


def test_the_rate_equals_values_computed_by_hand():
    assert rate_at(0) == pytest.approx(1e-5)  # the first update already has a hundredth of the rate
    assert rate_at(49) == pytest.approx(5e-4)
    assert [rate_at(99), rate_at(100)] == pytest.approx([1e-3, 1e-3])  # end of the warm-up, start of the cosine
    assert rate_at(550) == pytest.approx((1e-3 + 1e-5) / 2)  # the middle of the cosine
    assert rate_at(1000) == pytest.approx(1e-5)
    assert rate_at(5000) == pytest.approx(1e-5)  # constant after the last step
    assert rate_at(0, warmup=0) == pytest.approx(1e-3)


def test_the_rate_rises_then_falls():
    rates = [rate_at(step, total=60, warmup=20) for step in range(61)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[19:] == sorted(rates[19:], reverse=True)


def test_a_run_shorter_than_its_warmup_reaches_the_base_rate():
    rates = [rate_at(step, total=7, warmup=100) for step in range(7)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(1e-3)
