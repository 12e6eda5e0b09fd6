"""Training with quantization: what is rounded, how limits move, and that a run resumes exactly."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from multihost.curve_worker import build_tiny_detector, create_trainer, flatten
from support.random_detector import submodules_of_kind
from support.small_backbone import build_few_blocks
from support.synthetic import CLASSES, write_dataset
from tf_keras import layers

from ssd_dist.core.config import Config, QuantizationConfig
from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import UsageError
from ssd_dist.export.export_options import ExportOptions, Quantization, check_trained_quantization
from ssd_dist.model import detector
from ssd_dist.model.batch_norm import get_moving_statistics
from ssd_dist.model.detector import build_detector
from ssd_dist.model.layer_names import layers_by_part, name_variables
from ssd_dist.model.quantization import (
    LIMITS_MOMENTUM,
    LIMITS_NAME,
    RoundedReLU,
    list_limits,
    round_activation,
    round_kernel,
)
from ssd_dist.training import assembly
from ssd_dist.training.batch_division import divide_batch
from ssd_dist.training.source_weights import SourceWeights
from ssd_dist.training.weight_transfer import transfer_weights

AWARE = ["quantization.aware=true", "model.init_from=RUN"]
SMALL = ["model.input_size=64", "backbone.weights=none", "train.global_batch_size=8", "train.log_every=1",
         "schedule.warmup_steps=0", "optimizer.lr=0.01", "model.batch_norm_group=2"]  # fmt: skip


def load_small_config(*overrides: str) -> Config:
    return load_config(None, [*SMALL, *overrides])


def round_to_levels(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    return np.round(values / step) * step


@pytest.mark.parametrize(("shape", "axes"), [((3, 3, 5, 7), (0, 1, 2)), ((3, 3, 5, 1), (0, 1))])
def test_kernels_are_rounded_as_by_the_int8_scheme_of_tflite(shape, axes):
    """TFLite's specification: int8 weights in -127..127, zero point 0, per channel or per tensor."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=shape).astype(np.float32)
    channels = [size for axis, size in enumerate(shape) if axis not in axes]
    step = np.abs(kernel).max(axis=axes, keepdims=True) / 127
    found = round_kernel(tf.constant(kernel), axes, per_tensor=False, read_scale=None)
    np.testing.assert_allclose(found, round_to_levels(kernel, step), atol=1e-6)
    # Per tensor, the kernel that the export folds has common levels.
    scale = rng.uniform(-2, 2, channels).astype(np.float32)
    found = round_kernel(tf.constant(kernel), axes, per_tensor=True, read_scale=lambda: tf.reshape(scale, [-1]))
    folded = kernel * scale
    np.testing.assert_allclose(found * scale, round_to_levels(folded, np.abs(folded).max() / 127), atol=1e-5)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_the_gradient_of_a_rounded_kernel_is_that_of_the_identity(per_tensor):
    kernel, upstream = tf.random.stateless_normal([2, 3, 3, 4, 5], [1, 2])
    scale = tf.constant([0.5, -1.0, 2.0, 3.0, 0.1])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        rounded = round_kernel(kernel, (0, 1, 2), per_tensor, lambda: scale)
    np.testing.assert_allclose(tape.gradient(rounded, kernel, upstream), upstream, rtol=1e-6)


