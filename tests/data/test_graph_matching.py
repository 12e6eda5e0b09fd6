"""Tests that online and precomputed matching give the same targets."""

from functools import cache
from itertools import islice

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.box_strategies import adversarial_boxes, general_boxes
from support.synthetic import write_dataset

from ssd_dist.core.config import AnchorConfig, AugmentationConfig, Config, MatchingConfig
from ssd_dist.core.matching import Matcher
from ssd_dist.data.graph_matching import GraphMatcher
from ssd_dist.data.online_targets import sample_crop
from ssd_dist.data.pipeline import plan_training, training_batches

ANCHORS = AnchorConfig()
BOXES = st.one_of(general_boxes(), adversarial_boxes())


@cache
def twins(input_size: int, config: MatchingConfig):
    """Returns the NumPy matcher and the graph matcher, traced once for any number of boxes."""
    signature = [tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.bool)]
    graph = tf.function(GraphMatcher(ANCHORS, input_size, config).match, input_signature=signature)
    return Matcher(ANCHORS, input_size, config), graph


def check_equal(input_size: int, config: MatchingConfig, boxes: np.ndarray, is_crowd: np.ndarray) -> None:
    matcher, graph = twins(input_size, config)
    labels = np.arange(5, 5 + len(boxes))
    expected = matcher.match(boxes, labels, is_crowd)
    targets = graph(boxes, labels, is_crowd)
    np.testing.assert_array_equal(targets.anchors, expected.anchors)
    np.testing.assert_array_equal(targets.labels, expected.labels)
    np.testing.assert_array_equal(targets.offsets, expected.offsets)
    np.testing.assert_array_equal(targets.ignored, expected.ignored)


@pytest.mark.parametrize("policy", ["multi", "one_to_one"])
@pytest.mark.parametrize("input_size", [64, 300])
@settings(deadline=None, max_examples=50)
@given(boxes=BOXES, data=st.data())
def test_targets_equal_those_of_the_numpy_version(policy, input_size, boxes, data):
    is_crowd = np.array(data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes))), bool)
    check_equal(input_size, MatchingConfig(policy=policy), boxes, is_crowd)


@pytest.mark.parametrize("bounds", [(0.3, 0.3), (0.1, 0.9), (0.0, 1.0), (0.0, 0.0)])
@settings(deadline=None, max_examples=20)
@given(boxes=BOXES)
def test_targets_equal_those_of_the_numpy_version_at_any_bounds(bounds, boxes):
    config = MatchingConfig(negative_iou=bounds[0], positive_iou=bounds[1])
    check_equal(64, config, boxes, np.zeros(len(boxes), bool))


@pytest.mark.parametrize("shift", [1e-5, -1e-5])
def test_a_small_difference_in_distance_decides_as_in_the_numpy_version(shift):
    # 2e-5 nearer to one of two cells: within the tolerance if distances were squared.
    y, x = 0.5 / 38, 20 / 38 + shift
    box = np.array([[y - 0.004, x - 0.005, y + 0.004, x + 0.005]], np.float32)
    check_equal(300, MatchingConfig(policy="one_to_one"), box, np.zeros(1, bool))


def test_more_objects_than_anchors():
    boxes = np.tile(np.array([[0.2, 0.3, 0.7, 0.8], [0.1, 0.1, 0.2, 0.2]], np.float32), (60, 1))
    for policy in ("multi", "one_to_one"):
        check_equal(32, MatchingConfig(policy=policy), boxes, np.zeros(120, bool))


def test_without_crops_the_online_pipeline_gives_the_prepared_targets(tmp_path):
    def config_of(targets: str) -> Config:
        augmentation = {"crop": False}
        return Config.model_validate(
            {
                "data": {"dir": str(tmp_path / "out"), "targets": targets, "augmentation": augmentation},
                "model": {"input_size": 64},
                "train": {"global_batch_size": 4},
            }
        )

    manifest = write_dataset(tmp_path / "out", config_of("online"), {"train": 12}, shards=2)

    def read_batches(config: Config):
        plan = plan_training(config.data, config.train, manifest.splits["train"])
        return islice(training_batches(config.data, config.anchors, config.matching, 64, plan, 4, 0), 5)

    prepared, online = (read_batches(config_of(targets)) for targets in ("precomputed", "online"))
    for ours, theirs in zip(prepared, online, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.color_maps, theirs.color_maps)
        for part, other in zip(ours.targets, theirs.targets, strict=True):
            np.testing.assert_allclose(part, other, rtol=1e-5, atol=1e-5)


def test_online_crops_respect_the_limits_of_the_config():
    boxes = tf.constant([[0.1, 0.1, 0.4, 0.5], [0.3, 0.6, 0.9, 0.95]])
    config = AugmentationConfig(largest_expansion=1.5, smallest_crop=0.8)
    draw = tf.function(lambda seed: sample_crop(boxes, seed, config))
    found = np.stack([draw(tf.constant([number, 7], tf.int64)).numpy() for number in range(400)])
    areas = np.prod(found[:, 2:] - found[:, :2], axis=1)
    # The bounds of the sides, squared; the extremes of 400 draws come near them.
    assert 1.7 < areas.max() <= 1.5**2 + 1e-5
    assert 0.8**2 - 1e-5 <= areas.min() < 0.8**2 + 0.1
