"""Opens exports, each in its own runtime on the CPU.

saved_model   TensorFlow
tflite        the interpreter of TensorFlow, or LiteRT, which works without TensorFlow
onnx          ONNX Runtime
openvino      OpenVINO

This module imports a runtime only when it opens an export, so `ssd-benchmark` measures each one alone.
"""

import ctypes
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# Name of the export inside the output folder; a SavedModel is the folder itself.
FILES = {"saved_model": ".", "tflite": "model.tflite", "onnx": "model.onnx", "openvino": "model.xml"}

# Maps uint8 [1, S, S, 3] to the outputs by name.
Runner = Callable[[np.ndarray], dict[str, np.ndarray]]


def open_export(kind: str, path: Path, threads: int | None = None, litert: bool = False) -> Runner:
    """Opens an export and returns the function that runs it on one image.

    Args:
      kind: the format.
      path: the file, or the folder of a SavedModel.
      threads: threads of one operation; None for the number of processors. TensorFlow accepts it only once.
      litert: whether to open a TFLite file with LiteRT.
    """
    openers: dict[str, Callable[[Path, int | None], Runner]] = {
        "saved_model": _open_saved_model,
        "tflite": _open_with_litert if litert else _open_tflite,
        "onnx": _open_onnx,
        "openvino": _open_openvino,
    }
    return openers[kind](path, threads)


def list_files(path: Path) -> list[Path]:
    """Returns the files of an export: those of a SavedModel, or a file and, for an IR, its weights.

    The folder of a SavedModel may also hold the folders of other exports.
    """
    if path.is_dir():
        parts = (path.glob("*.pb"), *((path / name).rglob("*") for name in ("assets", "assets.extra", "variables")))
        return sorted(file for part in parts for file in part if file.is_file())
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _open_saved_model(path: Path, threads: int | None) -> Runner:
    import tensorflow as tf

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    return lambda images: {name: value.numpy() for name, value in function(images=tf.constant(images)).items()}


def _open_tflite(path: Path, threads: int | None) -> Runner:
    import tensorflow as tf

    with warnings.catch_warnings():
        # TensorFlow warns that the interpreter will move to a package of its own; this one still ships with it.
        warnings.simplefilter("ignore", UserWarning)
        return _run_signature(tf.lite.Interpreter(str(path), num_threads=threads or os.cpu_count()))


def _open_with_litert(path: Path, threads: int | None) -> Runner:
    interpreter = importlib.import_module("ai_edge_litert.interpreter")
    return _run_signature(interpreter.Interpreter(str(path), num_threads=threads or os.cpu_count()))


def _run_signature(interpreter: Any) -> Runner:
    runner = interpreter.get_signature_runner()
    input_type = runner.get_input_details()["images"]["dtype"]
    scales = {name: detail["quantization"] for name, detail in runner.get_output_details().items()}

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        # int8 has no values above 127, so its pixels are 128 lower.
        pixels = (images.astype(np.int16) - 128 if input_type == np.int8 else images).astype(input_type)
        return {
            name: value if value.dtype == np.float32 or not scales[name][0] else _dequantize(value, *scales[name])
            for name, value in runner(images=pixels).items()
        }

    return run


def _dequantize(values: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    return np.float32(scale) * (values.astype(np.float32) - np.float32(zero_point))


def _open_onnx(path: Path, threads: int | None) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # 0: the number of processors.
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def _open_openvino(path: Path, threads: int | None) -> Runner:
    import openvino

    # Without the hint, OpenVINO computes in bfloat16 on processors that support it. 0: the number of processors.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0}
    with keep_signal_stack():
        compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda images: {output.get_any_name(): value for output, value in compiled(images).items()}


class _SignalStack(ctypes.Structure):
    """`stack_t` of signal.h."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Restores the stack on which this thread handles signals, for blocks in which OpenVINO compiles a model.

    OpenVINO 2026.4 replaces that stack for each compiled model and restores the previous one when the model is freed.
    Of two models, the one freed last would restore the freed stack of the other; the next signal, such as that of
    Ctrl-C, would crash the process.
    """
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
