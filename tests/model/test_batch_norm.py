"""Batch norm in groups: each group has the statistics of its own images, on one or several replicas, or across them."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.replicas import collect_rows, copies, mirrored, share_rows

from ssd_dist.model.batch_norm import GroupedBatchNormalization

pytestmark = pytest.mark.usefixtures("four_cpus")

EPSILON, MOMENTUM = 1e-3, 0.9
SHAPE = (8, 5, 4, 3)
RNG = np.random.default_rng(0)
# A mean far from 0, and groups that differ.
IMAGES = RNG.normal(3.0, 1.0, SHAPE) * np.linspace(0.5, 2.0, 8)[:, None, None, None]
UPSTREAM = RNG.normal(0.0, 1.0, SHAPE)
GAMMA, BETA = RNG.uniform(0.5, 1.5, 3), RNG.normal(0.0, 1.0, 3)
# In tests of several replicas, consecutive images are one group and each replica has consecutive images.
LAYOUTS = [(1, 8), (1, 4), (1, 2), (1, 1), (2, 4), (2, 2), (4, 2), (2, 8), (4, 8)]


def normalize_reference(group: int) -> dict[str, np.ndarray]:
    """Computes outputs, gradients and new moving statistics in float64 (Ioffe and Szegedy 2015, section 3).

    The moving variance follows the unbiased variance, as in algorithm 2 of that paper.
    """
    outputs, gradients = np.empty(SHAPE), np.empty(SHAPE)
    gamma_gradient, beta_gradient = np.zeros(3), np.zeros(3)
    means, variances = [], []
    for start in range(0, len(IMAGES), group):
        rows = slice(start, start + group)
        x, upstream = IMAGES[rows].reshape(-1, 3), UPSTREAM[rows].reshape(-1, 3)
        mean, variance = x.mean(axis=0), x.var(axis=0)
        normalized = (x - mean) / np.sqrt(variance + EPSILON)
        outputs[rows] = (GAMMA * normalized + BETA).reshape(outputs[rows].shape)
        inner = upstream - upstream.mean(axis=0) - normalized * (upstream * normalized).mean(axis=0)
        gradients[rows] = (GAMMA * inner / np.sqrt(variance + EPSILON)).reshape(outputs[rows].shape)
        gamma_gradient += (upstream * normalized).sum(axis=0)
        beta_gradient += upstream.sum(axis=0)
        means.append(mean)
        variances.append(variance * len(x) / (len(x) - 1))
    return {
        "outputs": outputs,
        "gradients": gradients,
        "gamma": gamma_gradient,
        "beta": beta_gradient,
        # The initial moving statistics are 0 and 1.
        "mean": (1 - MOMENTUM) * np.mean(means, axis=0),
        "variance": MOMENTUM + (1 - MOMENTUM) * np.mean(variances, axis=0),
    }


def normalize(replicas: int, group: int, fused: bool | None) -> dict[str, np.ndarray]:
    """Normalizes the images on several replicas; averages the moving statistics as the trainer does."""
    strategy = mirrored(replicas)
    with strategy.scope():
        norm = GroupedBatchNormalization(group, momentum=MOMENTUM, epsilon=EPSILON, fused=fused)
        norm.build([None, *SHAPE[1:]])
        norm.set_weights([GAMMA, BETA, np.zeros(3), np.ones(3)])

    def run(images: tf.Tensor, upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = norm(images, training=True)
            value = tf.reduce_sum(outputs * upstream)
        return outputs, *tape.gradient(value, [images, norm.gamma, norm.beta])

    rows = share_rows(strategy, (IMAGES.astype(np.float32), UPSTREAM.astype(np.float32)))
    outputs, gradients, gamma, beta = tf.function(lambda *args: strategy.run(run, args=args))(*rows)
    results = [
        np.sum([part.numpy() for part in strategy.experimental_local_results(value)], 0) for value in (gamma, beta)
    ]
    return {
        "outputs": collect_rows(strategy, outputs),
        "gradients": collect_rows(strategy, gradients),
        "gamma": results[0],
        "beta": results[1],
        "mean": np.mean(copies(strategy, norm.moving_mean), axis=0),
        "variance": np.mean(copies(strategy, norm.moving_variance), axis=0),
    }


@pytest.mark.parametrize(("replicas", "group"), LAYOUTS)
def test_each_group_has_its_own_statistics_in_every_layout(replicas: int, group: int) -> None:
    expected = normalize_reference(group)
    found = normalize(replicas, group, fused=None)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("replicas", "group"), [(1, 4), (2, 4), (4, 8)])
def test_the_layer_without_fused_kernel_has_the_same_outputs(replicas: int, group: int) -> None:
    expected = normalize_reference(group)
    found = normalize(replicas, group, fused=False)
    # Its moving variance follows the biased variance, as that of Keras's layer without the fused kernel.
    for name in ("outputs", "gradients", "gamma", "beta", "mean"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=2e-5, err_msg=name)


def test_a_batch_of_one_group_is_normalized_as_by_keras() -> None:
    # The fused kernel, in one call: plain batch norm is the fast path and the result of earlier versions.
    norms = [GroupedBatchNormalization(8), tf_keras.layers.BatchNormalization()]
    ours, keras = ([norm(IMAGES.astype(np.float32), training=True), *norm.weights] for norm in norms)
    for found, expected in zip(ours, keras, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_batch_that_is_not_a_multiple_of_the_group_is_refused() -> None:
    with pytest.raises(ValueError, match="6 images cannot be divided into groups of 4"):
        GroupedBatchNormalization(4)(tf.zeros([6, 2, 2, 3]), training=True)


def test_an_unknown_batch_size_is_refused_on_several_replicas() -> None:
    strategy = mirrored(2)
    with strategy.scope():
        norm = GroupedBatchNormalization(4)

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2, 3])])
    def call(images: tf.Tensor) -> tf.Tensor:
        return strategy.run(lambda part: norm(part, training=True), args=(images,))

    with pytest.raises(
        ValueError, match="cannot be divided into batch-norm groups; build the model with a fixed batch"
    ):
        call.get_concrete_function()
