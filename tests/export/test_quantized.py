"""Compares the outputs of float16 and int8 TFLite files with those of float32."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image
from support.random_detector import SETTINGS, fit_statistics, randomize_weights
from support.small_backbone import build_few_blocks
from support.synthetic import CLASSES, draw_record
from tensorflow.lite.python import schema_py_generated as schema

from ssd_dist.cli.export import describe_parity
from ssd_dist.core.config import Config
from ssd_dist.export.detection_op import append_detection_op
from ssd_dist.export.export_options import Quantization
from ssd_dist.export.formats import convert_to_tflite
from ssd_dist.export.parity import compare_detections, run_export
from ssd_dist.export.rounding import Tolerance, explain_by_rounding, list_candidates
from ssd_dist.export.runtimes import open_export
from ssd_dist.export.serving import OutputDecoder, ServedDetector
from ssd_dist.model import detector
from ssd_dist.model.detector import build_detector

CONFIG = Config.model_validate(SETTINGS)


def draw_images(seeds: range) -> list[np.ndarray]:
    """Returns images of colored rectangles on noise, after JPEG compression."""
    encoded = [draw_record(seed, f"{seed}", CONFIG, 3).encoded for seed in seeds]
    return [np.asarray(Image.open(io.BytesIO(data))) for data in encoded]


DECODER = OutputDecoder.create(CONFIG.anchors, CONFIG.eval, 64)
QUANTIZATIONS = {
    "none": Quantization(),
    "fp16": Quantization("fp16"),
    "int8": Quantization("int8"),
    # What some cameras need: integers only, and one scale per weight tensor.
    "per_tensor": Quantization("int8", per_tensor=True, input_type="int8", output_type="int8"),
}


def build_served() -> ServedDetector:
    """Returns a small detector with raw outputs, whose weights are random."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        tf_keras.utils.set_random_seed(1)
        model = build_detector(CONFIG.model, CONFIG.backbone, CONFIG.anchors, len(CLASSES))
    randomize_weights(model)
    fit_statistics(model, np.stack(draw_images(range(200, 232))))
    return ServedDetector(model, DECODER, 64, CLASSES, postprocess=False)


@pytest.fixture(scope="module")
def contents():
    """Returns the contents of the files with raw outputs, by quantization."""
    served = build_served()
    samples = draw_images(range(100, 164))
    return {name: convert_to_tflite(served, quantization, samples) for name, quantization in QUANTIZATIONS.items()}


def open_content(content, folder):
    (folder / "model.tflite").write_bytes(content)
    return open_export("tflite", folder / "model.tflite")


@pytest.fixture(scope="module")
def outputs(contents, tmp_path_factory):
    """Returns logits and offsets on twelve images, by quantization."""
    found = {}
    for name, content in contents.items():
        run = open_content(content, tmp_path_factory.mktemp(name))
        results = [run(image[None]) for image in draw_images(range(12))]
        found[name] = {key: np.concatenate([result[key] for result in results]) for key in results[0]}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logits", "offsets"])
def test_float16_changes_the_outputs_only_by_rounding(outputs, name):
    exact, rounded = outputs["none"][name], outputs["fp16"][name]
    # float16 has 11 significant bits, so a weight changes by up to 2^-11 of its value. If the rounding errors of about
    # twenty layers added up, the outputs would change by 1 %.
    assert (rounded - exact).std() < 20 * 2**-11 * exact.std()
    assert (rounded != exact).mean() > 0.5, "the weights of the file are float32"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logits", "offsets"])
def test_int8_outputs_follow_the_float32_outputs(outputs, name):
    exact, rounded = outputs["none"][name], outputs["int8"][name]
    changes, kept = (values - exact.mean(axis=0) for values in (exact, rounded))
    assert changes.std() > 0.5 * exact.std(), "the outputs do not depend on the image"
    # About twenty layers of 256 levels. Measured with untrained weights: 0.977. With activation ranges that were not
    # calibrated on such images: 0.88, and a slope of 0.75.
    assert np.corrcoef(changes.ravel(), kept.ravel())[0, 1] > 0.96
    assert np.polyfit(changes.ravel(), kept.ravel(), 1)[0] == pytest.approx(1, abs=0.06)
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.98


