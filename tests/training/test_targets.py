"""Masks and counts of sparse targets equal those computed with Python sets."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_dist.core.config import MiningConfig
from ssd_dist.data.batch import SparseTargets
from ssd_dist.training.targets import candidate_mask, count_targets, negative_quota, positive_mask

ANCHORS = 9


@st.composite
def sparse_rows(draw):
    """Draws the positive and the ignored anchors of each image: disjoint, ascending, from none to all."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        kinds = draw(st.lists(st.sampled_from("nnpi"), min_size=ANCHORS, max_size=ANCHORS))
        rows.append([[a for a, kind in enumerate(kinds) if kind == selected] for selected in "pi"])
    return rows


def batch_of(rows) -> SparseTargets:
    def pad(lists):
        length = max(map(len, lists))
        return tf.constant([row + [-1] * (length - len(row)) for row in lists], tf.int32, [len(lists), length])

    anchors = pad([positives for positives, _ in rows])
    return SparseTargets(anchors, tf.ones_like(anchors), tf.zeros([*anchors.shape, 4]), pad([i for _, i in rows]))


@settings(deadline=None, max_examples=60)
@given(rows=sparse_rows(), ratio=st.sampled_from([0.0, 0.5, 1.0, 2.75, 3.0]), minimum=st.integers(0, 12))
def test_masks_and_counts(rows, ratio, minimum):
    targets = batch_of(rows)
    everything = set(range(ANCHORS))
    expected = [sorted(everything - set(positives) - set(ignored)) for positives, ignored in rows]
    mask = candidate_mask(targets, ANCHORS).numpy()
    assert mask.shape == (len(rows), ANCHORS)
    assert [np.flatnonzero(row).tolist() for row in mask] == expected

    counts = count_targets(targets, ANCHORS, MiningConfig(ratio=ratio, min_negatives_per_image=minimum))
    assert counts.positives.numpy().tolist() == [len(positives) for positives, _ in rows]
    assert counts.candidates.numpy().tolist() == list(map(len, expected))
    quota = [
        min(max(math.floor(ratio * len(positives)), minimum), len(candidates))
        for (positives, _), candidates in zip(rows, expected, strict=True)
    ]
    assert counts.quota.numpy().tolist() == quota
    assert counts.totals().numpy().tolist() == [sum(map(int, count.numpy())) for count in counts]
    assert positive_mask(targets).numpy().sum(1).tolist() == counts.positives.numpy().tolist()


@pytest.mark.parametrize(
    ("positives", "candidates", "ratio", "minimum", "images", "quota"),
    [
        (4, 100, 3.0, 0, 1, 12),
        (5, 100, 2.5, 0, 1, 12),  # 12.5 is truncated, not rounded
        (0, 100, 3.0, 0, 1, 0),
        (0, 100, 3.0, 7, 1, 7),
        (4, 100, 3.0, 7, 1, 12),
        (4, 9, 3.0, 0, 1, 9),
        (0, 3, 3.0, 7, 1, 3),
        (10, 10**6, 3.0, 2, 16, 32),  # in a global batch the minimum counts per image
        (10, 10**6, 0.3, 0, 1, 3),  # 0.3 x 10 is 3 in spite of binary rounding
        (2000, 139712, 3.0, 0, 16, 6000),
        (3, 8000, 1e9, 0, 1, 8000),  # all negatives, although 3e9 does not fit into int32
        (0, 8000, 1e9, 5, 1, 5),
    ],
)
def test_quota_by_hand(positives, candidates, ratio, minimum, images, quota):
    config = MiningConfig(ratio=ratio, min_negatives_per_image=minimum)
    assert int(negative_quota(tf.constant(positives), tf.constant(candidates), config, images)) == quota
