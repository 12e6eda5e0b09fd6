"""What travels from the input pipeline to the device: uint8 pixels and sparse, padded targets."""

from typing import NamedTuple

import tensorflow as tf

PADDING = -1


class SparseTargets(NamedTuple):
    """Targets of a batch of B images, each row padded with -1 to the longest.

    Attributes:
      anchors: int32 [B, P], positive anchors.
      labels: int32 [B, P], their classes, 1-based.
      offsets: float32 [B, P, 4], their encoded boxes.
      ignored: int32 [B, I], anchors outside of loss and mining.
    """

    anchors: tf.Tensor
    labels: tf.Tensor
    offsets: tf.Tensor
    ignored: tf.Tensor


class TrainBatch(NamedTuple):
    """A training batch of one replica.

    Attributes:
      images: uint8 [B, S, S, 3].
      color_maps: float32 [B, 3, 4], applied on the device.
      targets: the sparse targets.
      positions: int32 [B], the place of each image in the global batch.
    """

    images: tf.Tensor
    color_maps: tf.Tensor
    targets: SparseTargets
    positions: tf.Tensor


class EvalBatch(NamedTuple):
    """An evaluation batch of one replica.

    Attributes:
      images: uint8 [B, S, S, 3].
      indices: int64 [B], the number of each record in its split; -1 for padding.
    """

    images: tf.Tensor
    indices: tf.Tensor
