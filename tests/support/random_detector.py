"""Gives small untrained detectors weights with which their outputs depend on the image."""

import numpy as np
import tensorflow as tf
from tf_keras import layers

from ssd_dist.model.detector import normalize_image

# The configuration of a small detector.
SETTINGS = {
    "model": {"input_size": 64, "width": 0.1},
    "backbone": {"weights": "none"},
    "eval": {"split": "val"},
}


def submodules_of_kind(model, kind):
    """Returns the layers of one class in a model, also those within other layers."""
    return [module for module in model.submodules if isinstance(module, kind)]


def randomize_weights(model):
    """Gives a model random statistics and larger class weights: no initial values remain, and few scores are tied."""
    rng = np.random.default_rng(7)
    for norm in submodules_of_kind(model, layers.BatchNormalization):
        gamma, beta, mean, variance = norm.get_weights()
        norm.set_weights([
            rng.uniform(0.5, 1.5, gamma.shape), rng.normal(0, 0.3, beta.shape),
            rng.normal(0, 0.3, mean.shape), rng.uniform(0.5, 1.5, variance.shape),
        ])  # fmt: skip
    for layer in model.layers:
        if layer.name.startswith("class_") and isinstance(layer, layers.Conv2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel * 10, bias])


def fit_statistics(model, images):
    """Sets batch statistics to those of uint8 images [N, S, S, 3]; otherwise outputs hardly depend on the image."""
    for norm in submodules_of_kind(model, layers.BatchNormalization):
        norm.momentum = 0.0
    model(normalize_image(tf.constant(images)), training=True)
