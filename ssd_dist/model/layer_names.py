"""Names the parts, layers and variables of a detector, independently of checkpoints and of the network's nesting.

Also finds the layer that follows another one.
"""

from collections.abc import Iterator

import tensorflow as tf
import tf_keras
from tf_keras import layers

# Name prefixes of the detector's layers outside the backbone, which is a nested model.
PARTS = {"extra_": "extra levels", "class_": "class heads", "box_": "box heads"}


def layers_by_part(model: tf_keras.Model) -> Iterator[tuple[str, layers.Layer]]:
    """Yields the name of the part and the layer, for each layer of a detector that belongs to a part."""
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from (("backbone", inner) for inner in layer.layers)
            continue
        part = next((part for prefix, part in PARTS.items() if layer.name.startswith(prefix)), None)
        if part is not None:
            yield part, layer


def name_variables(layer: layers.Layer) -> dict[str, tf.Variable]:
    """Returns the variables of a layer by "layer/variable", e.g. "Conv1/kernel"."""
    return {f"{layer.name}/{variable.name.rsplit('/', 1)[-1].split(':')[0]}": variable for variable in layer.variables}


def find_only_follower(layer: layers.Layer) -> layers.Layer | None:
    """Returns the layer that consumes the output of a layer; None if there are several or none."""
    followers = [node.outbound_layer for node in layer.outbound_nodes]
    return followers[0] if len(followers) == 1 else None


def find_following_norm(layer: layers.Layer) -> layers.BatchNormalization | None:
    """Returns the batch normalization that is the only consumer of a convolution without bias, else None."""
    follower = find_only_follower(layer)
    is_folded = isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D) and not layer.use_bias
    return follower if is_folded and isinstance(follower, layers.BatchNormalization) else None
