"""Folds each batch normalization into the convolution before it, so that the exported network has fewer layers.

    y = gamma (W x - mean) / sqrt(variance + epsilon) + beta  =  (s W) x + (beta - s mean),   s = gamma / sqrt(...)

The network computes the same function with a third fewer layers (Jacob et al. 2018, "Quantization and Training of
Neural Networks", section 3.2, equation 14).
"""

import numpy as np
import tf_keras
from tf_keras import layers

from ssd_dist.model.layer_names import find_following_norm
from ssd_dist.model.quantization import RoundedActivation, RoundedBatchNormalization, RoundedConv2D


def fold_batch_norm(model: tf_keras.Model) -> tf_keras.Model:
    """Returns a float32 copy of a functional model with every batch normalization folded into its convolution.

    The copy of a detector that rounds (model/quantization.py) rounds too; its input is that of `shift_pixels`.
    """

    def copy_layer(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=copy_layer)
        if isinstance(layer, RoundedBatchNormalization):
            images = layer.get_config()["images"]
            return RoundedActivation(images, activation="linear", name=layer.name, dtype="float32")
        if isinstance(layer, layers.BatchNormalization):
            return layers.Activation("linear", name=layer.name, dtype="float32")
        bias = {"use_bias": True} if find_following_norm(layer) else {}
        # The caller shifts the pixels: then they are the first tensor that is rounded.
        unshifted = {"shifts_pixels": False} if isinstance(layer, RoundedConv2D) else {}
        return type(layer).from_config(layer.get_config() | {"dtype": "float32"} | bias | unshifted)

    folded = tf_keras.models.clone_model(model, clone_function=copy_layer)
    _copy_weights(model, folded)
    return folded


def _copy_weights(model: tf_keras.Model, folded: tf_keras.Model) -> None:
    for layer in model.layers:
        copy = folded.get_layer(layer.name)
        if isinstance(layer, tf_keras.Model):
            _copy_weights(layer, copy)
        elif norm := find_following_norm(layer):
            copy.set_weights(_fold_weights(layer, norm))
        elif isinstance(layer, RoundedBatchNormalization):
            copy.set_weights([layer.limits.numpy()])
        elif not isinstance(layer, layers.BatchNormalization):
            copy.set_weights(layer.get_weights())


def _fold_weights(layer: layers.Layer, norm: layers.BatchNormalization) -> list[np.ndarray]:
    """Returns the folded kernel and bias, computed in float64."""
    (kernel,) = (weight.astype(np.float64) for weight in layer.get_weights())
    variables = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    gamma, beta, mean, variance = (variable.numpy().astype(np.float64) for variable in variables)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    # The output channels are the last axis of a Conv2D kernel, and the last two, [C, M], of a depthwise kernel.
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    kernel = kernel * (scale.reshape(kernel.shape[-2:]) if depthwise else scale)
    return [kernel.astype(np.float32), (beta - scale * mean).astype(np.float32)]
