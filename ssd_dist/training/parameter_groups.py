"""Parameter groups: the variables that share a learning rate and a weight decay, seen as one flat vector.

A MobileNetV2-SSD has some 240 variables, most of them tiny. Packed into a few vectors, the optimizer, the EMA, the
clip and the all-reduce cost a few large operations instead of thousands of small ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import BackboneConfig, OptimizerConfig


@dataclass(frozen=True)
class ParameterGroup:
    """Variables with a common scale of the learning rate and a common weight decay.

    `early` are those whose gradients the backward pass has long before it ends.
    """

    name: str
    variables: tuple[tf.Variable, ...]
    lr_scale: float
    weight_decay: float
    early: bool = False

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(variable.shape)) for variable in self.variables)

    def pack(self, tensors: Sequence[tf.Tensor | None] | None = None) -> tf.Tensor:
        """float32 [size] of tensors shaped as the variables (None is zero), or of the variables themselves."""
        return pack_values(self.variables, self.variables if tensors is None else tensors)

    def unpack(self, flat: tf.Tensor) -> list[tf.Tensor]:
        """Tensors shaped as the variables out of a vector [size]."""
        return unpack_values(self.variables, flat)

    def assign(self, flat: tf.Tensor) -> None:
        """Sets the variables from a vector [size]."""
        for variable, value in zip(self.variables, self.unpack(flat), strict=True):
            variable.assign(value)


def pack_values(variables: Sequence[tf.Variable], tensors: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """[size] of tensors shaped as the variables and in their type, float32 in training; None is zero."""
    parts = [
        tf.zeros([int(np.prod(v.shape))], v.dtype) if t is None else tf.reshape(tf.cast(t, v.dtype), [-1])
        for v, t in zip(variables, tensors, strict=True)
    ]
    # What is empty has the type that variables have, too: it travels with others.
    return tf.concat(parts, 0) if parts else tf.zeros([0], tf_keras.mixed_precision.global_policy().variable_dtype)


def unpack_values(variables: Sequence[tf.Variable], flat: tf.Tensor) -> list[tf.Tensor]:
    """Tensors shaped as the variables out of a vector [size]."""
    if not variables:
        return []
    parts = tf.split(flat, [int(np.prod(variable.shape)) for variable in variables])
    return [tf.reshape(part, variable.shape) for part, variable in zip(parts, variables, strict=True)]


def group_parameters(
    model: tf_keras.Model, optimizer: OptimizerConfig, backbone: BackboneConfig
) -> tuple[ParameterGroup, ...]:
    """The trainable variables in at most four groups: backbone or not, decayed or not; the last layers first.

    Batch-norm scales and shifts and biases (everything of rank 1) are not decayed (He et al. 2019, section 3.1).
    A backbone with `lr_scale: 0` is frozen: it is in no group.
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
