"""Mining selects the same anchors as a full sort, per image and over all replicas."""

from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference_training import mine_global_reference, mine_per_image_reference, negative_quota_reference
from support.replicas import collect_rows, mirrored, share_rows, trace

from ssd_dist.core.config import MiningConfig
from ssd_dist.training.mining import mine_global, mine_per_image
from ssd_dist.training.targets import negative_quota

pytestmark = pytest.mark.usefixtures("four_cpus")

IMAGES, ANCHORS = 4, 12
TINY = np.float32(1.1754944e-38)
# Ties, negative values, values that differ in the last bit or only in the low digits of the select, and extremes.
EDGE_VALUES = [
    0.0, 1.0, -1.0, 2.5, -2.5, float(np.nextafter(np.float32(1), np.float32(2))), 1.0 + 2.0**-12, 1.0 + 2.0**-20,
    float(TINY), -float(TINY), 3.4e38, -3.4e38, float("inf"), float("-inf"),
]  # fmt: skip


@st.composite
def batches(draw: st.DrawFn, values=EDGE_VALUES):
    """Draws losses [B, A], candidates [B, A] and positives [B], with ties and rows without any candidate."""
    cells = IMAGES * ANCHORS
    numbers = st.one_of(st.sampled_from(values), st.floats(-10, 10, width=32, allow_subnormal=False))
    losses = np.array(draw(st.lists(numbers, min_size=cells, max_size=cells)), np.float32).reshape(IMAGES, ANCHORS)
    candidates = np.array(draw(st.lists(st.booleans(), min_size=cells, max_size=cells))).reshape(IMAGES, ANCHORS)
    positives = draw(st.lists(st.integers(0, 5), min_size=IMAGES, max_size=IMAGES))
    return losses, candidates, np.array(positives, np.int32)


@cache
def traced_per_image():
    return tf.function(mine_per_image)


@cache
def traced_global(replicas: int, images: int = IMAGES):
    def choose(losses, candidates, positions, quota):
        return mine_global(losses, candidates, quota, positions, images)

    return trace(choose, replicas)


def run_global(replicas: int, losses, candidates, quota: int, positions=None) -> np.ndarray:
    """Mines on `replicas` replicas and returns the rows in their original order."""
    strategy = mirrored(replicas)
    positions = np.arange(len(losses), dtype=np.int32) if positions is None else positions
    shared = share_rows(strategy, (losses, candidates, positions))
    chosen = traced_global(replicas, len(losses))(*shared, tf.constant(quota, tf.int32))
    return collect_rows(strategy, chosen)


@settings(deadline=None, max_examples=100)
@given(batch=batches(), ratio=st.sampled_from([0.0, 0.5, 3.0, 1e4]), minimum=st.integers(0, 4))
def test_per_image_equals_a_full_sort(batch, ratio, minimum):
    losses, candidates, positives = batch
    quota = negative_quota(
        tf.constant(positives),
        tf.constant(candidates.sum(1), tf.int32),
        MiningConfig(ratio=ratio, min_negatives_per_image=minimum),
    )
    chosen = traced_per_image()(tf.constant(losses), tf.constant(candidates), quota)
    np.testing.assert_array_equal(
        chosen, mine_per_image_reference(losses, candidates, positives.tolist(), ratio, minimum)
    )


@pytest.mark.parametrize("replicas", [1, 2, 4])
@settings(deadline=None, max_examples=50)
@given(batch=batches(), ratio=st.sampled_from([0.0, 0.5, 3.0, 1e4]), minimum=st.integers(0, 4), data=st.data())
def test_global_equals_a_full_sort_on_any_number_of_replicas(replicas, batch, ratio, minimum, data):
    losses, candidates, positives = batch
    quota = negative_quota_reference(int(positives.sum()), int(candidates.sum()), ratio, minimum, IMAGES)
    # The position of an image in the global batch differs from the order in which replicas hold the images.
    positions = np.array(data.draw(st.permutations(range(IMAGES))), np.int32)
    chosen = run_global(replicas, losses[positions], candidates[positions], quota, positions)
    expected = mine_global_reference(losses, candidates, positives.tolist(), ratio, minimum)
    np.testing.assert_array_equal(chosen, expected[positions])


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("quota", [0, 1, 7, 48])
def test_ties_are_broken_by_image_then_anchor(replicas, quota):
    losses = np.full((IMAGES, ANCHORS), 0.25, np.float32)
    chosen = run_global(replicas, losses, np.ones_like(losses, bool), quota)
    np.testing.assert_array_equal(chosen.ravel(), np.arange(IMAGES * ANCHORS) < quota)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_nan_loss_counts_as_the_hardest_and_the_quota_is_met(replicas):
    losses = np.linspace(0, 1, IMAGES * ANCHORS, dtype=np.float32).reshape(IMAGES, ANCHORS)
    losses[1, 3] = np.nan
    losses[2, 5] = -np.nan
    everything = np.ones_like(losses, bool)
    as_infinity = np.where(np.isnan(losses), np.inf, losses)
    chosen = run_global(replicas, losses, everything, 5)
    np.testing.assert_array_equal(chosen, mine_global_reference(as_infinity, everything, [5, 0, 0, 0], 1.0))
    in_each = traced_per_image()(tf.constant(losses), tf.constant(everything), tf.fill([IMAGES], 2))
    np.testing.assert_array_equal(in_each, mine_per_image_reference(as_infinity, everything, [2] * 4, 1.0))


