"""The multibox loss equals plain float64 loops: every option, its gradient, and any number of replicas."""

import itertools
from functools import cache, partial

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference_training import (
    ImageTargets,
    cross_entropy_reference,
    multibox_loss_reference,
    smooth_l1_reference,
)
from support.replicas import collect_rows, mirrored, share_rows, trace

from ssd_dist.core.config import LossConfig, MiningConfig
from ssd_dist.data.batch import SparseTargets
from ssd_dist.training.losses import cross_entropy, multibox_losses, reduce_losses, smooth_l1_loss
from ssd_dist.training.mining import mine_global, mine_per_image
from ssd_dist.training.targets import TargetCounts, count_rows, count_targets, negative_quota

pytestmark = pytest.mark.usefixtures("four_cpus")

IMAGES, ANCHORS, CLASSES = 4, 20, 3


def draw_batch(seed: int, empty_images: int = 1) -> tuple[np.ndarray, np.ndarray, list[ImageTargets]]:
    """Draws logits, offsets and targets of a batch whose first images have no objects."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (IMAGES, ANCHORS, CLASSES + 1)).astype(np.float32)
    offsets = rng.normal(0, 2, (IMAGES, ANCHORS, 4)).astype(np.float32)
    targets = []
    for image in range(IMAGES):
        count = 0 if image < empty_images else int(rng.integers(1, 6))
        order = rng.permutation(ANCHORS)
        targets.append(
            ImageTargets(
                anchors=np.sort(order[:count]),
                labels=rng.integers(1, CLASSES + 1, count),
                offsets=rng.normal(0, 2, (count, 4)).astype(np.float32),
                ignored=np.sort(order[count : count + int(rng.integers(0, 5))]),
            )
        )
    return logits, offsets, targets


def pad_targets(targets: list[ImageTargets]) -> SparseTargets:
    def pad(rows, fill, shape=()):
        length = max(len(row) for row in rows)
        padded = np.full((len(rows), length, *shape), fill, np.float32 if shape else np.int32)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        return padded

    return SparseTargets(
        anchors=pad([t.anchors for t in targets], -1),
        labels=pad([t.labels for t in targets], -1),
        offsets=pad([t.offsets for t in targets], 0.0, (4,)),
        ignored=pad([t.ignored for t in targets], -1),
    )


def loss_of_replica(logits, offsets, targets, positions, loss: LossConfig, mining: MiningConfig):
    """Computes what each replica does in a training step: (its share of the loss, mined negatives [B, A])."""
    counts = count_targets(targets, ANCHORS, mining)
    context = tf.distribute.get_replica_context()
    totals = TargetCounts(*tf.unstack(context.all_reduce(tf.distribute.ReduceOp.SUM, counts.totals())))
    if mining.scope == "global":
        totals = totals._replace(quota=negative_quota(totals.positives, totals.candidates, mining, images=IMAGES))

        def mine(losses, candidates):
            return mine_global(losses, candidates, totals.quota, positions, IMAGES)
    else:

        def mine(losses, candidates):
            return mine_per_image(losses, candidates, counts.quota)

    parts = multibox_losses(logits, offsets, targets, loss, mine)
    mined = counts._replace(quota=count_rows(parts.negatives))
    classification = reduce_losses(parts.classification, mined, totals, IMAGES, loss)
    localization = reduce_losses(parts.localization, mined, totals, IMAGES, loss)
    return classification + loss.localization_weight * localization, parts.negatives


def losses_and_gradients(logits, offsets, targets, positions, loss: LossConfig, mining: MiningConfig):
    with tf.GradientTape() as tape:
        tape.watch([logits, offsets])
        value, negatives = loss_of_replica(logits, offsets, targets, positions, loss, mining)
    return value[None], negatives, tape.gradient(value, [logits, offsets])


@cache
def traced(replicas: int, loss: LossConfig, mining: MiningConfig):
    return trace(partial(losses_and_gradients, loss=loss, mining=mining), replicas)


def run_on(replicas: int, logits, offsets, targets, loss: LossConfig, mining: MiningConfig):
    """Returns (loss of the global batch, mined negatives, gradients with respect to logits and offsets)."""
    batch = (logits, offsets, pad_targets(targets), np.arange(IMAGES, dtype=np.int32))
    if replicas == 1:
        value, negatives, gradients = losses_and_gradients(*tf.nest.map_structure(tf.constant, batch), loss, mining)
        return value.numpy().sum(), negatives.numpy(), [gradient.numpy() for gradient in gradients]
    strategy = mirrored(replicas)
    values, negatives, gradients = collect_rows(strategy, traced(replicas, loss, mining)(*share_rows(strategy, batch)))
    return values.sum(), negatives, gradients


def options_of(loss: LossConfig, mining: MiningConfig) -> dict:
    return {**loss.model_dump(), **mining.model_dump()}


EVERY_REDUCTION = list(
    itertools.product(["positives", "images", "classified"], ["batch", "image"], ["sum", "mean", "none"])
)


@pytest.mark.parametrize("scope", ["image", "global"])
@pytest.mark.parametrize(("normalizer", "normalize_per", "reduction"), EVERY_REDUCTION)
def test_every_reduction_equals_the_reference(normalizer, normalize_per, reduction, scope):
    loss = LossConfig(normalizer=normalizer, normalize_per=normalize_per, reduction=reduction)
    mining = MiningConfig(scope=scope)
    batch = draw_batch(seed=0)
    expected = multibox_loss_reference(*batch, **options_of(loss, mining))
    value, negatives, _ = run_on(1, *batch, loss, mining)
    np.testing.assert_array_equal(negatives, expected.negatives)
    # The share of `none` is the sum of its vector.
    assert value == pytest.approx(np.sum(expected.loss), rel=1e-5)


@pytest.mark.parametrize(
    ("replicas", "scope", "normalizer", "normalize_per", "reduction"),
    [
        # One image per replica; two have no objects. Every normalizer with every scope and every count; reductions come
        # after all sums.
        (4, "image", "positives", "batch", "sum"),
        (4, "image", "images", "image", "mean"),
        (4, "image", "classified", "batch", "none"),
        (4, "global", "positives", "image", "none"),
        (4, "global", "images", "batch", "sum"),
        (4, "global", "classified", "image", "mean"),
        (2, "image", "positives", "batch", "mean"),
    ],
)
def test_replicas_together_give_the_loss_and_gradient_of_one(replicas, scope, normalizer, normalize_per, reduction):
    # A replica whose images have no objects must not divide by its own count.
    loss = LossConfig(normalizer=normalizer, normalize_per=normalize_per, reduction=reduction)
    mining = MiningConfig(scope=scope, min_negatives_per_image=2)
    batch = draw_batch(seed=1, empty_images=2)
    one = run_on(1, *batch, loss, mining)
    many = run_on(replicas, *batch, loss, mining)
    np.testing.assert_array_equal(many[1], one[1])
    assert many[0] == pytest.approx(one[0], rel=1e-6)
    for gradient, expected in zip(many[2], one[2], strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)
    expected = multibox_loss_reference(*batch, **options_of(loss, mining))
    assert many[0] == pytest.approx(np.sum(expected.loss), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "mining"),
    [
        (LossConfig(beta=0.1), MiningConfig()),
        (LossConfig(beta=3.0, localization_weight=0.3), MiningConfig(ratio=1.5)),
        (LossConfig(label_smoothing=0.1), MiningConfig(scope="global")),
        (LossConfig(localization_weight=0.0), MiningConfig(ratio=0.0)),
        (LossConfig(normalizer="classified"), MiningConfig(ratio=1000.0)),
        (LossConfig(normalizer="classified"), MiningConfig(scope="global", ratio=1000.0)),
        (LossConfig(normalizer="classified"), MiningConfig(min_negatives_per_image=5)),
        (LossConfig(), MiningConfig(ratio=0.5, scope="global", min_negatives_per_image=4)),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_every_option_equals_the_reference(loss, mining, seed):
    batch = draw_batch(seed)
    expected = multibox_loss_reference(*batch, **options_of(loss, mining))
    value, negatives, _ = run_on(1, *batch, loss, mining)
    np.testing.assert_array_equal(negatives, expected.negatives)
    assert value == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "scope"),
    [
        (LossConfig(label_smoothing=0.1, beta=0.5, localization_weight=2.0), "image"),
        (LossConfig(normalizer="classified", normalize_per="image", reduction="none"), "global"),
    ],
)
def test_gradient_equals_finite_differences_of_the_reference(loss, scope):
    mining = MiningConfig(scope=scope)
    logits, offsets, targets = draw_batch(seed=3)
    options = options_of(loss, mining)
    logits, offsets = logits.astype(np.float64), offsets.astype(np.float64)
    _, _, gradients = run_on(1, logits.astype(np.float32), offsets.astype(np.float32), targets, loss, mining)
    rng = np.random.default_rng(4)
    mined = multibox_loss_reference(logits, offsets, targets, **options).negatives
    # Inputs that have a gradient, and a few that have none.
    places = [("logits", b, a, 0) for b, a in np.argwhere(mined)[:4].tolist()]
    places += [("logits", b, a, k) for b, t in enumerate(targets) for a in t.anchors[:1] for k in range(3)]
    places += [("offsets", b, a, k) for b, t in enumerate(targets) for a in t.anchors[:2] for k in range(4)]
    places += [("logits", b, a, 1) for b, t in enumerate(targets) for a in t.ignored[:1]]
    places += [("offsets", int(rng.integers(IMAGES)), int(rng.integers(ANCHORS)), 0) for _ in range(3)]
    for name, *place in places:
        sides = []
        for step in (1e-5, -1e-5):
            moved = {"logits": logits.copy(), "offsets": offsets.copy()}
            moved[name][tuple(place)] += step
            sides.append(np.sum(multibox_loss_reference(moved["logits"], moved["offsets"], targets, **options).loss))
        analytic = gradients[0 if name == "logits" else 1][tuple(place)]
        assert analytic == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-3, abs=1e-6), (name, place)


@pytest.mark.parametrize("scope", ["image", "global"])
def test_a_batch_without_objects(scope):
    logits, offsets, targets = draw_batch(seed=5, empty_images=IMAGES)
    value, negatives, gradients = run_on(1, logits, offsets, targets, LossConfig(), MiningConfig(scope=scope))
    assert value == 0
    assert not negatives.any()
    assert all((gradient == 0).all() for gradient in gradients)
    mining = MiningConfig(scope=scope, min_negatives_per_image=3)
    value, negatives, _ = run_on(1, logits, offsets, targets, LossConfig(), mining)
    expected = multibox_loss_reference(logits, offsets, targets, **options_of(LossConfig(), mining))
    assert negatives.sum() == 3 * IMAGES
    # No positives: the sum is divided by 1.
    assert value == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize("scope", ["image", "global"])
def test_ignored_anchors_do_not_change_the_loss(scope):
    # Ignored anchors are not mined, and are neither in the loss nor in the counts.
    logits, offsets, targets = draw_batch(seed=6)
    loss, mining = LossConfig(normalizer="classified"), MiningConfig(scope=scope, ratio=100.0)
    value, negatives, gradients = run_on(1, logits, offsets, targets, loss, mining)
    changed = logits.copy()
    for image, target in enumerate(targets):
        assert not negatives[image, target.ignored].any()
        assert (gradients[0][image, target.ignored] == 0).all()
        changed[image, target.ignored] = 50.0 * (np.arange(CLASSES + 1) > 0)
    assert run_on(1, changed, offsets, targets, loss, mining)[0] == value


def test_single_images_and_batches_have_equal_losses():
    loss, mining = LossConfig(normalizer="images"), MiningConfig()
    logits, offsets, targets = draw_batch(seed=7)
    whole = run_on(1, logits, offsets, targets, loss, mining)[0]
    nothing = ImageTargets([], [], np.zeros((0, 4)), [])
    alone = [
        run_on(1, logits, offsets, [t if i == image else nothing for i, t in enumerate(targets)], loss, mining)[0]
        for image in range(IMAGES)
    ]
    assert sum(alone) == pytest.approx(whole, rel=1e-6)


@settings(deadline=None, max_examples=100)
@given(st.floats(-100, 100, width=32), st.sampled_from([0.05, 0.11, 1.0, 4.0]))
def test_smooth_l1_equals_the_reference(difference, beta):
    value = smooth_l1_loss(tf.constant([difference]), tf.zeros([1]), beta).numpy()[0]
    assert value == pytest.approx(smooth_l1_reference(difference, beta), rel=1e-5, abs=1e-30)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_smooth_l1_reductions(reduction):
    rng = np.random.default_rng(8)
    predictions, targets = rng.normal(0, 2, (2, 3, 5, 4)).astype(np.float32)
    each = np.vectorize(smooth_l1_reference)(predictions - targets, 0.5)
    expected = {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]
    np.testing.assert_allclose(smooth_l1_loss(predictions, targets, 0.5, reduction), expected, rtol=1e-5)


def test_smooth_l1_and_its_gradient_are_finite_where_squares_overflow():
    difference = tf.constant([3e38, -3e38, 1e20, 0.0, 1e-30])
    with tf.GradientTape() as tape:
        tape.watch(difference)
        value = smooth_l1_loss(difference, tf.zeros_like(difference), 1.0)
    assert np.isfinite(value).all()
    np.testing.assert_array_equal(tape.gradient(value, difference), [1, -1, 1, 0, np.float32(1e-30)])


@settings(deadline=None, max_examples=100)
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=6),
    label=st.integers(0, 1),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_cross_entropy_equals_the_reference(logits, label, smoothing):
    values = tf.constant([logits])
    result = cross_entropy(tf.reduce_logsumexp(values, -1), values[:, label], values, smoothing).numpy()[0]
    assert result == pytest.approx(cross_entropy_reference(logits, label, smoothing), rel=1e-5, abs=1e-5)


def test_cross_entropy_by_hand():
    # Four equal logits: log 4 for every label and smoothing.
    values = tf.fill([1, 4], 7.0)
    partition = tf.reduce_logsumexp(values, -1)
    for smoothing in (0.0, 0.3):
        assert cross_entropy(partition, values[:, 1], values, smoothing).numpy()[0] == pytest.approx(
            np.log(4), rel=1e-6
        )


def test_the_padding_of_a_row_has_no_effect_on_the_bits_of_its_loss():
    rng = np.random.default_rng(3)
    count, positives = 400, 150
    outputs = [rng.normal(0, 2, (1, count, size)).astype(np.float32) for size in (CLASSES + 1, 4)]
    anchors = rng.permutation(count)[None, :positives]
    labels = rng.integers(1, CLASSES + 1, (1, positives))
    offsets = rng.normal(0, 2, (1, positives, 4))

    def compute(padding: int) -> list[np.ndarray]:
        row = [(0, 0), (0, padding)]
        targets = SparseTargets(
            anchors=tf.constant(np.pad(anchors, row, constant_values=-1), tf.int32),
            labels=tf.constant(np.pad(labels, row, constant_values=-1), tf.int32),
            offsets=tf.constant(np.pad(offsets, [*row, (0, 0)]), tf.float32),
            ignored=tf.zeros([1, 0], tf.int32),
        )
        logits, predicted = map(tf.constant, outputs)
        with tf.GradientTape() as tape:
            tape.watch([logits, predicted])
            losses = multibox_losses(logits, predicted, targets, LossConfig(), lambda _, candidates: candidates)
            total = losses.classification + losses.localization
        gradients = tape.gradient(total, [logits, predicted])
        return [tensor.numpy() for tensor in (losses.classification, losses.localization, *gradients)]

    expected = compute(0)
    for padding in (1, 3, 10, 42, 106, 1000):
        for value, same in zip(compute(padding), expected, strict=True):
            np.testing.assert_array_equal(value, same, err_msg=f"{padding} padded entries")


def test_counts_beyond_the_range_of_float16_do_not_remove_the_loss():
    counts = TargetCounts(*(tf.constant([count], tf.int32) for count in (35_000, 105_000, 105_000)))
    totals = TargetCounts(*(tf.reduce_sum(count) for count in counts))
    losses = tf.constant([60_000.0], tf.float16)
    share = reduce_losses(losses, counts, totals, 1, LossConfig(normalizer="positives"))
    assert float(share) == pytest.approx(60_000 / 35_000, rel=1e-3)
    classified = reduce_losses(losses, counts, totals, 1, LossConfig(normalizer="classified"))
    assert float(classified) == pytest.approx(60_000 / 140_000, rel=1e-3)
