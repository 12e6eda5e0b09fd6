"""The network: outputs are in the order of the anchors for every head, width and input size; weights; freezing."""

from functools import cache

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.random_detector import submodules_of_kind

from ssd_dist.core.anchors import feature_sizes, generate_anchors
from ssd_dist.core.config import AnchorConfig, Config
from ssd_dist.core.errors import CheckpointError
from ssd_dist.model.backbone import build_backbone
from ssd_dist.model.batch_norm import GroupedBatchNormalization
from ssd_dist.model.detector import build_detector, normalize_image

CLASSES = 3


def config_of(input_size=64, head="ssdlite", width=0.35, **backbone) -> Config:
    return Config.model_validate(
        {
            "model": {"input_size": input_size, "head": head, "width": width, "batch_norm_momentum": 0.87},
            "backbone": {"weights": "none", **backbone},
        }
    )


def build_from(config: Config, class_count: int) -> tf_keras.Model:
    return build_detector(config.model, config.backbone, config.anchors, class_count)


@cache
def build_once(head: str) -> tf_keras.Model:
    return build_from(config_of(head=head), CLASSES)


@pytest.fixture(params=["ssd", "ssdlite"])
def detector(request) -> tf_keras.Model:
    return build_once(request.param)


def locate_anchors(input_size: int) -> np.ndarray:
    """Returns (level, row, column, shape) of each anchor, computed from its position and size."""
    config = AnchorConfig()
    places = []
    anchors = generate_anchors(config, input_size).astype(np.float64)
    start = 0
    for level, cells in enumerate(feature_sizes(input_size)):
        size, following = config.sizes[level], config.sizes[level + 1]
        shapes = [(size, size), (np.sqrt(size * following),) * 2]
        for ratio in config.aspect_ratios[level]:
            shapes += [(size / np.sqrt(ratio), size * np.sqrt(ratio)), (size * np.sqrt(ratio), size / np.sqrt(ratio))]
        for anchor in anchors[start : start + cells * cells * len(shapes)]:
            row, column = np.floor((anchor[:2] + anchor[2:]) / 2 * cells).astype(int)
            shape = np.abs(np.array(shapes) - (anchor[2:] - anchor[:2])).sum(1).argmin()
            places.append((level, row, column, shape))
        start += cells * cells * len(shapes)
    assert start == len(anchors)
    return np.array(places)


@pytest.mark.parametrize(("output", "depth"), [("logits", CLASSES + 1), ("offsets", 4)])
def test_outputs_are_in_the_order_of_the_anchors(detector, output, depth):
    # The weights of each head make it output its position as decimal digits: level, component, shape, column, row.
    prefix = {"logits": "class", "offsets": "box"}[output]
    heads = [detector.get_layer(f"{prefix}_{level}") for level in range(6)]
    features = []
    for level, (head, cells) in enumerate(zip(heads, feature_sizes(64), strict=True)):
        assert head.input.shape[1:3] == (cells, cells)
        kernel, bias = (np.zeros(weight.shape, np.float32) for weight in head.weights)
        middle = kernel.shape[0] // 2
        kernel[middle, middle, 0], kernel[middle, middle, 1] = 1, 100
        for shape in range(len(bias) // depth):
            for component in range(depth):
                bias[shape * depth + component] = 1e6 * level + 1e5 * component + 1e4 * shape
        head.set_weights([kernel, bias])
        feature = np.zeros((2, *head.input.shape[1:]), np.float32)
        feature[:, :, :, 0] = np.arange(cells)[:, None]
        feature[:, :, :, 1] = np.arange(cells)[None]
        feature[1] *= 2
        features.append(feature)
    network = tf_keras.Model([head.input for head in heads], detector.get_layer(output).output)
    values = network(features).numpy()

    level, row, column, shape = locate_anchors(64).T
    for image, factor in enumerate((1, 2)):
        for component in range(depth):
            place = 1e6 * level + 1e5 * component + 1e4 * shape + factor * (100 * column + row)
            np.testing.assert_array_equal(values[image, :, component], place)


@pytest.mark.parametrize(("head", "width"), [("ssd", 0.35), ("ssdlite", 1.0)])
def test_ssd300_has_8732_outputs(head, width):
    model = build_from(config_of(300, head, width), class_count=20)
    assert model.output_shape == {"logits": (None, 8732, 21), "offsets": (None, 8732, 4)}


@pytest.mark.parametrize("input_size", [32, 135])
def test_number_of_outputs_equals_number_of_anchors(input_size):
    model = build_from(config_of(input_size), CLASSES)
    outputs = model(tf.zeros([2, input_size, input_size, 3]))
    anchors = generate_anchors(AnchorConfig(), input_size)
    assert outputs["logits"].shape == (2, len(anchors), CLASSES + 1)
    assert outputs["offsets"].shape == (2, len(anchors), 4)


@pytest.mark.parametrize("head", ["ssd", "ssdlite"])
@pytest.mark.parametrize("input_size", [32, 64, 128, 300])
def test_no_strided_convolution_has_a_single_cell_as_input(input_size, head):
    # oneDNN's kernel gradient of such a convolution contains uninitialized memory in bfloat16.
    network = build_from(config_of(input_size, head), CLASSES)
    convolutions = submodules_of_kind(network, (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D))
    sizes = {layer.name: layer.input_shape[1] for layer in convolutions if max(layer.strides) > 1}
    # Those of the backbone, at least.
    assert len(sizes) >= 5
    assert min(sizes.values()) > 1, sizes


def test_number_of_shapes_follows_the_config():
    ratios = [[2.0, 3.0], [], [2.0], [2.0, 3.0, 4.0], [], [2.0]]
    config = Config.model_validate({**config_of().model_dump(), "anchors": {"aspect_ratios": ratios}})
    model = build_from(config, CLASSES)
    assert model.output_shape["offsets"][1] == len(generate_anchors(config.anchors, 64))


def test_taps_have_the_strides_and_channels_of_mobilenetv2():
    # Sandler et al. 2018, table 2: six-fold expansions of 32 and 96 channels, and the last 1280.
    shapes = build_backbone(config_of(width=1.0).backbone, config_of(256, width=1.0).model).output_shape
    assert shapes == [(None, 32, 32, 192), (None, 16, 16, 576), (None, 8, 8, 1280)]


def test_heads_have_the_kernels_of_their_style():
    ssd, lite = build_once("ssd"), build_once("ssdlite")
    for level in range(6):
        for name in ("class", "box"):
            assert ssd.get_layer(f"{name}_{level}").kernel_size == (3, 3)
            assert lite.get_layer(f"{name}_{level}").kernel_size == (1, 1)
            assert lite.get_layer(f"{name}_{level}_depthwise").kernel_size == (3, 3)
    assert lite.count_params() < ssd.count_params() / 2


def test_every_trainable_variable_has_a_gradient(detector):
    images = tf.constant(np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32))
    with tf.GradientTape() as tape:
        outputs = detector(images, training=True)
        value = tf.reduce_sum(outputs["logits"] ** 2) + tf.reduce_sum(outputs["offsets"] ** 2)
    for variable, gradient in zip(
        detector.trainable_variables, tape.gradient(value, detector.trainable_variables), strict=True
    ):
        assert gradient is not None, variable.name
        assert np.isfinite(gradient).all(), variable.name


