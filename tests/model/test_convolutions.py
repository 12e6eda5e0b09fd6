"""The faster gradients equal those of Keras's own layers, which TensorFlow derives."""

import numpy as np
import pytest
import tensorflow as tf
from tf_keras import layers

from ssd_dist.model.convolutions import PointwiseConv2D, SameDepthwiseConv2D, choose_convolution


@pytest.mark.parametrize(
    ("faster", "original", "options"),
    [
        (PointwiseConv2D, layers.Conv2D, {"filters": 5, "kernel_size": 1}),
        (PointwiseConv2D, layers.Conv2D, {"filters": 2, "kernel_size": 1, "use_bias": False, "padding": "same"}),
        (SameDepthwiseConv2D, layers.DepthwiseConv2D, {"kernel_size": 3, "padding": "same"}),
        (SameDepthwiseConv2D, layers.DepthwiseConv2D, {"kernel_size": (5, 3), "padding": "same", "use_bias": False}),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 7])  # 1: the filter covers more padding than image
def test_outputs_and_gradients_equal_those_of_keras(faster, original, options: dict, size: int) -> None:
    images = tf.constant(np.random.default_rng(size).normal(size=[2, size, size, 3]), tf.float32)
    found = []
    first = original(**options)
    first.build(images.shape)
    for kind in (original, faster):
        layer = kind(**options)
        layer.build(images.shape)
        layer.set_weights(first.get_weights())
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images, training=True)
            loss = tf.reduce_sum(tf.sin(outputs))
        found.append([outputs, *tape.gradient(loss, [images, *layer.trainable_variables])])
        np.testing.assert_array_equal(layer(images, training=False), outputs)
    for expected, value in zip(*found, strict=True):
        # Tolerance: float32 sums of at most 98 products in another order.
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (layers.Conv2D, {"filters": 4, "kernel_size": (3, 3), "padding": "same"}),
        (layers.Conv2D, {"filters": 4, "kernel_size": (1, 1), "strides": (2, 2)}),
        (layers.Conv2D, {"filters": 4, "kernel_size": (1, 1), "groups": 2}),
        (layers.DepthwiseConv2D, {"kernel_size": (3, 3), "strides": (2, 2), "padding": "same"}),
        (layers.DepthwiseConv2D, {"kernel_size": (3, 3), "padding": "valid"}),
        (layers.DepthwiseConv2D, {"kernel_size": (4, 4), "padding": "same"}),
        (layers.DepthwiseConv2D, {"kernel_size": (3, 3), "padding": "same", "depth_multiplier": 2}),
        (layers.Dense, {"units": 3}),
    ],
)
def test_other_layers_are_not_replaced(kind, options: dict) -> None:
    assert choose_convolution(kind, options) is kind


def test_common_convolutions_of_the_network_are_replaced() -> None:
    pointwise = {"filters": 4, "kernel_size": (1, 1), "strides": (1, 1)}
    assert choose_convolution(layers.Conv2D, pointwise) is PointwiseConv2D
    depthwise = {"kernel_size": (3, 3), "padding": "same"}
    assert choose_convolution(layers.DepthwiseConv2D, depthwise) is SameDepthwiseConv2D
