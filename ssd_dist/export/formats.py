"""Writes a detector as SavedModel, TFLite, ONNX or OpenVINO IR.

saved_model   signatures `serving_default` (uint8 batch) and `encoded_images` (bytes), any batch size
tflite        pixels [1, S, S, 3]; weights in float32 or float16, or weights and activations in int8
onnx          uint8 [N, S, S, 3], opset 17, for ONNX Runtime and TensorRT

openvino_ir.py writes OpenVINO IR.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from ssd_dist.export.export_options import Quantization
from ssd_dist.export.serving import ServedDetector
from ssd_dist.model.quantization import round_pixels, shift_pixels

ONNX_OPSET = 17


def write_saved_model(served: ServedDetector, path: Path) -> None:
    """Writes a SavedModel into the folder `path`."""
    pixels = tf.TensorSpec([None, served.size, served.size, 3], tf.uint8, "images")
    by_pixels = tf.function(lambda images: served.detect_pixels(images, with_names=served.postprocess))
    signatures = {"serving_default": by_pixels.get_concrete_function(pixels)}
    if served.postprocess:
        encoded = tf.TensorSpec([None], tf.string, "encoded")
        signatures["encoded_images"] = tf.function(served.detect_encoded).get_concrete_function(encoded)
    tf.saved_model.save(served, str(path), signatures)


def convert_to_tflite(served: ServedDetector, quantization: Quantization, samples: Iterable[np.ndarray]) -> bytes:
    """Converts a detector to TFLite and returns the content of the file.

    Args:
      served: the detector.
      quantization: how the network is quantized.
      samples: uint8 [S, S, 3] images from which `int8` calibrates the ranges of the activations.
    """
    shape, int8 = [1, served.size, served.size, 3], quantization.kind == "int8"
    # With int8 the converter quantizes a float input: scale 1 and zero point 0, so the file takes uint8 pixels as is.
    pixels = tf.TensorSpec(shape, tf.float32 if int8 else tf.as_dtype(quantization.input_type), "images")
    detect = partial(_detect_rounded, served, quantization) if served.is_rounded else served.detect_pixels
    function = tf.function(detect).get_concrete_function(pixels)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], served)
    if quantization.kind != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization.kind == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if int8:
        if not served.is_rounded:
            converter.representative_dataset = lambda: _calibration_batches(samples)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.as_dtype(quantization.input_type)
        converter.inference_output_type = tf.as_dtype(quantization.output_type)
        converter._experimental_disable_per_channel = quantization.per_tensor
    return converter.convert()


def _detect_rounded(served: ServedDetector, quantization: Quantization, images: tf.Tensor) -> dict[str, tf.Tensor]:
    """Runs a detector that was trained with quantization, for the converter, which reads the limits of each tensor.

    Integer pixels are quantized by the scale and the zero point of the input alone, without an operation.
    """
    shifted = shift_pixels(images) if quantization.input_type == "float32" else images
    return served.detect_normalized(round_pixels(shifted))


def _calibration_batches(samples: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yields batches of one image; the first gets a black and a white pixel, so that the input range is 0..255."""
    for number, image in enumerate(samples):
        pixels = image[None].astype(np.float32)
        if number == 0:
            pixels[0, 0, :2] = [[0.0], [255.0]]
        yield [pixels]


def write_onnx(served: ServedDetector, path: Path) -> None:
    """Writes an ONNX file."""
    import tf2onnx

    # ONNX Runtime rejects the loop of NMS over a batch of unknown size, so the batch size is 1 with post-processing.
    pixels = tf.TensorSpec([1 if served.postprocess else None, served.size, served.size, 3], tf.uint8, "images")
    tf2onnx.convert.from_function(
        tf.function(served.detect_pixels), input_signature=[pixels], opset=ONNX_OPSET, output_path=str(path)
    )
