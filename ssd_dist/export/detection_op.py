"""Appends the custom op TFLite_Detection_PostProcess to a TFLite file that returns logits and offsets.

images -> network -> logits, offsets (float32)
                       -> softmax -> TFLite_Detection_PostProcess -> boxes, classes, scores, count

The FlatBuffer of the file is extended instead of converting a graph that contains the op. So the network is the one of
`--outputs=raw`, whatever its quantization, and the order of the outputs is the order written here; the converter sorts
outputs by name, but clients of the op read them by position. Softmax is computed in float32 also after an int8
network, because 256 levels are too few for scores near the threshold.

The op applies NMS to unclipped boxes and across classes; our NMS clips boxes to the image and is applied within each
class. The op's mode for NMS within each class, `use_regular_nms`, is not used: with several threads, the runtimes of
TensorFlow 2.20 and LiteRT 2.3 lose all detections of a class.
"""

from collections.abc import Sequence

import numpy as np
from flatbuffers import Builder, flexbuffers  # type: ignore[import-untyped]
from tensorflow.lite.python import schema_py_generated as schema

from ssd_dist.export.serving import OutputDecoder

OP_NAME = "TFLite_Detection_PostProcess"
# The outputs by position. Clients know the tensors by the names that the converter of the TF Object Detection API
# gives them: the name of the op, with the number of the output after a colon.
OUTPUTS = ("boxes", "classes", "scores", "count")
# TFLite expects constant data at multiples of 16 bytes.
ALIGNMENT = 16


class _AlignedBuffer(schema.BufferT):
    """A buffer whose data is aligned as the schema requests; the generated code ignores that attribute."""

    def __init__(self, data: np.ndarray | None) -> None:
        super().__init__()
        self.data = None if data is None else np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)

    def Pack(self, builder: Builder) -> int:  # noqa: N802
        """Writes the buffer and returns its offset."""
        if self.data is not None:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head = builder.Head() - len(self.data)
            builder.Bytes[builder.Head() : builder.Head() + len(self.data)] = self.data.tobytes()
            data = builder.EndVector()
        schema.BufferStart(builder)
        if self.data is not None:
            schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


def read_model(content: bytes) -> schema.ModelT:
    """Reads a TFLite file as a tree of objects."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    model.buffers = [_AlignedBuffer(buffer.data) for buffer in model.buffers]
    return model


def write_model(model: schema.ModelT) -> bytes:
    """Returns the content of the TFLite file of a tree of objects."""
    builder = Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def add_buffer(model: schema.ModelT, data: np.ndarray) -> int:
    """Adds constant data to a model and returns its number."""
    model.buffers.append(_AlignedBuffer(data))
    return len(model.buffers) - 1


def append_detection_op(content: bytes, decoder: OutputDecoder) -> bytes:
    """Returns a TFLite file that returns `OUTPUTS`, all float32, instead of logits and offsets.

    Args:
      content: the file with the outputs `logits` [1, A, C + 1] and `offsets` [1, A, 4] in float32.
      decoder: the anchors and the settings of NMS.
    """
    model = read_model(content)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    raw = {output.name.decode(): output.tensorIndex for output in signature.outputs}
    shape = graph.tensors[raw["logits"]].shape
    scores = _add_tensor(graph, "softmax", shape)
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    operator = _add_operator(model, schema.BuiltinOperator.SOFTMAX, [raw["logits"]], [scores])
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.SoftmaxOptions, softmax

    anchors = _add_tensor(graph, "anchors", decoder.anchors.shape)
    graph.tensors[anchors].buffer = add_buffer(model, _center_and_size(decoder.anchors))
    count = decoder.eval_config.max_detections
    shapes = ([1, count, 4], [1, count], [1, count], [1])
    names = [OP_NAME, *(f"{OP_NAME}:{number}" for number in range(1, len(OUTPUTS)))]
    outputs = [_add_tensor(graph, name, output) for name, output in zip(names, shapes, strict=True)]
    operator = _add_operator(model, schema.BuiltinOperator.CUSTOM, [raw["offsets"], scores, anchors], outputs, OP_NAME)
    operator.customOptions = np.frombuffer(_write_options(decoder, int(shape[-1]) - 1), np.uint8)
    graph.outputs = np.array(outputs, np.int32)
    signature.outputs = [_map_tensor(name, index) for name, index in zip(OUTPUTS, outputs, strict=True)]
    return write_model(model)


def _center_and_size(boxes: np.ndarray) -> np.ndarray:
    """Returns boxes [N, 4] as float32 [N, 4] (center y, center x, height, width)."""
    low, high = np.split(boxes.astype(np.float64), 2, axis=1)
    return np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)


def _write_options(decoder: OutputDecoder, class_count: int) -> bytes:
    """Returns the attributes of the op as a FlexBuffer."""
    config, variances = decoder.eval_config, decoder.anchor_config
    builder = flexbuffers.Builder()
    with builder.Map():
        for name, number in (
            ("max_detections", config.max_detections),
            ("max_classes_per_detection", 1),
            # Class predictions have one column more, the background, which the op skips.
            ("num_classes", class_count),
        ):
            builder.Key(name)
            builder.Int(number)
        for name, value in (
            ("nms_score_threshold", config.score_threshold),
            ("nms_iou_threshold", config.nms_iou),
            ("y_scale", 1.0 / variances.center_variance),
            ("x_scale", 1.0 / variances.center_variance),
            ("h_scale", 1.0 / variances.size_variance),
            ("w_scale", 1.0 / variances.size_variance),
        ):
            builder.Key(name)
            builder.Float(value)
        builder.Key("use_regular_nms")
        builder.Bool(False)
    return bytes(builder.Finish())


def _add_tensor(graph: schema.SubGraphT, name: str, shape: Sequence[int]) -> int:
    """Adds a float32 tensor, computed by an operator, and returns its number."""
    tensor = schema.TensorT()
    # Buffer 0 is empty in every TFLite file.
    tensor.name, tensor.shape, tensor.type, tensor.buffer = (
        name,
        np.array(shape, np.int32),
        schema.TensorType.FLOAT32,
        0,
    )
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _add_operator(
    model: schema.ModelT, kind: int, inputs: list[int], outputs: list[int], custom: str | None = None
) -> schema.OperatorT:
    """Adds an operator of a new operator code at the end of the graph."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.customCode, code.version = custom, 1
    model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    model.subgraphs[0].operators.append(operator)
    return operator


def _map_tensor(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