def test_activations_have_256_levels_and_no_gradient_outside_of_the_limits():
    values = tf.linspace(-2.0, 4.0, 10_001)
    limits = tf.constant([-1.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(values)
        rounded = round_activation(values, limits)
    levels = np.unique(rounded)
    assert len(levels) == 256
    assert 0.0 in levels
    np.testing.assert_allclose(np.diff(levels), 4 / 255, rtol=1e-4)
    inside = (values >= -1) & (values <= 3)
    assert np.abs(rounded - values)[inside].max() < 4 / 255
    np.testing.assert_array_equal(tape.gradient(rounded, values), tf.cast(inside, tf.float32))


def test_limits_follow_the_mean_of_the_groups_and_start_with_the_first_step():
    relu = RoundedReLU(2, max_value=6.0)
    first = np.array([[1.0], [2.0], [5.0], [3.0]], np.float32)
    np.testing.assert_array_equal(relu(first, training=True), first)
    # Groups of two images: the highest values are 2 and 5.
    np.testing.assert_allclose(relu.limits, [0, 3.5])
    second = np.full([4, 1], 5.5, np.float32)
    # Rounded with the limits before the step.
    np.testing.assert_allclose(relu(second, training=True), np.full([4, 1], 3.5), rtol=1e-6)
    np.testing.assert_allclose(relu.limits, [0, 3.5 + (1 - LIMITS_MOMENTUM) * 2], rtol=1e-6)
    before = relu.limits.numpy()
    relu(second, training=False)
    np.testing.assert_array_equal(relu.limits, before)


@pytest.fixture(scope="module")
def small_models():
    """Returns a detector with and one without rounding, with different weights."""
    config = load_small_config()
    parts = (config.model, config.backbone, config.anchors, len(CLASSES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        return build_detector(*parts, QuantizationConfig(aware=True)), build_detector(*parts)


def test_a_run_with_quantization_takes_over_every_weight_of_a_run_without(small_models):
    aware, plain = small_models
    values = {name: v.numpy() for _, layer in layers_by_part(plain) for name, v in name_variables(layer).items()}
    anchors = load_small_config().anchors
    report = transfer_weights(aware, CLASSES, anchors, SourceWeights("RUN", values, tuple(CLASSES), anchors))
    assert not any("starts fresh" in line for line in report)
    found = {name: v.numpy() for _, layer in layers_by_part(aware) for name, v in name_variables(layer).items()}
    assert {name for name in found if not name.endswith(LIMITS_NAME)} == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_every_tensor_between_two_operations_of_the_file_is_rounded_once(small_models):
    aware, plain = small_models
    tensors = submodules_of_kind(plain, layers.ReLU) + submodules_of_kind(plain, layers.Add)
    linear = len(submodules_of_kind(plain, layers.BatchNormalization)) - len(submodules_of_kind(plain, layers.ReLU))
    # Plus logits and offsets.
    assert len(list_limits(aware)) == len(tensors) + linear + 2
    assert list_limits(plain) == []


def test_a_run_resumes_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "build_detector", build_tiny_detector)
    config = load_small_config(*AWARE, f"data.dir={tmp_path / 'data'}")
    write_dataset(tmp_path / "data", config, {"train": 16}, shards=4)
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")

    def read(state):
        return flatten([*state.model.variables, *state.ema.averages.values()])

    whole, trainer = create_trainer(config, strategy, 4)
    trainer.train(tf.constant(2))
    path = whole.checkpoint().write(str(tmp_path / "checkpoint"))
    trainer.train(tf.constant(2))
    assert all(limits[0] < limits[1] for limits in list_limits(whole.model))
    # The data of a trainer starts at the step of its state.
    create_state = assembly.create_state

    def restore(*arguments):
        state = create_state(*arguments)
        state.checkpoint().read(path).assert_consumed()
        return state

    monkeypatch.setattr(assembly, "create_state", restore)
    resumed, trainer = create_trainer(config, strategy, 4)
    trainer.train(tf.constant(2))
    np.testing.assert_array_equal(read(resumed), read(whole))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quantization.aware=true"], "needs the weights of a trained run"),
        (["quantization.per_tensor=true"], "has an effect only with quantization.aware"),
        ([*AWARE, "amp.enabled=true"], "set amp.enabled: false"),
    ],
)
def test_settings_that_exclude_each_other_are_rejected(overrides, message):
    with pytest.raises(UsageError, match=message) as error:
        load_small_config(*overrides)
    assert "\n" not in str(error.value)


def test_groups_on_several_replicas_are_rejected():
    with pytest.raises(UsageError, match=r"set model\.batch_norm_group to at most 4"):
        divide_batch(load_small_config(*AWARE, "model.batch_norm_group=8"), replicas=2)


@pytest.mark.parametrize(
    ("kind", "quantization", "message"),
    [
        ("onnx", Quantization(), "use --format=tflite --quantize=int8, or export RUN"),
        ("tflite", Quantization("fp16"), "use --format=tflite --quantize=int8, or export RUN"),
        ("tflite", Quantization("int8", per_tensor=True), "omit --per_tensor"),
        ("tflite", Quantization("int8", calibration_images=64), "--calibration_images: .* its ranges are known"),
    ],
)
def test_exports_that_the_run_was_not_trained_for_are_rejected(kind, quantization, message):
    options = ExportOptions(kind, "raw", quantization)
    with pytest.raises(UsageError, match=message):
        check_trained_quantization(QuantizationConfig(aware=True), options, "RUN")
    check_trained_quantization(QuantizationConfig(), options, "")


@pytest.mark.parametrize("per_tensor", [False, True])
def test_training_for_one_scale_per_layer_starts_with_limited_channels(monkeypatch, per_tensor):
    changed = []
    monkeypatch.setattr(assembly, "read_source_weights", lambda _: None)
    monkeypatch.setattr(assembly, "transfer_weights", lambda *_: ["initial weights"])
    monkeypatch.setattr(assembly, "limit_channel_ranges", lambda model: changed.append(model) or 3)
    settings = {"model": {"init_from": "RUN"}, "quantization": {"aware": True, "per_tensor": per_tensor}}
    state = SimpleNamespace(model=SimpleNamespace(variables=()), ema=None)
    report = assembly.start_from_source(
        Config.model_validate(settings), CLASSES, tf.distribute.OneDeviceStrategy("CPU:0"), state
    )
    assert changed == [state.model] * per_tensor
    assert report[1:] == ["  for one scale per layer: 3 channels of depthwise kernels reduced"] * per_tensor


@pytest.mark.parametrize("aware", [False, True])
def test_training_with_quantization_keeps_the_batch_norms_of_the_backbone(monkeypatch, aware):
    def build(backbone, model):
        network = build_few_blocks(backbone, model)
        for norm in submodules_of_kind(network, layers.BatchNormalization):
            norm.trainable = not backbone.freeze_batch_norm
        return network

    monkeypatch.setattr(detector, "build_backbone", build)
    config = load_small_config(*(AWARE if aware else ()))
    model = build_detector(config.model, config.backbone, config.anchors, len(CLASSES), config.quantization)
    network = next(layer for layer in model.layers if isinstance(layer, tf_keras.Model))
    norms = submodules_of_kind(network, layers.BatchNormalization)
    inside = {variable.name for norm in norms for variable in norm.variables}
    changing = {variable.name for variable in [*get_moving_statistics(model), *model.trainable_variables]}
    assert len(inside) > 50
    assert inside & changing == (set() if aware else inside)
    # Those of the heads are trained.
    assert any("moving" in name for name in changing)
