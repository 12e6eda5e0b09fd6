"""What a model costs: parameters, multiply-adds, and the activations that the backward pass needs, by part.

Counted from the layers' shapes for one image, without running anything. SSDLite at 300 in float32: 119 MiB of
activations counted, 130 MiB more memory measured for each image more in a training step on a CPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import tf_keras
from tf_keras import layers

# Prefixes of the names of the detector's own layers; the backbone is a model of its own.
PARTS = {"extra_": "extra levels", "class_": "class heads", "box_": "box heads"}


@dataclass(frozen=True)
class Cost:
    """Of one image.

    Attributes:
      parameters: trained and not trained (moving statistics).
      multiply_adds: of the convolutions; a multiply-add is two FLOPs. The rest is a few percent of it.
      activations: numbers that are kept for the backward pass.
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
    """The cost of each part of a detector, in the order in which an image passes them."""
    costs = {"backbone": Cost(), **{part: Cost() for part in PARTS.values()}}
    for part, layer in _layers_by_part(model):
        costs[part] += _layer_cost(layer)
    return costs


def _layers_by_part(model: tf_keras.Model) -> Iterator[tuple[str, layers.Layer]]:
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from (("backbone", inner) for inner in layer.layers)
            continue
        part = next((part for prefix, part in PARTS.items() if layer.name.startswith(prefix)), None)
        if part is not None:
            yield part, layer


def _layer_cost(layer: layers.Layer) -> Cost:
    parameters = layer.count_params()
    if isinstance(layer, layers.InputLayer | layers.Reshape):
        return Cost(parameters)
    _, *shape = layer.output_shape
    size = math.prod(shape)
    # A convolution's backward pass needs its input, a norm's its input, a ReLU's its output; so what lies between a
    # norm and its ReLU is free.
    kept = 0 if isinstance(layer, layers.BatchNormalization) and _feeds_relu_alone(layer) else size
    if isinstance(layer, layers.DepthwiseConv2D):
        return Cost(parameters, shape[0] * shape[1] * math.prod(layer.depthwise_kernel.shape), kept)
    if isinstance(layer, layers.Conv2D):
        return Cost(parameters, shape[0] * shape[1] * math.prod(layer.kernel.shape), kept)
    return Cost(parameters, 0, kept)


def _feeds_relu_alone(layer: layers.Layer) -> bool:
    followers = [node.outbound_layer for node in layer.outbound_nodes]
    return len(followers) == 1 and isinstance(followers[0], layers.ReLU)
