"""Detectors whose depthwise kernels have a few very large channels keep their function when these are reduced."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.random_detector import SETTINGS, fit_statistics, randomize_weights
from support.small_backbone import build_few_blocks
from support.synthetic import CLASSES
from support.untrained_run import write_untrained_run
from tf_keras import layers

from ssd_dist.core.config import Config, QuantizationConfig
from ssd_dist.export import exporter
from ssd_dist.export.export_options import ExportOptions, Quantization
from ssd_dist.export.folding import fold_batch_norm
from ssd_dist.model import detector
from ssd_dist.model.channel_ranges import LARGEST_RANGE, limit_channel_ranges
from ssd_dist.model.detector import build_detector, normalize_image
from ssd_dist.model.layer_names import layers_by_part, name_variables

CONFIG = Config.model_validate(SETTINGS)
NOISE = np.random.default_rng(3).integers(0, 256, [32, 64, 64, 3], np.uint8)
OUTLIERS = (2, 7, 11)


def build(quantization=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        tf_keras.utils.set_random_seed(1)
        parts = (CONFIG.model, CONFIG.backbone, CONFIG.anchors, len(CLASSES))
        return build_detector(*parts, quantization or QuantizationConfig())


@pytest.fixture
def model():
    """Returns a detector whose first depthwise kernel has three channels that are 300 times as large as before."""
    model = build()
    randomize_weights(model)
    fit_statistics(model, NOISE)
    enlarge_channels(model)
    return model


def enlarge_channels(model):
    """Multiplies the kernel of a few channels by 300 and divides their inputs by it: the function stays the same."""
    depthwise = layer = first_depthwise(model)
    while not isinstance(layer, layers.BatchNormalization):
        layer = layer.inbound_nodes[0].inbound_layers
    kernel, gamma, beta = depthwise.depthwise_kernel.numpy(), layer.gamma.numpy(), layer.beta.numpy()
    for channel in OUTLIERS:
        kernel[:, :, channel] *= 300
        gamma[channel] /= 300
        beta[channel] /= 300
    depthwise.depthwise_kernel.assign(kernel)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)


def first_depthwise(model):
    backbone = next(layer for layer in model.layers if isinstance(layer, tf_keras.Model))
    return next(layer for layer in backbone.layers if isinstance(layer, layers.DepthwiseConv2D))


def run(model):
    outputs = model(normalize_image(tf.constant(NOISE[:4])), training=False)
    return {name: value.numpy() for name, value in outputs.items()}


def folded_ranges(model):
    """Returns the ranges of the channels of the first depthwise kernel after folding."""
    return np.abs(first_depthwise(fold_batch_norm(model)).depthwise_kernel.numpy()).max(axis=(0, 1, 3))


def test_the_function_stays_the_same_and_no_channel_is_much_larger_than_the_others(model):
    expected = run(model)
    before = folded_ranges(model)
    assert (before[list(OUTLIERS)] > 20 * np.median(before)).all()
    assert limit_channel_ranges(model) == len(OUTLIERS)
    after = folded_ranges(model)
    # The median is that of the other channels, which do not change.
    np.testing.assert_allclose(after[list(OUTLIERS)], LARGEST_RANGE * np.median(before), rtol=1e-5)
    others = np.delete(np.arange(len(before)), OUTLIERS)
    np.testing.assert_array_equal(after[others], before[others])
    for name, values in run(model).items():
        # Rounding of sums whose terms are scaled.
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-3 * np.abs(expected[name]).max())


def test_a_detector_without_large_channels_is_not_changed(model):
    limit_channel_ranges(model)
    weights = model.get_weights()
    assert limit_channel_ranges(model) == 0
    for value, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_kernel_with_one_scale_keeps_more_of_the_outputs(model):
    expected = run(model)["logits"]

    def measure_error():
        folded = fold_batch_norm(model)
        kernel = first_depthwise(folded).depthwise_kernel
        step = np.abs(kernel.numpy()).max() / 127
        kernel.assign(np.round(kernel.numpy() / step) * step)
        return np.abs(run(folded)["logits"] - expected).mean()

    before = measure_error()
    limit_channel_ranges(model)
    # 8 bits for a range of 6 medians instead of 300.
    assert measure_error() < before / 10


def test_a_detector_that_rounds_is_changed_in_the_same_way(model):
    aware = build(QuantizationConfig(aware=True, per_tensor=True))
    values = {name: v.numpy() for _, layer in layers_by_part(model) for name, v in name_variables(layer).items()}
    for _, layer in layers_by_part(aware):
        for name, variable in name_variables(layer).items():
            variable.assign(values.get(name, variable))
    assert limit_channel_ranges(aware) == limit_channel_ranges(model) == len(OUTLIERS)
    found = {name: v.numpy() for _, layer in layers_by_part(aware) for name, v in name_variables(layer).items()}
    for _, layer in layers_by_part(model):
        for name, variable in name_variables(layer).items():
            np.testing.assert_array_equal(found[name], variable.numpy())


def test_channels_without_range_are_left_alone(model):
    depthwise = first_depthwise(model)
    depthwise.depthwise_kernel.assign(tf.zeros_like(depthwise.depthwise_kernel))
    limit_channel_ranges(model)
    assert all(np.isfinite(value).all() for value in model.get_weights())


@pytest.mark.usefixtures("small_backbone")
@pytest.mark.parametrize(("per_tensor", "limited"), [(True, True), (False, False)])
def test_only_files_with_one_scale_per_layer_are_exported_with_limited_channels(
    tmp_path, monkeypatch, per_tensor, limited
):
    def randomize_and_enlarge(model):
        randomize_weights(model)
        enlarge_channels(model)

    written = []

    class WrittenError(Exception):
        """Ends the export before the conversion, which takes long."""

    def write(served, *_):
        written.append(served)
        raise WrittenError

    monkeypatch.setattr(exporter, "write_export", write)
    run = write_untrained_run(tmp_path, SETTINGS, randomize_and_enlarge)
    options = ExportOptions("tflite", "raw", Quantization("int8", per_tensor=per_tensor))
    with pytest.raises(WrittenError):
        exporter.export_run(str(run), "best", options, str(tmp_path / "export"), ())
    (served,) = written
    kernels = [
        weights["depthwise_kernel"].numpy() for weights in served._weights.values() if "depthwise_kernel" in weights
    ]
    ranges = np.abs(kernels[0]).max(axis=(0, 1, 3))
    assert (ranges.max() <= 1.001 * LARGEST_RANGE * np.median(ranges)) == limited
