"""The int8 file of a detector that was trained with quantization computes what the detector computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.random_detector import SETTINGS, fit_statistics, submodules_of_kind
from support.small_backbone import build_few_blocks
from support.synthetic import CLASSES
from tensorflow.lite.python import schema_py_generated as schema
from test_quantized import DECODER, draw_images, open_content
from tf_keras import layers

from ssd_dist.core.config import Config, QuantizationConfig
from ssd_dist.export.detection_op import append_detection_op
from ssd_dist.export.export_options import Quantization
from ssd_dist.export.formats import convert_to_tflite
from ssd_dist.export.serving import ServedDetector
from ssd_dist.model import detector
from ssd_dist.model.detector import build_detector, normalize_image

CONFIG = Config.model_validate(SETTINGS)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=[False, True], ids=["per_channel", "per_tensor"])
def exported(request):
    """Returns a model with random weights that rounds, the content of its file, and whether it is per tensor."""
    quantization = QuantizationConfig(aware=True, per_tensor=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        tf_keras.utils.set_random_seed(1)
        model = build_detector(CONFIG.model, CONFIG.backbone, CONFIG.anchors, len(CLASSES), quantization)
    rng = np.random.default_rng(7)
    for norm in submodules_of_kind(model, layers.BatchNormalization):
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.normal(0, 0.3, norm.beta.shape))
    # The second step is rounded.
    for _ in range(2):
        fit_statistics(model, np.stack(draw_images(range(200, 232))))
    served = ServedDetector(model, DECODER, 64, CLASSES, postprocess=False)
    # There are no images from which the converter could calibrate ranges.
    return model, convert_to_tflite(served, Quantization("int8", per_tensor=request.param), []), request.param


def test_the_file_rounds_to_the_levels_of_the_network(exported, tmp_path):
    model, content, _ = exported
    run = open_content(content, tmp_path)
    images = draw_images(range(12))
    expected = model(normalize_image(tf.constant(np.stack(images))), training=False)
    found = [run(image[None]) for image in images]
    for name in ("logits", "offsets"):
        values = np.concatenate([one[name] for one in found])
        low, high = model.get_layer(name).limits.numpy()
        levels = np.abs(values - expected[name].numpy()) / ((high - low) / 255)
        # Both have the same levels, so differences are whole numbers of them.
        np.testing.assert_allclose(levels, np.round(levels), atol=0.01)
        # A value between two levels can be rounded to either one; thirty layers of random weights spread this.
        assert (levels < 1.5).mean() > 0.75
        assert levels.mean() < 0.1 * np.std(expected[name]) / ((high - low) / 255)


def test_every_operation_is_in_int8_with_the_requested_scales(exported):
    _, content, per_tensor = exported
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph, names = model.subgraphs[0], {value: name for name, value in vars(schema.BuiltinOperator).items()}
    kinds = [names[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in graph.operators]
    supported = json.loads((Path(__file__).parent / "edge_tpu_ops.json").read_text())["operations"]
    assert [kind for kind in kinds if kind not in supported] == ["DEQUANTIZE"] * 2
    scales = {
        kind: {len(graph.tensors[operator.inputs[1]].quantization.scale) == 1}
        for operator, kind in zip(graph.operators, kinds, strict=True)
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D")
    }
    assert scales == {"CONV_2D": {per_tensor}, "DEPTHWISE_CONV_2D": {per_tensor}}
    # The input takes pixels as they are: of p, the network gets (p - 128) / 127.5.
    (pixels,) = (graph.tensors[index] for index in graph.inputs)
    assert (pixels.type, pixels.quantization.zeroPoint.tolist()) == (schema.TensorType.UINT8, [128])
    np.testing.assert_allclose(pixels.quantization.scale, [1 / 127.5], rtol=1e-6)


def test_the_detection_op_follows_the_network(exported, tmp_path):
    outputs = open_content(append_detection_op(exported[1], DECODER), tmp_path)(draw_images(range(1))[0][None])
    assert outputs["count"][0] > 10
