"""Parameter groups: packing is lossless, and each variable is in the right group."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_dist.core.config import BackboneConfig, Config, OptimizerConfig
from ssd_dist.model.detector import build_detector
from ssd_dist.training.parameter_groups import ParameterGroup, group_parameters

SHAPES = st.lists(st.lists(st.integers(0, 3), max_size=4).map(tuple), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_unpack_inverts_pack(shapes, seed):
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    group = ParameterGroup("g", tuple(map(tf.Variable, values)), 1.0, 0.0)
    flat = group.pack()
    assert flat.shape == (group.size,) == (sum(value.size for value in values),)
    np.testing.assert_array_equal(flat, np.concatenate([value.ravel() for value in values]))
    for part, value in zip(group.unpack(flat), values, strict=True):
        np.testing.assert_array_equal(part, value)


def test_pack_accepts_other_tensors_and_packs_none_as_zeros():
    variables = (tf.Variable(tf.ones([2, 2])), tf.Variable(tf.ones([3])), tf.Variable(1.0))
    group = ParameterGroup("g", variables, 1.0, 0.0)
    half = tf.constant([[1, 2], [3, 4]], tf.float16)
    flat = group.pack([half, None, tf.constant(5.0)])
    assert flat.dtype == tf.float32
    np.testing.assert_array_equal(flat, [1, 2, 3, 4, 0, 0, 0, 5])
    with pytest.raises(ValueError, match="zip"):
        group.pack([half])


@pytest.fixture(scope="module")
def detector() -> tf_keras.Model:
    config = Config.model_validate(
        {"model": {"input_size": 64, "width": 0.35}, "backbone": {"weights": "none"}, "ema": {"enabled": False}}
    )
    return build_detector(config.model, config.backbone, config.anchors, class_count=3)


def test_every_trainable_variable_is_in_one_group(detector):
    groups = group_parameters(detector, OptimizerConfig(weight_decay=0.01), BackboneConfig(lr_scale=0.1))
    members = [variable.ref() for group in groups for variable in group.variables]
    assert len(members) == len(set(members)) == len(detector.trainable_variables)
    assert set(members) == {variable.ref() for variable in detector.trainable_variables}


def test_weight_decay_applies_to_kernels_and_not_to_norms_and_biases(detector):
    groups = group_parameters(detector, OptimizerConfig(weight_decay=0.01), BackboneConfig())
    decayed = {v.ref() for group in groups if group.weight_decay for v in group.variables}
    assert {group.weight_decay for group in groups} == {0.0, 0.01}
    for variable in detector.trainable_variables:
        kind = variable.name.split("/")[-1].split(":")[0]
        assert (variable.ref() in decayed) == {
            "kernel": True, "depthwise_kernel": True, "bias": False, "gamma": False, "beta": False,
        }[kind], variable.name  # fmt: skip


def test_the_backbone_has_its_own_learning_rate(detector):
    groups = group_parameters(detector, OptimizerConfig(), BackboneConfig(lr_scale=0.1))
    slow = {v.ref() for group in groups if group.lr_scale == 0.1 for v in group.variables}
    assert slow == {v.ref() for v in detector.get_layer("backbone").trainable_variables}
    assert {group.lr_scale for group in groups} == {0.1, 1.0}


def test_a_learning_rate_scale_of_zero_freezes_the_backbone(detector):
    groups = group_parameters(detector, OptimizerConfig(), BackboneConfig(lr_scale=0.0))
    members = {v.ref() for group in groups for v in group.variables}
    backbone = {v.ref() for v in detector.get_layer("backbone").trainable_variables}
    assert not members & backbone
    assert members | backbone == {v.ref() for v in detector.trainable_variables}
