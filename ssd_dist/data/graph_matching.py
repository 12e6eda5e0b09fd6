"""Matching inside the input pipeline for `data.targets: online`: the graph version of `core.matching.Matcher`.

Rules, tie tolerance and float64 arithmetic are those of the NumPy version; `tests/data/test_graph_matching.py` checks
that both give the same targets.
"""

from typing import NamedTuple

import tensorflow as tf

from ssd_dist.core.boxes import FloatArray
from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.matching import TIE
from ssd_dist.data.batch import SparseTargets


class _Choice(NamedTuple):
    """For each object [N]: the IoU, centre distance and index of its best free anchor."""

    iou: tf.Tensor
    distance: tf.Tensor
    anchor: tf.Tensor


class GraphMatcher:
    """Matches objects with one fixed set of anchors inside a graph."""

    def __init__(self, anchors: FloatArray, anchor_config: AnchorConfig, config: MatchingConfig) -> None:
        self._boxes = tf.constant(anchors, tf.float64)
        self._count = len(anchors)
        self._anchor_config = anchor_config
        self._config = config

    def match(self, boxes: tf.Tensor, labels: tf.Tensor, is_crowd: tf.Tensor) -> SparseTargets:
        """Returns the targets of one image, without padding.

        Args:
          boxes: float32 [N, 4].
          labels: int [N].
          is_crowd: bool [N].
        """
        wide = tf.cast(boxes, tf.float64)
        crowds = tf.boolean_mask(wide, is_crowd)
        real, labels = tf.boolean_mask(wide, ~is_crowd), tf.boolean_mask(labels, ~is_crowd)
        iou = self._iou(real)
        # The extra row of zeros means "no object"; it keeps the maxima defined for images without objects.
        padded = tf.concat([iou, tf.zeros([1, self._count], tf.float64)], 0)
        best = tf.reduce_max(padded, 0)
        owner = tf.fill([self._count], -1)
        if self._config.policy == "multi":
            nearest = self._nearest_of_best(padded, real)
            owner = tf.where(best > self._config.positive_iou + TIE, nearest, owner)
        owner = self._force_one_each(owner, iou, real)
        # Without objects `best` is 0, and a negative_iou of 0 would ignore every anchor.
        near = (best >= self._config.negative_iou - TIE) & (tf.shape(real)[0] > 0)
        ignored = (near | self._covered_by(crowds)) & (owner < 0)
        anchors = tf.where(owner >= 0)[:, 0]
        objects = tf.gather(owner, anchors)
        return SparseTargets(
            anchors=tf.cast(anchors, tf.int32),
            labels=tf.cast(tf.gather(labels, objects), tf.int32),
            offsets=self._encode(tf.gather(real, objects), tf.gather(self._boxes, anchors)),
            ignored=tf.cast(tf.where(ignored)[:, 0], tf.int32),
        )

    def _intersection(self, boxes: tf.Tensor) -> tf.Tensor:
        low = tf.maximum(boxes[:, None, :2], self._boxes[None, :, :2])
        high = tf.minimum(boxes[:, None, 2:], self._boxes[None, :, 2:])
        return tf.reduce_prod(tf.maximum(high - low, 0.0), axis=-1)

    def _iou(self, boxes: tf.Tensor) -> tf.Tensor:
        intersection = self._intersection(boxes)
        return intersection / (_areas(boxes)[:, None] + _areas(self._boxes)[None] - intersection)

    def _covered_by(self, crowds: tf.Tensor) -> tf.Tensor:
        cover = self._intersection(crowds) / _areas(self._boxes)[None]
        return tf.reduce_any(cover >= self._config.negative_iou - TIE, axis=0)

    def _distances(self, boxes: tf.Tensor) -> tf.Tensor:
        shift = _centers(boxes)[:, None] - _centers(self._boxes)[None]
        return tf.sqrt(tf.reduce_sum(shift * shift, axis=-1))

    def _nearest_of_best(self, iou: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        """Returns for each anchor the object with the highest IoU; ties go to the nearer centre, then the lower index.

        The last row of `iou` means "no object".
        """
        infinity = tf.constant(float("inf"), tf.float64)
        distance = tf.concat([self._distances(boxes), tf.fill([1, self._count], infinity)], 0)
        distance = tf.where(iou >= tf.reduce_max(iou, 0) - TIE, distance, infinity)
        return tf.argmax(tf.cast(distance <= tf.reduce_min(distance, 0) + TIE, tf.int32), 0, tf.int32)

    def _choose(self, iou: tf.Tensor, boxes: tf.Tensor, taken: tf.Tensor) -> _Choice:
        free = tf.where(taken[None], tf.constant(-1.0, tf.float64), iou)
        top = tf.reduce_max(free, 1)
        distance = tf.where(free >= top[:, None] - TIE, self._distances(boxes), float("inf"))
        nearest = tf.reduce_min(distance, 1)
        anchor = tf.argmax(tf.cast(distance <= nearest[:, None] + TIE, tf.int32), 1, tf.int32)
        return _Choice(top, tf.gather(distance, anchor, batch_dims=1), anchor)

    def _force_one_each(self, owner: tf.Tensor, iou: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        """Assigns one anchor to each object by greedy bipartite matching on the global maximum."""
        count = tf.minimum(tf.shape(boxes)[0], self._count)
        free = tf.fill([tf.shape(boxes)[0]], True)
        taken = tf.fill([self._count], False)

        def step(
            index: tf.Tensor, choice: _Choice, free: tf.Tensor, taken: tf.Tensor, owner: tf.Tensor
        ) -> tuple[tf.Tensor, _Choice, tf.Tensor, tf.Tensor, tf.Tensor]:
            winner = _pick_winner(choice, free)
            anchor = choice.anchor[winner]
            free = free & (tf.range(tf.size(free)) != winner)
            taken = taken | (tf.range(self._count) == anchor)
            owner = tf.where(tf.range(self._count) == anchor, winner, owner)
            losers = tf.where(free & (choice.anchor == anchor))
            rows = losers[:, 0]
            next_choice = self._choose(tf.gather(iou, rows), tf.gather(boxes, rows), taken)
            choice = _Choice(
                *(tf.tensor_scatter_nd_update(o, losers, n) for o, n in zip(choice, next_choice, strict=True))
            )
            return index + 1, choice, free, taken, owner

        start = (0, self._choose(iou, boxes, taken), free, taken, owner)
        return tf.while_loop(lambda index, *state: index < count, step, start)[-1]

    def _encode(self, boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        size, anchor_size = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
        shift = (_centers(boxes) - _centers(anchors)) / anchor_size / self._anchor_config.center_variance
        scale = tf.math.log(size / anchor_size) / self._anchor_config.size_variance
        return tf.cast(tf.concat([shift, scale], -1), tf.float32)


def _pick_winner(choice: _Choice, free: tf.Tensor) -> tf.Tensor:
    """Returns the free object with the highest IoU; ties go to the nearer centre, then the lower index."""
    infinity = tf.constant(float("inf"), tf.float64)
    top = tf.reduce_max(tf.where(free, choice.iou, -infinity))
    tied = free & (choice.iou >= top - TIE)
    nearest = tf.reduce_min(tf.where(tied, choice.distance, infinity))
    return tf.argmax(tf.cast(tied & (choice.distance <= nearest + TIE), tf.int32), output_type=tf.int32)


def _areas(boxes: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(boxes[..., 2:] - boxes[..., :2], axis=-1)


def _centers(boxes: tf.Tensor) -> tf.Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2.0
