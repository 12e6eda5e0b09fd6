"""Writing a served detector as SavedModel, TFLite or ONNX, and running what was written.

saved_model   signatures `serving_default` (uint8 batch) and `encoded_images` (bytes), any batch size
tflite        uint8 [1, S, S, 3]; weights in float32, float16, or all in int8 with float detections outside
onnx          uint8 [N, S, S, 3], opset 17: ONNX Runtime and TensorRT
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from ssd_dist.core.errors import CheckpointError, UsageError, first_line
from ssd_dist.export.serving import ServedDetector
from ssd_dist.inference.prediction import LoadedDetector
from ssd_dist.model.postprocessing import DetectionBatch

ONNX_OPSET = 17
# Pictures that a SavedModel is given at once.
BATCH = 16
# A SavedModel is the folder itself.
FILES = {"saved_model": ".", "tflite": "model.tflite", "onnx": "model.onnx"}

CARD_NAME = "export.json"

# uint8 [1, S, S, 3] to the outputs by name.
Runner = Callable[[np.ndarray], dict[str, np.ndarray]]


def write_saved_model(served: ServedDetector, path: Path) -> None:
    """Writes the folder of a SavedModel."""
    pixels = tf.TensorSpec([None, served.size, served.size, 3], tf.uint8, "images")
    by_pixels = tf.function(lambda images: served.detect_pixels(images, with_names=served.postprocess))
    signatures = {"serving_default": by_pixels.get_concrete_function(pixels)}
    if served.postprocess:
        encoded = tf.TensorSpec([None], tf.string, "encoded")
        signatures["encoded_images"] = tf.function(served.detect_encoded).get_concrete_function(encoded)
    tf.saved_model.save(served, str(path), signatures)


def write_tflite(served: ServedDetector, path: Path, quantize: str, samples: Iterable[np.ndarray]) -> None:
    """Writes a TFLite file.

    Args:
      served: the detector.
      path: the file.
      quantize: `none`, `fp16` (weights) or `int8` (weights and activations).
      samples: uint8 [S, S, 3] images that show the range of activations, for `int8`.
    """
    shape = [1, served.size, served.size, 3]
    # The quantised input takes over 0..255, at a scale of 1, from float pixels.
    pixels = tf.TensorSpec(shape, tf.float32 if quantize == "int8" else tf.uint8, "images")
    function = tf.function(served.detect_pixels).get_concrete_function(pixels)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], served)
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.representative_dataset = lambda: _show_ranges(samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    path.write_bytes(converter.convert())


def _show_ranges(samples: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Batches of one; the first has a black and a white pixel, so that the range of the input is 0..255."""
    for number, image in enumerate(samples):
        pixels = image[None].astype(np.float32)
        if number == 0:
            pixels[0, 0, :2] = [[0.0], [255.0]]
        yield [pixels]


def write_onnx(served: ServedDetector, path: Path) -> None:
    """Writes an ONNX file.

    Raises:
      UsageError: if tf2onnx is not installed.
    """
    try:
        import tf2onnx
    except ImportError:
        install = 'pip install --constraint requirements.lock ".[export]"'
        raise UsageError(f"--format=onnx needs tf2onnx: {install}") from None
    # ONNX Runtime refuses the loop of suppression over a batch whose size it does not know.
    pixels = tf.TensorSpec([1 if served.postprocess else None, served.size, served.size, 3], tf.uint8, "images")
    tf2onnx.convert.from_function(
        tf.function(served.detect_pixels), input_signature=[pixels], opset=ONNX_OPSET, output_path=str(path)
    )


def open_export(kind: str, path: Path) -> Runner:
    """What runs an export on one image, on the processors here."""
    return {"saved_model": _open_saved_model, "tflite": _open_tflite, "onnx": _open_onnx}[kind](path)


def open_saved_model(folder: str) -> LoadedDetector:
    """The detector of an export as SavedModel.

    Raises:
      CheckpointError: if the folder holds none, or one without post-processing.
    """
    try:
        card = json.loads((Path(folder) / CARD_NAME).read_text())
        function = tf.saved_model.load(folder).signatures["serving_default"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"--saved_model={folder} is no export: {first_line(error)}; write one with ssd-export --format=saved_model"
        ) from None
    if "boxes" not in function.structured_outputs:
        raise CheckpointError(f"--saved_model={folder} has no post-processing; export it with --postprocessing")
    size = function.structured_input_signature[1]["images"].shape[1]

    def run(images: tf.Tensor) -> DetectionBatch:
        found = function(images=images)
        return DetectionBatch(found["boxes"], found["labels"], found["scores"])

    return LoadedDetector(size, BATCH, tuple(card["classes"]), run)


def _open_saved_model(path: Path) -> Runner:
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    return lambda images: {name: value.numpy() for name, value in function(images=tf.constant(images)).items()}


def _open_tflite(path: Path) -> Runner:
    with warnings.catch_warnings():
        # TensorFlow announces the interpreter's move to a package of its own; ours is the one it ships.
        warnings.simplefilter("ignore", UserWarning)
        runner = tf.lite.Interpreter(str(path), num_threads=os.cpu_count()).get_signature_runner()
    return lambda images: runner(images=images)


def _open_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
