"""Matching inside the input pipeline for `data.targets: online`: calls `core.matching.Matcher` from the graph.

Online and precomputed targets are therefore the same, and matching a crowded image takes no more memory online than in
prepare.
"""

import numpy as np
import tensorflow as tf

from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.matching import Matcher
from ssd_dist.data.batch import SparseTargets


class GraphMatcher:
    """Matches objects with one fixed set of anchors inside a graph, which runs only in this process."""

    def __init__(self, anchor_config: AnchorConfig, input_size: int, config: MatchingConfig) -> None:
        self._matcher = Matcher(anchor_config, input_size, config)

    def match(self, boxes: tf.Tensor, labels: tf.Tensor, is_crowd: tf.Tensor) -> SparseTargets:
        """Returns the targets of one image, without padding.

        Args:
          boxes: float32 [N, 4].
          labels: int [N].
          is_crowd: bool [N].
        """
        anchors, matched, offsets, ignored = tf.numpy_function(
            self._match, [boxes, labels, is_crowd], [tf.int32, tf.int32, tf.float32, tf.int32], stateful=False
        )
        return SparseTargets(
            anchors=tf.ensure_shape(anchors, [None]),
            labels=tf.ensure_shape(matched, [None]),
            offsets=tf.ensure_shape(offsets, [None, 4]),
            ignored=tf.ensure_shape(ignored, [None]),
        )

    def _match(self, boxes: np.ndarray, labels: np.ndarray, is_crowd: np.ndarray) -> tuple[np.ndarray, ...]:
        targets = self._matcher.match(boxes, labels, is_crowd)
        return (
            targets.anchors.astype(np.int32),
            targets.labels.astype(np.int32),
            targets.offsets,
            targets.ignored.astype(np.int32),
        )