def test_outputs_of_an_image_do_not_depend_on_the_rest_of_the_batch(detector):
    images = tf.constant(np.random.default_rng(1).uniform(-1, 1, (3, 64, 64, 3)).astype(np.float32))
    whole = detector(images, training=False)
    for index in range(3):
        alone = detector(images[index : index + 1], training=False)
        for name in ("logits", "offsets"):
            np.testing.assert_allclose(alone[name][0], whole[name][index], rtol=1e-4, atol=1e-5)


def test_all_batch_norms_have_the_momentum_of_the_config(detector):
    norms = [layer for layer in _all_layers(detector) if isinstance(layer, tf_keras.layers.BatchNormalization)]
    assert len(norms) > 50
    assert {norm.momentum for norm in norms} == {0.87}


@pytest.mark.parametrize("frozen", [{"freeze_batch_norm": True}, {"lr_scale": 0.0}])
def test_only_the_batch_norms_of_the_backbone_are_frozen(frozen):
    model = build_from(config_of(**frozen), CLASSES)
    backbone = model.get_layer("backbone")
    inside = {layer.name for layer in _all_layers(backbone) if isinstance(layer, tf_keras.layers.BatchNormalization)}
    for layer in _all_layers(model):
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            assert layer.trainable == (layer.name not in inside), layer.name
    before = [variable.numpy() for variable in backbone.non_trainable_variables]
    model(tf.random.stateless_uniform([2, 64, 64, 3], [0, 1]), training=True)
    for variable, value in zip(backbone.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def build_frozen(blocks: int) -> tf_keras.Model:
    """Builds a detector with frozen blocks and random weights, which the config refuses."""
    config = config_of()
    return build_detector(
        config.model, config.backbone.model_copy(update={"frozen_blocks": blocks}), config.anchors, CLASSES
    )


def test_frozen_blocks_are_the_first_and_keep_all_their_variables():
    backbone = build_frozen(3).get_layer("backbone")
    frozen = [layer.name for layer in backbone.layers if not layer.trainable]
    names = [layer.name for layer in backbone.layers if layer.name != backbone.input_names[0]]
    # The layers are in the order of the network, so block 3 begins after the last frozen one.
    assert frozen == names[: len(frozen)]
    assert names[len(frozen)] == "block_3_expand"
    before = [variable.numpy() for variable in backbone.non_trainable_variables]
    backbone(tf.random.stateless_uniform([2, 64, 64, 3], [0, 1]), training=True)
    fixed = {variable.ref() for layer in backbone.layers if not layer.trainable for variable in layer.variables}
    # A kernel and the four vectors of its batch norm: the first convolution, two of block 0, three of blocks 1 and 2.
    assert len(fixed) == 5 * (1 + 2 + 3 + 3)
    for variable, value in zip(backbone.non_trainable_variables, before, strict=True):
        assert np.array_equal(variable, value) == (variable.ref() in fixed), variable.name


def test_frozen_blocks_do_not_change_the_outputs():
    images = tf.random.stateless_uniform([2, 64, 64, 3], [0, 1])
    free, frozen = (build_frozen(blocks) for blocks in (0, 17))
    frozen.set_weights(free.get_weights())
    assert {variable.name.split("/")[0] for variable in frozen.get_layer("backbone").trainable_variables} == {
        "Conv_1", "Conv_1_bn",
    }  # fmt: skip
    for name in ("logits", "offsets"):
        expected = free(images)[name].numpy()
        # A frozen batch norm multiplies in another order than the fused one: 50 layers, each within 6e-8 of its values.
        np.testing.assert_allclose(frozen(images)[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_extra_levels_have_the_channels_of_the_config():
    config = config_of()
    model = config.model.model_copy(update={"extra_channels": (64, 32, 16)})
    detector = build_detector(model, config.backbone, config.anchors, CLASSES)
    assert [detector.get_layer(f"extra_{level}_relu").output_shape[-1] for level in range(3)] == [64, 32, 16]


def test_frozen_batch_norm_has_a_deterministic_gradient_on_gpus():
    norm = GroupedBatchNormalization(4)
    norm.build([None, 4, 4, 3])
    norm.set_weights([*np.random.default_rng(0).uniform(0.5, 2.0, (4, 3))])
    norm.trainable = False

    @tf.function
    def run(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = norm(values, training=True)
        return outputs, tape.gradient(outputs, values)

    values = tf.random.stateless_normal([2, 4, 4, 3], [0, 1])
    outputs, gradient = run(values)
    # Tolerance: six multiplications in another order.
    np.testing.assert_allclose(outputs, norm(values, training=False), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        gradient, tf.broadcast_to(norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon), values.shape), rtol=1e-5
    )
    # TensorFlow raises an error for the fused version (pull request 50505).
    graph = run.get_concrete_function(values).graph
    assert not [operation.type for operation in graph.get_operations() if "FusedBatchNorm" in operation.type]


def test_outputs_are_float32_under_mixed_precision():
    before = tf_keras.mixed_precision.global_policy()
    try:
        tf_keras.mixed_precision.set_global_policy("mixed_float16")
        model = build_from(config_of(32), CLASSES)
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    assert {tensor.dtype for tensor in model.outputs} == {tf.float32}
    assert model.get_layer("class_0").compute_dtype == "float16"


def test_pixels_are_normalized_to_the_range_of_the_backbone():
    pixels = tf.constant([0, 51, 255], tf.uint8)
    np.testing.assert_allclose(normalize_image(pixels), [-1, -0.6, 1], atol=1e-6)


def test_weights_are_loaded_from_a_file(shared):
    path = shared / "weights" / "mobilenet_v2_1.0_imagenet_no_top.h5"
    config = config_of(width=1.0, weights=str(path))
    backbone = build_backbone(config.backbone, config.model)
    expected = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, node: expected.update({name.split("/", 1)[1]: node[()]} if hasattr(node, "shape") else {})
        )
    variables = {variable.name: variable.numpy() for variable in backbone.variables}
    assert set(variables) == set(expected)
    for name, value in variables.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("other_width.h5", r"other_width\.h5 is not a MobileNetV2 without top of width 0\.35"),
        ("text.h5", r"text\.h5 is not a MobileNetV2"),
        ("nowhere.h5", r"nowhere\.h5 does not exist"),
    ],
)
def test_unusable_weight_files_raise_an_error(tmp_path, file, problem):
    (tmp_path / "text.h5").write_text("no weights")
    if file == "other_width.h5":
        other = tf_keras.applications.MobileNetV2((32, 32, 3), alpha=0.5, include_top=False, weights=None)
        other.save_weights(tmp_path / file)
    config = config_of(32, weights=str(tmp_path / file))
    with pytest.raises(CheckpointError, match=problem):
        build_backbone(config.backbone, config.model)


def _all_layers(model: tf_keras.Model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, tf_keras.Model):
            yield from _all_layers(layer)


@pytest.mark.parametrize("head", ["ssd", "ssdlite"])
def test_last_level_depends_on_every_cell_of_the_level_below_at_512(head):
    assert feature_sizes(512) == (64, 32, 16, 8, 4, 1)
    model = build_from(config_of(512, head, 0.1), CLASSES)
    last = tf_keras.Model(model.get_layer("extra_1_relu").output, model.get_layer("extra_2").output)
    below = tf.random.stateless_uniform([1, 4, 4, 256], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(below)
        seen = tf.reduce_sum(last(below))
    assert (np.abs(tape.gradient(seen, below)[0]).sum(axis=-1) > 0).all()
