"""Parameter groups: variables that share a learning rate and a weight decay, packed into one flat vector.

A MobileNetV2-SSD has about 240 variables, most of them small. Packed into a few vectors, the optimizer, EMA, clipping
and all-reduce take a few large operations instead of thousands of small ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import BackboneConfig, OptimizerConfig


@dataclass(frozen=True)
class ParameterGroup:
    """Variables with a common learning-rate scale and a common weight decay.

    Attributes:
      name: key of the group in checkpoints.
      variables: the variables, in the order in which they are packed.
      lr_scale: factor on the learning rate.
      weight_decay: decoupled weight decay; 0 for none.
      early: whether the backward pass computes these gradients long before it ends.
    """

    name: str
    variables: tuple[tf.Variable, ...]
    lr_scale: float
    weight_decay: float
    early: bool = False

    @property
    def size(self) -> int:
        """Number of parameters."""
        return count_values(self.variables)

    def pack(self, tensors: Sequence[tf.Tensor | None] | None = None) -> tf.Tensor:
        """Packs tensors with the shapes of the variables into float32 [size]; None packs as zeros.

        Without `tensors` packs the variables themselves.
        """
        return pack_values(self.variables, self.variables if tensors is None else tensors)

    def unpack(self, flat: tf.Tensor) -> list[tf.Tensor]:
        """Splits a vector [size] into tensors with the shapes of the variables."""
        return unpack_values(self.variables, flat)

    def assign(self, flat: tf.Tensor) -> None:
        """Assigns a vector [size] to the variables."""
        for variable, value in zip(self.variables, self.unpack(flat), strict=True):
            variable.assign(value)


def count_values(variables: Sequence[tf.Variable]) -> int:
    """Returns the number of values of all variables."""
    return sum(int(np.prod(variable.shape)) for variable in variables)


def pack_values(variables: Sequence[tf.Variable], tensors: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """Packs tensors with the shapes of `variables` into one vector of the variables' type; None packs as zeros."""
    parts = [
        tf.zeros([int(np.prod(v.shape))], v.dtype) if t is None else tf.reshape(tf.cast(t, v.dtype), [-1])
        for v, t in zip(variables, tensors, strict=True)
    ]
    # An empty vector needs the type of the variables too: it is all-reduced together with other vectors.
    return tf.concat(parts, 0) if parts else tf.zeros([0], tf_keras.mixed_precision.global_policy().variable_dtype)


def unpack_values(variables: Sequence[tf.Variable], flat: tf.Tensor) -> list[tf.Tensor]:
    """Splits a vector [size] into tensors with the shapes of `variables`."""
    if not variables:
        return []
    parts = tf.split(flat, [int(np.prod(variable.shape)) for variable in variables])
    return [tf.reshape(part, variable.shape) for part, variable in zip(parts, variables, strict=True)]


def group_parameters(
    model: tf_keras.Model, optimizer: OptimizerConfig, backbone: BackboneConfig
) -> tuple[ParameterGroup, ...]:
    """Divides the trainable variables into at most four groups: head or backbone, kernels or vectors; head first.

    Batch-norm scales and shifts and biases (every variable of rank 1) are not decayed (He et al. 2019, section 3.1).
    With `backbone.lr_scale: 0` the backbone is frozen and belongs to no group.
    """
    in_backbone = {variable.ref() for variable in model.get_layer("backbone").trainable_variables}
    groups = []
    for part, lr_scale in (("head", 1.0), ("backbone", backbone.lr_scale)):
        for kind, weight_decay in (("kernels", optimizer.weight_decay), ("vectors", 0.0)):
            members = tuple(
                variable
                for variable in model.trainable_variables
                if (variable.ref() in in_backbone) == (part == "backbone")
                and (len(variable.shape) > 1) == (kind == "kernels")
            )
            if members and lr_scale > 0:
                groups.append(ParameterGroup(f"{part}_{kind}", members, lr_scale, weight_decay, part == "head"))
    return tuple(groups)
