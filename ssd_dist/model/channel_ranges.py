"""Brings the channels of depthwise kernels to similar ranges, for int8 files with one scale per layer.

After folding, some channels of MobileNetV2's depthwise kernels are hundreds of times as large as most others. With one
scale, the 8 bits of the other channels become 0 or 1 bit, and the detector finds almost nothing.

    depthwise, batch norm -> ReLU6 -> convolution      =      the same / s -> ReLU6 -> s x convolution

The two sides are equal for outputs below 6 (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and
Bias Correction", section 4.1). Only channels with an unusually large kernel are changed, because the limit of ReLU6 of
a changed channel becomes 6 s.
"""

import numpy as np
import tf_keras
from tf_keras import layers

from ssd_dist.model.layer_names import find_following_norm, find_only_follower, layers_by_part

# The largest kernel of a channel in medians of all channels. On the validation splits of blood cells and of chess
# pieces, 6 left the AP of the detector unchanged to 0.0001; 3 and 4 cost up to 0.002, and 8 and 12 helped less.
LARGEST_RANGE = 6.0
# The ranges of channels that were reduced before differ from the limit by rounding.
ROUNDING = 1e-5


def limit_channel_ranges(model: tf_keras.Model) -> int:
    """Reduces unusually large channels of the depthwise kernels of a detector; returns their number.

    Args:
      model: the detector, not folded; changed in place. In a strategy, call in its scope.
    """
    changed = 0
    for _, layer in layers_by_part(model):
        if not isinstance(layer, layers.DepthwiseConv2D):
            continue
        consumer = _find_convolution(layer)
        norm = find_following_norm(layer)
        if norm is None or consumer is None:
            continue
        gamma, variance = (variable.numpy().astype(np.float64) for variable in (norm.gamma, norm.moving_variance))
        largest = np.abs(layer.depthwise_kernel.numpy()).max(axis=(0, 1, 3))
        ranges = largest * np.abs(gamma) / np.sqrt(variance + norm.epsilon)
        limit = LARGEST_RANGE * np.median(ranges)
        excess = ranges / limit if limit > 0 else np.ones_like(ranges)
        factors = np.where(excess > 1.0 + ROUNDING, excess, 1.0)
        norm.gamma.assign(gamma / factors)
        norm.beta.assign(norm.beta.numpy() / factors)
        consumer.kernel.assign(consumer.kernel.numpy() * factors[:, None])
        changed += int(np.sum(factors > 1.0))
    return changed


def _find_convolution(layer: layers.DepthwiseConv2D) -> layers.Conv2D | None:
    """Returns the convolution that alone consumes a depthwise convolution, its batch norm and ReLU; else None."""
    follower = find_following_norm(layer)
    for kind in (layers.ReLU, layers.Conv2D):
        follower = None if follower is None else find_only_follower(follower)
        if not isinstance(follower, kind):
            return None
    return follower