@pytest.mark.slow
def test_integer_files_have_the_requested_types_and_scales(contents, outputs):
    def scales(name):
        model = schema.ModelT.InitFromPackedBuf(contents[name], 0)
        graph = model.subgraphs[0]
        kernels = [
            graph.tensors[operator.inputs[1]].quantization.scale
            for operator in graph.operators
            if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.CONV_2D
        ]
        return [len(scale) for scale in kernels]

    assert max(scales("int8")) > 1
    assert set(scales("per_tensor")) == {1}
    interpreter = tf.lite.Interpreter(model_content=contents["per_tensor"])
    assert [detail["dtype"] for detail in interpreter.get_input_details()] == [np.int8]
    assert [detail["dtype"] for detail in interpreter.get_output_details()] == [np.int8, np.int8]
    for name in ("logits", "offsets"):
        # open_export converts both pixels and outputs. Measured with untrained weights: 0.97.
        assert np.corrcoef(outputs["none"][name].ravel(), outputs["per_tensor"][name].ravel())[0, 1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "fp16", "int8"])
def test_the_detection_op_decodes_the_raw_outputs_of_any_quantization(contents, tmp_path, quantize):
    raw = open_content(contents[quantize], tmp_path)
    (tmp_path / "op").mkdir()
    op = open_content(append_detection_op(contents[quantize], DECODER), tmp_path / "op")
    images = draw_images(range(3))
    names = ["a", "b", "c"]
    expected, found = (run_export(run, images, names, DECODER)[0] for run in (raw, op))

    def explain(index, lost, added):
        outputs = {name: tf.constant(value) for name, value in raw(images[index][None]).items()}
        candidates = list_candidates(outputs, DECODER, Tolerance(1e-5, 1e-5), export_outputs="postprocess_op")
        return explain_by_rounding(lost, added, found[index], candidates, DECODER)

    parity = compare_detections(expected, found, explain)
    assert parity.detections > 10
    assert parity.holds


@pytest.mark.slow
def test_an_edge_tpu_supports_the_int8_network(contents):
    """Only the conversion of the outputs to float32, on which no other operation depends, is left to the CPU."""
    supported = json.loads((Path(__file__).parent / "edge_tpu_ops.json").read_text())["operations"]
    model = schema.ModelT.InitFromPackedBuf(contents["int8"], 0)
    graph, names = model.subgraphs[0], {value: name for name, value in vars(schema.BuiltinOperator).items()}
    kinds = [names[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in graph.operators]
    left = [operator for operator, kind in zip(graph.operators, kinds, strict=True) if kind not in supported]
    assert {int(operator.outputs[0]) for operator in left} == set(graph.outputs.tolist())
    assert [kind for kind in kinds if kind not in supported] == ["DEQUANTIZE"] * 2
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "CONCATENATION"} <= set(kinds)
    assert all((tensor.shapeSignature is None or -1 not in tensor.shapeSignature) for tensor in graph.tensors)

    def is_constant(index):
        return model.buffers[graph.tensors[index].buffer].data is not None

    checks = {
        "no fused activation": lambda operator, _: operator.builtinOptions.fusedActivationFunction == 0,
        "no constant input": lambda operator, _: not any(is_constant(index) for index in operator.inputs),
        "equal dilation in x and y": lambda operator, _: (
            operator.builtinOptions.dilationHFactor == operator.builtinOptions.dilationWFactor
        ),
        "no batch padding": lambda _, padding: not padding[0].any(),
    }
    for operator, kind in zip(graph.operators, kinds, strict=True):
        padding = None
        if kind == "PAD":
            data = bytes(model.buffers[graph.tensors[operator.inputs[1]].buffer].data)
            padding = np.frombuffer(data, np.int32).reshape(-1, 2)
        for limit in supported.get(kind, ()):
            assert checks[limit](operator, padding), (kind, limit)


@pytest.mark.parametrize("quantize", ["fp16", "int8"])
def test_a_quantized_export_is_described_by_its_metrics(quantize):
    parity = {"missing": 700, "detections": 1234, "surplus": 900, "undecided": 3, "images": 40}
    text = describe_parity(parity, quantize)
    assert "metrics on 40 images" in text
    assert not any(count in text for count in ("700", "900"))
    assert "700 of 1234 detections on 40 images are missing" in describe_parity(parity, "none")
