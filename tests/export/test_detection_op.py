"""A file that ends in TFLite_Detection_PostProcess detects what our own NMS detects; its metadata can be read."""

import functools
import io
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter as LiteRtInterpreter
from flatbuffers import flexbuffers
from flatbuffers.number_types import Float32Flags, Uint32Flags
from flatbuffers.table import Table
from support.raw_outputs import ANCHORS, DECODER, background, compare_with_our_nms
from support.synthetic import CLASSES
from tensorflow.lite.python import schema_py_generated as schema

from ssd_dist.core.boxes import decode_boxes, encode_boxes
from ssd_dist.evaluation.detections import Detections
from ssd_dist.export.detection_op import OP_NAME, OUTPUTS, append_detection_op, read_model
from ssd_dist.export.export_options import Credits, ExportOptions
from ssd_dist.export.exporter import write_export
from ssd_dist.export.rounding import Tolerance, explain_by_rounding, list_candidates
from ssd_dist.export.runtimes import open_export
from ssd_dist.export.tflite_metadata import add_metadata, write_labels


class NamedOutputs(tf.Module):
    """A network that returns its input: four offsets and four logits per anchor."""

    @tf.function(input_signature=[tf.TensorSpec([1, len(ANCHORS), 8], tf.float32, "images")])
    def split(self, images):
        # tf.identity names the outputs, as in ServedDetector.
        return {"logits": tf.identity(images[..., 4:], "logits"), "offsets": tf.identity(images[..., :4], "offsets")}


@pytest.fixture(scope="module")
def body():
    """Returns a TFLite file whose raw outputs are its input."""
    network = NamedOutputs()
    function = network.split.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([function], network).convert()


@pytest.fixture(scope="module")
def content(body):
    return append_detection_op(body, DECODER)


def run(content, logits, offsets, interpreter=LiteRtInterpreter):
    """Returns the outputs of a file by position."""
    opened = interpreter(model_content=content)
    opened.allocate_tensors()
    values = np.concatenate([offsets, logits], axis=-1)[None].astype(np.float32)
    opened.set_tensor(opened.get_input_details()[0]["index"], values)
    opened.invoke()
    return [opened.get_tensor(detail["index"]) for detail in opened.get_output_details()]


@pytest.mark.parametrize("interpreter", [tf.lite.Interpreter, LiteRtInterpreter])
def test_outputs_have_fixed_positions(content, interpreter):
    logits, offsets = background()
    # The second class at one anchor, moved to a box elsewhere.
    box = np.float32([[0.25, 0.5, 0.625, 0.75]])
    logits[70, 2], offsets[70] = 14, encode_boxes(box, ANCHORS[[70]], 0.1, 0.2)[0]
    boxes, classes, scores, count = run(content, logits, offsets, interpreter)
    assert [part.dtype for part in (boxes, classes, scores, count)] == [np.float32] * 4
    assert [part.shape for part in (boxes, classes, scores, count)] == [(1, 20, 4), (1, 20), (1, 20), (1,)]
    assert count.tolist() == [1]
    np.testing.assert_allclose(boxes[0, 0], box[0], atol=1e-6)
    assert classes[0, 0] == 1
    assert scores[0, 0] == pytest.approx(np.exp(14) / (np.exp(14) + np.exp(12) + 2), rel=1e-5)
    details = interpreter(model_content=content).get_output_details()
    assert [detail["name"] for detail in details] == [OP_NAME, *(f"{OP_NAME}:{number}" for number in (1, 2, 3))]


def test_the_op_gets_our_anchors_variances_and_thresholds(content):
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    operator = graph.operators[-1]
    code = model.operatorCodes[operator.opcodeIndex]
    assert (code.customCode, code.builtinCode) == (OP_NAME.encode(), schema.BuiltinOperator.CUSTOM)
    options = flexbuffers.Loads(bytes(operator.customOptions))
    assert options == pytest.approx({
        "y_scale": 10, "x_scale": 10, "h_scale": 5, "w_scale": 5, "num_classes": 3, "use_regular_nms": False,
        "max_detections": 20, "max_classes_per_detection": 1,
        "nms_score_threshold": 0.01, "nms_iou_threshold": 0.5,
    })  # fmt: skip
    anchors = np.frombuffer(bytes(model.buffers[graph.tensors[operator.inputs[2]].buffer].data), np.float32)
    center, size = (ANCHORS[:, :2] + ANCHORS[:, 2:]) / 2, ANCHORS[:, 2:] - ANCHORS[:, :2]
    np.testing.assert_allclose(anchors.reshape(-1, 4), np.concatenate([center, size], axis=1), atol=1e-7)
    assert list(graph.outputs) == [entry.tensorIndex for entry in model.signatureDefs[0].outputs]
    assert [entry.name.decode() for entry in model.signatureDefs[0].outputs] == list(OUTPUTS)


