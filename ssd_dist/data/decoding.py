"""Parses training records: the feature specification, the targets and the JPEG."""

from typing import Any

import tensorflow as tf

from ssd_dist.data.batch import PADDING, SparseTargets

INTS = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
FLOATS = tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int64)

IMAGE_FEATURES: dict[str, Any] = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/source_id": tf.io.FixedLenFeature([], tf.string),
}
TARGET_FEATURES: dict[str, Any] = {
    "target/positive/anchor": INTS,
    "target/positive/label": INTS,
    "target/positive/box": FLOATS,
    "target/ignored/anchor": INTS,
}


def pad_targets(features: dict[str, tf.Tensor]) -> SparseTargets:
    """Converts a batch parsed with `TARGET_FEATURES` into padded `SparseTargets`."""
    names = ("target/positive/anchor", "target/positive/label", "target/ignored/anchor")
    anchors, labels, ignored = (tf.cast(features[name].to_tensor(PADDING), tf.int32) for name in names)
    offsets = features["target/positive/box"].to_tensor(0.0)
    return SparseTargets(anchors, labels, tf.reshape(offsets, [tf.shape(anchors)[0], -1, 4]), ignored)


def decode_jpeg(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Decodes a JPEG to uint8 [size, size, 3] with the accurate integer DCT, so that all machines get equal pixels.

    Raises:
      tf.errors.InvalidArgumentError: if the JPEG is damaged, or its header states another size; then no pixel is
        decoded, because a file of a few kilobytes could fill the memory.
    """
    has_size = tf.reduce_all(tf.io.extract_jpeg_shape(encoded)[:2] == size)
    # An empty text is no JPEG, so decoding fails. An assertion would do the same, but has a state.
    image = tf.io.decode_jpeg(tf.where(has_size, encoded, ""), channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, [size, size, 3])
