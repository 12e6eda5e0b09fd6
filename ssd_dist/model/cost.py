"""Counts the parameters, multiply-adds and stored activations of each part of a detector.

The counts follow from the layers' shapes for one image; nothing is executed. For SSDLite at 300 pixels in float32 the
activations are 119 MiB per image; measured in training steps on a CPU, each further image takes 130 MiB.
"""

import math
from dataclasses import dataclass

import tf_keras
from tf_keras import layers

from ssd_dist.model.layer_names import PARTS, find_only_follower, layers_by_part


@dataclass(frozen=True)
class Cost:
    """The cost of a part of a model, for one image.

    Attributes:
      parameters: number of weights, moving statistics included.
      multiply_adds: multiply-adds of the convolutions; one is two FLOPs. Other layers would add a few percent.
      activations: number of values stored for the backward pass, which ends before the first layers if they are
        frozen.
    """

    parameters: int = 0
    multiply_adds: int = 0
    activations: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.parameters + other.parameters,
            self.multiply_adds + other.multiply_adds,
            self.activations + other.activations,
        )


def count_cost(model: tf_keras.Model) -> dict[str, Cost]:
    """Counts the cost of each part of a detector, in the order of the forward pass."""
    costs = {"backbone": Cost(), **{part: Cost() for part in PARTS.values()}}
    # The backward pass ends at the first layer that is trained.
    is_reached = False
    for part, layer in layers_by_part(model):
        is_reached = is_reached or bool(layer.trainable_weights)
        costs[part] += _count_layer(layer, is_reached)
    return costs


def _count_layer(layer: layers.Layer, is_reached: bool) -> Cost:
    parameters = layer.count_params()
    if isinstance(layer, layers.InputLayer | layers.Reshape):
        return Cost(parameters)
    _, *shape = layer.output_shape
    size = math.prod(shape)
    # The backward pass needs the input of a convolution, the input of a batch norm and the output of a ReLU. So the
    # values between a batch norm and its ReLU are not stored.
    feeds_relu = isinstance(find_only_follower(layer), layers.ReLU)
    is_recomputed = isinstance(layer, layers.BatchNormalization) and feeds_relu
    stored = size if is_reached and not is_recomputed else 0
    if isinstance(layer, layers.DepthwiseConv2D):
        return Cost(parameters, shape[0] * shape[1] * math.prod(layer.depthwise_kernel.shape), stored)
    if isinstance(layer, layers.Conv2D):
        return Cost(parameters, shape[0] * shape[1] * math.prod(layer.kernel.shape), stored)
    return Cost(parameters, 0, stored)