def test_constants_stay_aligned(content):
    for number in range(schema.Model.GetRootAs(content).BuffersLength()):
        buffer = schema.Model.GetRootAs(content).Buffers(number)
        if buffer.DataLength():
            vector = buffer._tab.Vector(buffer._tab.Offset(4))
            assert vector % 16 == 0


def test_the_network_is_unchanged(body, content):
    before, after = (schema.ModelT.InitFromPackedBuf(data, 0) for data in (body, content))
    assert len(after.subgraphs[0].operators) == len(before.subgraphs[0].operators) + 2
    for old, new in zip(before.subgraphs[0].operators, after.subgraphs[0].operators, strict=False):
        assert old.inputs.tolist() == new.inputs.tolist()
    for old, new in zip(before.buffers, after.buffers, strict=False):
        assert (old.data is None and new.data is None) or bytes(old.data) == bytes(new.data)


def compare_op(content, logits, offsets):
    """Returns how the detections of the op differ from those of our NMS for the same raw outputs."""
    outputs = dict(zip(OUTPUTS, run(content, logits, offsets), strict=True))
    return compare_with_our_nms(outputs, logits, offsets, "postprocess_op")


@pytest.mark.parametrize("seed", range(4))
def test_the_op_and_our_nms_find_the_same_objects(content, seed):
    rng = np.random.default_rng(seed)
    logits, offsets = background()
    # One class only: NMS across classes and within each class agree.
    logits[:, 2] = rng.normal(5, 3.0, len(ANCHORS))
    offsets[:] = rng.normal(0, 1.0, offsets.shape)
    boxes = decode_boxes(offsets, ANCHORS, 0.1, 0.2)
    logits[((boxes < 0) | (boxes > 1)).any(axis=1), 1:] = 0
    parity = compare_op(content, logits, offsets)
    assert parity.holds
    assert parity.detections > 10
    assert parity.undecided == 0


def test_the_op_does_not_clip_boxes_before_nms(content):
    # Clipped to the image, the boxes are equal; unclipped, their IoU is 0.43.
    boxes = np.float32([[-0.2, 0, 0.4, 0.3], [-1.0, 0, 0.4, 0.3]])
    logits, offsets = background()
    logits[[70, 71], 1] = 14, 15
    offsets[[70, 71]] = encode_boxes(boxes, ANCHORS[[70, 71]], 0.1, 0.2)
    assert run(content, logits, offsets)[3].tolist() == [2]
    parity = compare_op(content, logits, offsets)
    assert (parity.detections, parity.missing, parity.surplus) == (1, 0, 0)
    # The two boxes are equal after clipping, so the list of the op contains the box of ours with two scores.
    assert parity.undecided == 1


def test_the_op_applies_nms_across_classes(content):
    logits, offsets = background()
    logits[70, [1, 2]] = 14, 13
    assert run(content, logits, offsets)[3].tolist() == [1]
    parity = compare_op(content, logits, offsets)
    assert (parity.detections, parity.missing, parity.surplus, parity.undecided) == (2, 0, 0, 1)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_number_of_threads_does_not_change_the_detections(content, threads):
    """With `use_regular_nms`, two threads lose a class."""
    logits, offsets = background()
    logits[[70, 150, 250], [1, 2, 3]] = 14, 14.5, 15
    found = run(content, logits, offsets, functools.partial(LiteRtInterpreter, num_threads=threads))
    assert found[1][0, :3].tolist() == [2, 1, 0]
    assert found[3].tolist() == [3]


def test_a_wrong_result_of_the_op_is_not_explained():
    logits, offsets = background()
    logits[70, 1] = 14
    raw = {"logits": tf.constant(logits[None]), "offsets": tf.constant(offsets[None])}
    candidates = list_candidates(raw, DECODER, Tolerance(1e-6, 1e-6), export_outputs="postprocess_op")
    score = 1 / (1 + np.exp(-candidates.log_odds[70 * 3]))
    wrong = Detections("a", ANCHORS[[71]], np.array([1]), np.float32([score]))
    right = Detections("a", ANCHORS[[70]].clip(0, 1), np.array([1]), np.float32([score]))
    lost, added = explain_by_rounding(right, wrong, wrong, candidates, DECODER)
    assert not lost.any()
    assert not added.any()


