"""Adds TFLite metadata and the label file to a file that ends in TFLite_Detection_PostProcess.

MediaPipe Tasks and other clients read from it how to normalize pixels and what the classes are called. The metadata
are a FlatBuffer in the buffer `TFLITE_METADATA` of the model; `labelmap.txt` is in a zip archive appended to the file.

No package that writes them installs beside the pinned TensorFlow (tflite-support needs numpy < 2; mediapipe brings
OpenCV), so this module writes the tables itself. A table is a dict from field numbers to values. The numbers are the
order of the fields in `metadata_schema.fbs`, version 1.5.0, of mediapipe.tasks.metadata; a union counts as two
fields, the type and the value.
"""

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from flatbuffers import Builder  # type: ignore[import-untyped]
from tensorflow.lite.python import schema_py_generated as schema

from ssd_dist.export.detection_op import add_buffer, read_model, write_model
from ssd_dist.export.export_options import Credits

LABELS_NAME = "labelmap.txt"
# The name under which clients search the metadata in the model.
BUFFER_NAME = "TFLITE_METADATA"
# The lowest version of the schema that has every field written here; tensor groups are the newest.
SCHEMA_VERSION = "1.2.1"

Table = dict[int, Any]

# Numbers of the schema's enumerations and unions.
RGB, IMAGE_PROPERTIES, FEATURE_PROPERTIES, BOX_PROPERTIES = np.int8(1), np.uint8(2), np.uint8(1), np.uint8(3)
BOUNDARIES, RATIO = np.int8(1), np.int8(0)
NORMALIZATION, SCORE_THRESHOLDING = np.uint8(1), np.uint8(3)
VALUE_LABELS = np.int8(3)


def write_labels(classes: Sequence[str]) -> str:
    """Returns the content of the label file: the name of class 0, 1, ... on each line."""
    return "".join(" ".join(name.split()) + "\n" for name in classes)


def add_metadata(content: bytes, classes: Sequence[str], size: int, score_threshold: float, credit: Credits) -> bytes:
    """Returns a TFLite file with metadata and the label file.

    Args:
      content: a file whose only input are pixels in 0..255, and whose outputs are those of the op.
      classes: the class names.
      size: side of the input image in pixels.
      score_threshold: the op does not return detections with lower scores.
      credit: author, version and license of the model.
    """
    graph = {
        2: [_describe_input(size)],
        3: _describe_outputs(score_threshold),
        8: [{0: "detection_result", 1: ["location", "category", "score"]}],
    }
    metadata = {
        0: "SSD-MobileNetV2 object detector",
        1: f"Detects objects of {len(classes)} classes; trained with ssd_dist.",
        2: credit.version,
        3: [graph],
        4: credit.author,
        5: credit.license,
        7: SCHEMA_VERSION,
    }
    builder = Builder(1024)
    builder.Finish(_write_table(builder, metadata), b"M001")
    model = read_model(content)
    entry = schema.MetadataT()
    entry.name, entry.buffer = BUFFER_NAME, add_buffer(model, np.frombuffer(builder.Output(), np.uint8))
    model.metadata = [*(model.metadata or []), entry]
    file = io.BytesIO(write_model(model))
    with zipfile.ZipFile(file, "a") as archive:
        # Created without a date, so that equal models give equal files.
        archive.writestr(zipfile.ZipInfo(LABELS_NAME), write_labels(classes))
    return file.getvalue()


def _describe_input(size: int) -> Table:
    """Returns the table TensorMetadata of the image: RGB, pixels in 0..255, which the model normalizes itself."""
    image = {0: RGB, 1: {0: np.uint32(size), 1: np.uint32(size)}}
    normalization = {0: np.array([0.0], np.float32), 1: np.array([1.0], np.float32)}
    return {
        0: "image",
        1: "The image, stretched to the size of the input.",
        3: {0: IMAGE_PROPERTIES, 1: image},
        4: [{0: NORMALIZATION, 1: normalization}],
        5: {0: np.array([255.0], np.float32), 1: np.array([0.0], np.float32)},
    }


def _describe_outputs(score_threshold: float) -> list[Table]:
    """Returns the tables TensorMetadata of the outputs of the op, by position."""
    # The coordinates of a box are (ymin, xmin, ymax, xmax); the index gives the places of left, top, right and bottom.
    box = {0: np.array([1, 0, 3, 2], np.uint32), 1: BOUNDARIES, 2: RATIO}
    labels = {0: LABELS_NAME, 1: "The class names, in the order of their numbers.", 2: VALUE_LABELS}
    axis = {0: np.int32(2), 1: np.int32(2)}
    features = {0: FEATURE_PROPERTIES, 1: {}}
    threshold = {0: SCORE_THRESHOLDING, 1: {0: np.float32(score_threshold)}}
    return [
        {0: "location", 1: "The boxes.", 3: {0: BOX_PROPERTIES, 1: box, 2: axis}},
        {0: "category", 1: "The classes, from 0.", 3: features | {2: axis}, 6: [labels]},
        {0: "score", 1: "The scores, best first.", 3: features | {2: axis}, 4: [threshold]},
        {0: "number of detections", 1: "The number of detections.", 3: features},
    ]


def _write_table(builder: Builder, table: Table) -> int:
    """Writes a table and what it refers to; returns its offset."""
    # Children come first, because the builder writes one object at a time.
    fields = {number: _write_children(builder, value) for number, value in table.items() if not _is_empty(value)}
    builder.StartObject(max(table, default=-1) + 1)
    for number, value in fields.items():
        if isinstance(value, np.generic):
            # numpy's int8, uint8, int32, uint32 and float32 have the names of the builder's methods.
            add = getattr(builder, f"Prepend{value.dtype.name.capitalize()}Slot")
            add(number, value.item(), 0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, value, 0)
    return int(builder.EndObject())


def _is_empty(value: Any) -> bool:
    return isinstance(value, str) and not value


def _write_children(builder: Builder, value: Any) -> Any:
    """Writes a text, table or vector and returns its offset; returns numbers unchanged."""
    match value:
        case str():
            return builder.CreateString(value)
        case dict():
            return _write_table(builder, value)
        case np.ndarray():
            return builder.CreateNumpyVector(value)
        case list():
            offsets = [_write_children(builder, item) for item in value]
            builder.StartVector(4, len(offsets), 4)
            for offset in reversed(offsets):
                builder.PrependUOffsetTRelative(offset)
            return builder.EndVector()
    return value
