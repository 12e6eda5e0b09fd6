"""An OpenVINO IR that ends in DetectionOutput detects what our own NMS detects, in the layout that clients read."""

import subprocess
import sys

import numpy as np
import pytest
from support.raw_outputs import ANCHORS, CONFIG, DECODER, background, compare_with_our_nms
from support.synthetic import CLASSES
from test_quantized import build_served, draw_images

from ssd_dist.core.boxes import decode_boxes, encode_boxes
from ssd_dist.export.export_options import ExportOptions, Quantization
from ssd_dist.export.exporter import write_export
from ssd_dist.export.openvino_ir import OUTPUT_NAME, append_detection_output
from ssd_dist.export.runtimes import open_export

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def run():
    """Returns a function from logits and offsets to the rows of an IR whose network returns its input."""
    from openvino import opset13 as ops

    values = ops.parameter([1, len(ANCHORS), 8], np.float32, name="images")
    results = []
    for name, columns in (("offsets", range(4)), ("logits", range(4, 8))):
        part = ops.gather(values, np.array(columns, np.int32), np.array(2, np.int32))
        part.output(0).set_names({name})
        results.append(ops.result(part))
    compiled = openvino.compile_model(append_detection_output(openvino.Model(results, [values]), DECODER), "CPU")
    return lambda logits, offsets: compiled(np.concatenate([offsets, logits], axis=-1)[None])[OUTPUT_NAME]


def test_rows_have_the_layout_of_caffe(run):
    logits, offsets = background()
    # The second class at one anchor, moved to a box elsewhere.
    box = np.float32([[0.25, 0.5, 0.625, 0.75]])
    logits[70, 2], offsets[70] = 14, encode_boxes(box, ANCHORS[[70]], 0.1, 0.2)[0]
    rows = run(logits, offsets)
    assert (rows.shape, rows.dtype) == ((1, 1, 20, 7), np.float32)
    score = np.exp(14) / (np.exp(14) + np.exp(12) + 2)
    np.testing.assert_allclose(rows[0, 0, 0], [0, 2, score, 0.5, 0.25, 0.75, 0.625], atol=1e-6)
    # Image -1 marks the row after the last detection; no later row has a score.
    assert rows[0, 0, 1, 0] == -1
    assert not rows[0, 0, 1:, 2].any()


def test_a_client_that_stops_at_the_first_low_score_gets_all_higher_ones(run):
    logits, offsets = background()
    # The op returns the third class last.
    logits[[70, 150, 250], [1, 2, 3]] = 10, 14, 15
    rows = run(logits, offsets)[0, 0]
    assert rows[:3, 1].tolist() == [3, 2, 1]
    assert (np.diff(rows[:, 2]) <= 0).all()


def compare_op(run, logits, offsets):
    """Returns how the detections of the op differ from those of our NMS for the same raw outputs."""
    outputs = {OUTPUT_NAME: run(logits, offsets)}
    return compare_with_our_nms(outputs, logits, offsets, "detection_output")


@pytest.mark.parametrize("seed", range(4))
def test_the_op_and_our_nms_find_the_same_objects(run, seed):
    rng = np.random.default_rng(seed)
    # Three classes, and boxes that cross the border of the image.
    logits = rng.normal(0, 3.0, (len(ANCHORS), 4)).astype(np.float32)
    offsets = rng.normal(0, 1.0, (len(ANCHORS), 4)).astype(np.float32)
    boxes = decode_boxes(offsets, ANCHORS, 0.1, 0.2)
    assert ((boxes < 0) | (boxes > 1)).any(axis=1).sum() > 20
    parity = compare_op(run, logits, offsets)
    assert parity.holds
    assert parity.detections > 10
    assert parity.undecided == 0


def test_overlapping_objects_of_two_classes_are_both_found(run):
    logits, offsets = background()
    logits[70, [1, 2]] = 14, 14.5
    rows = run(logits, offsets)[0, 0]
    assert rows[:2, 1].tolist() == [2, 1]
    assert rows[2, 0] == -1
    parity = compare_op(run, logits, offsets)
    assert (parity.detections, parity.missing, parity.surplus, parity.undecided) == (2, 0, 0, 0)


def test_a_signal_after_two_models_were_freed_is_handled(tmp_path):
    """If the models are opened with OpenVINO directly, the signal causes a segmentation fault."""
    from openvino import opset13 as ops

    images = ops.parameter([1, 8, 8, 3], np.float32, name="images")
    openvino.save_model(openvino.Model([ops.result(ops.relu(images))], [images]), tmp_path / "model.xml")
    program = """
import faulthandler, pathlib, signal, sys
from ssd_dist.export.runtimes import open_export
faulthandler.enable()
path = pathlib.Path(sys.argv[1])
for _ in range(4):
    opened = open_export("openvino", path)  # frees the previous model after the next one is compiled
del opened
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    command = [sys.executable, "-c", program, tmp_path / "model.xml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Returns the folders of exports of a small detector, by the type of the weights."""
    served, samples = build_served(), draw_images(range(100, 132))
    folders = {}
    for quantize in ("none", "fp16", "int8"):
        folders[quantize] = tmp_path_factory.mktemp(quantize)
        options = ExportOptions("openvino", "raw", Quantization(quantize))
        write_export(served, options, samples, folders[quantize])
    return folders


@pytest.mark.slow
def test_quantized_weights_take_less_space_and_give_similar_outputs(exports):
    pytest.importorskip("nncf")
    bytes_of_weights = {name: (folder / "model.bin").stat().st_size for name, folder in exports.items()}
    assert bytes_of_weights["fp16"] < 0.6 * bytes_of_weights["none"]
    assert bytes_of_weights["int8"] < 0.4 * bytes_of_weights["none"]
    images, found = draw_images(range(6)), {}
    for name, folder in exports.items():
        run = open_export("openvino", folder / "model.xml")
        results = [run(image[None]) for image in images]
        found[name] = {key: np.concatenate([result[key] for result in results]) for key in results[0]}
    for name in ("logits", "offsets"):
        exact, half, integer = (found[quantize][name] for quantize in ("none", "fp16", "int8"))
        # The limits of the TFLite files, in test_quantized.py.
        assert 0 < (half - exact).std() < 20 * 2**-11 * exact.std()
        assert np.corrcoef(exact.ravel(), integer.ravel())[0, 1] > 0.98


@pytest.mark.slow
def test_the_label_file_starts_with_the_background(tmp_path):
    (tmp_path / "export.json").write_text("of an earlier export")
    write_export(build_served(), ExportOptions("openvino", "detection_output"), [], tmp_path)
    assert not (tmp_path / "export.json").exists()
    assert (tmp_path / "labelmap.txt").read_text().splitlines() == ["background", *CLASSES]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["labelmap.txt", "model.bin", "model.xml"]
    model = openvino.Core().read_model(tmp_path / "model.xml")
    (pixels,), (rows,) = model.inputs, model.outputs
    # Frigate: input_tensor nhwc, input_dtype int.
    assert (pixels.get_shape(), pixels.get_element_type()) == (openvino.Shape([1, 64, 64, 3]), openvino.Type.u8)
    assert rows.get_shape() == openvino.Shape([1, 1, CONFIG.eval.max_detections * 5, 7])
