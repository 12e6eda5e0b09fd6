"""The batches that the input pipeline sends to the device: uint8 pixels and sparse, padded targets."""

from typing import NamedTuple

import tensorflow as tf

PADDING = -1


class SparseTargets(NamedTuple):
    """Targets of a batch of B images; each row is padded with -1 to the longest row.

    Attributes:
      anchors: int32 [B, P], positive anchors.
      labels: int32 [B, P], classes of the positive anchors, 1-based.
      offsets: float32 [B, P, 4], encoded boxes of the positive anchors.
      ignored: int32 [B, I], anchors excluded from loss and mining.
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
      positions: int32 [B], the position of each image in the global batch.
    """

    images: tf.Tensor
    color_maps: tf.Tensor
    targets: SparseTargets
    positions: tf.Tensor


class EvalBatch(NamedTuple):
    """An evaluation batch of one replica.

    Attributes:
      images: uint8 [B, S, S, 3].
      indices: int64 [B], the index of each record in its split; -1 for padding.
    """

    images: tf.Tensor
    indices: tf.Tensor