@pytest.mark.parametrize("replicas", [1, 2])
def test_zeros_of_both_signs_are_tied(replicas):
    losses = np.zeros((IMAGES, ANCHORS), np.float32)
    losses[:, ::2] = -0.0
    everything = np.ones_like(losses, bool)
    chosen = run_global(replicas, losses, everything, 9)
    np.testing.assert_array_equal(chosen.ravel(), np.arange(IMAGES * ANCHORS) < 9)
    in_each = traced_per_image()(tf.constant(losses), tf.constant(everything), tf.fill([IMAGES], 3))
    np.testing.assert_array_equal(in_each, np.tile(np.arange(ANCHORS) < 3, (IMAGES, 1)))


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_denormal_losses_are_selected_after_all_normal_ones(replicas):
    # Processors may distinguish denormal numbers or treat them as 0; the quota must be met in both cases.
    rng = np.random.default_rng(0)
    losses = (rng.random((IMAGES, ANCHORS)) * 1e-39).astype(np.float32)
    losses[3, 4:10] = [1e-30, 2e-30, 3e-30, 4e-30, 5e-30, 6e-30]
    everything = np.ones_like(losses, bool)
    chosen = run_global(replicas, losses, everything, 10)
    assert chosen.sum() == 10
    assert chosen[3, 4:10].all()
    in_each = traced_per_image()(tf.constant(losses), tf.constant(everything), tf.fill([IMAGES], 7)).numpy()
    assert (in_each.sum(1) == 7).all()
    assert in_each[3, 4:10].all()


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_never_selects_more_than_the_candidates(replicas):
    rng = np.random.default_rng(1)
    losses = rng.normal(size=(IMAGES, ANCHORS)).astype(np.float32)
    candidates = rng.random((IMAGES, ANCHORS)) < 0.2
    candidates[2] = False
    np.testing.assert_array_equal(run_global(replicas, losses, candidates, 40), candidates)
    in_each = traced_per_image()(tf.constant(losses), tf.constant(candidates), tf.fill([IMAGES], ANCHORS))
    np.testing.assert_array_equal(in_each, candidates)


@pytest.mark.parametrize("seed", range(3))
def test_replicas_agree_at_the_size_of_ssd300(seed):
    rng = np.random.default_rng(seed)
    # Rounded, so that thousands of losses are tied at the threshold.
    losses = np.round(rng.exponential(size=(8, 8732)), 2).astype(np.float32)
    candidates = rng.random((8, 8732)) < 0.98
    quota = 137
    expected = mine_global_reference(losses, candidates, [quota] + [0] * 7, 1.0)
    for replicas in (1, 2, 4):
        np.testing.assert_array_equal(run_global(replicas, losses, candidates, quota), expected)


def test_the_select_uses_only_ops_that_are_deterministic_on_gpus():
    losses, candidates = np.zeros((IMAGES, ANCHORS), np.float32), np.ones((IMAGES, ANCHORS), bool)
    choose = tf.function(lambda *args: mine_global(*args, np.arange(IMAGES, dtype=np.int32), IMAGES))
    graph = choose.get_concrete_function(losses, candidates, tf.constant(3)).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert "UnsortedSegmentSum" in kinds  # deterministic on GPUs since TensorFlow 2.7
    assert not {"Bincount", "DenseBincount"} & kinds


def test_mining_carries_no_gradient():
    losses = tf.Variable(np.random.default_rng(2).normal(size=(IMAGES, ANCHORS)).astype(np.float32))
    everything = tf.ones([IMAGES, ANCHORS], tf.bool)
    with tf.GradientTape() as tape:
        chosen = mine_per_image(losses, everything, tf.fill([IMAGES], 3))
        total = tf.reduce_sum(tf.where(chosen, losses, 0.0))
    np.testing.assert_array_equal(tape.gradient(total, losses), chosen.numpy().astype(np.float32))