def test_metadata_keep_the_model_and_contain_the_labels(content):
    classes = ["red cell", "white\ncell", "Plättchen"]
    described = add_metadata(content, classes, 64, 0.01, Credits("A. Author", "1.2", "Apache-2.0"))
    assert described == add_metadata(content, classes, 64, 0.01, Credits("A. Author", "1.2", "Apache-2.0"))
    with zipfile.ZipFile(io.BytesIO(described)) as archive:
        assert archive.namelist() == ["labelmap.txt"]
        assert archive.getinfo("labelmap.txt").compress_type == zipfile.ZIP_STORED
        lines = archive.read("labelmap.txt").decode().splitlines()
    assert lines == write_labels(classes).splitlines() == ["red cell", "white cell", "Plättchen"]
    model = read_model(described)
    (entry,) = (entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    table = model.buffers[entry.buffer].data.tobytes()
    assert table[4:8] == b"M001"
    for text in ("A. Author", "1.2", "Apache-2.0", "location", "category", "score", "number of detections"):
        assert text.encode() + b"\0" in table
    logits, offsets = background()
    logits[70, 1] = 14
    before, after = run(content, logits, offsets), run(described, logits, offsets)
    assert before[3].tolist() == after[3].tolist() == [1]
    for expected, actual in zip(before[:3], after[:3], strict=True):
        np.testing.assert_array_equal(expected[0, 0], actual[0, 0])


def get_table(table, number):
    """Returns the table in a field of a FlatBuffer table."""
    return Table(table.Bytes, table.Indirect(table.Pos + table.Offset(4 + 2 * number)))


def list_tables(table, number):
    """Returns the tables in a field that is a vector of tables."""
    offset = table.Offset(4 + 2 * number)
    return [
        Table(table.Bytes, table.Indirect(table.Vector(offset) + 4 * index)) for index in range(table.VectorLen(offset))
    ]


def list_numbers(table, number, kind):
    return table.GetVectorAsNumpy(kind, table.Offset(4 + 2 * number)).tolist()


def test_metadata_describe_pixels_boxes_labels_and_threshold(content):
    """The numbers of the fields are those of metadata_schema.fbs, which test_deploy_pages.py reads with MediaPipe."""
    model = read_model(add_metadata(content, CLASSES, 64, 0.25, Credits()))
    data = model.buffers[model.metadata[-1].buffer].data.tobytes()
    root = Table(data, int.from_bytes(data[:4], "little"))
    (graph,) = list_tables(root, 3)
    (image,), (location, category, score, _) = list_tables(graph, 2), list_tables(graph, 3)
    normalization = get_table(list_tables(image, 4)[0], 1)
    # The model normalizes pixels itself: (pixel - 0) / 1.
    assert [list_numbers(normalization, field, Float32Flags) for field in (0, 1)] == [[0], [1]]
    # Left, top, right and bottom are at these places of (ymin, xmin, ymax, xmax).
    assert list_numbers(get_table(get_table(location, 3), 1), 0, Uint32Flags) == [1, 0, 3, 2]
    (labels,) = list_tables(category, 6)
    assert labels.String(labels.Pos + labels.Offset(4)) == b"labelmap.txt"
    threshold = get_table(list_tables(score, 4)[0], 1)
    assert threshold.Get(Float32Flags, threshold.Pos + threshold.Offset(4)) == 0.25


def test_the_label_file_lies_beside_the_model(content, tmp_path, monkeypatch):
    class Served:
        decoder, size, classes = DECODER, 64, CLASSES

    monkeypatch.setattr("ssd_dist.export.exporter.build_tflite", lambda *_: content)
    path = write_export(Served(), ExportOptions("tflite", "postprocess_op"), [], tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["labelmap.txt", "model.tflite"]
    assert (tmp_path / "labelmap.txt").read_text().splitlines() == list(CLASSES)
    logits, offsets = background()
    logits[70, 1] = 14
    found = open_export("tflite", path)(np.concatenate([offsets, logits], axis=-1)[None])
    assert set(found) == set(OUTPUTS)
    assert found["count"].tolist() == [1]
