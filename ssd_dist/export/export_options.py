"""The options of an export, and the combinations of them that are supported."""

from dataclasses import astuple, dataclass

from ssd_dist.core.config import QuantizationConfig
from ssd_dist.core.errors import UsageError

KINDS = ("saved_model", "tflite", "onnx", "openvino")
QUANTIZATIONS = {
    "saved_model": ("none",),
    "tflite": ("none", "fp16", "int8"),
    "onnx": ("none",),
    "openvino": ("none", "fp16", "int8"),
}
# detections: boxes, labels and scores after NMS.  raw: logits and offsets.
# postprocess_op: the four outputs of the op TFLite_Detection_PostProcess, which TFLite runtimes contain.
# detection_output: the output of the op DetectionOutput, which OpenVINO contains.
OUTPUTS = ("detections", "raw", "postprocess_op", "detection_output")
# The first one is the default.
OUTPUTS_OF_KIND = {
    "saved_model": ("detections", "raw"),
    "tflite": ("detections", "raw", "postprocess_op"),
    "onnx": ("detections", "raw"),
    "openvino": ("detection_output", "raw"),
}
# The flags of `Credits`, in the order of its fields.
CREDIT_FLAGS = ("author", "model_version", "license")
PIXEL_TYPES = ("uint8", "int8", "float32")
# Training images from which int8 calibrates the ranges of its activations.
CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class Quantization:
    """How the network of a TFLite file or an OpenVINO IR is quantized.

    Attributes:
      kind: `none`, `fp16` (weights) or `int8` (weights and activations).
      per_tensor: with int8, one scale per weight tensor instead of one per output channel.
      calibration_images: training images from which int8 calibrates the ranges of its activations.
      input_type: type of the pixels: uint8 and float32 in 0..255; int8 in -128..127, only with int8.
      output_type: type of the raw outputs of int8; the other outputs are float32.
    """

    kind: str = "none"
    per_tensor: bool = False
    calibration_images: int = CALIBRATION_IMAGES
    input_type: str = "uint8"
    output_type: str = "float32"


@dataclass(frozen=True)
class Credits:
    """What the metadata of a model state about its origin."""

    author: str = ""
    version: str = ""
    license: str = ""


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
      kind: the format, one of `KINDS`.
      outputs: one of `OUTPUTS`.
      quantization: how the network is quantized.
      metadata: the origin of the model, written into the file as TFLite metadata; None for a file without metadata.
    """

    kind: str
    outputs: str
    quantization: Quantization = Quantization()
    metadata: Credits | None = None


def choose_outputs(kind: str, quantize: str, outputs: str | None, postprocess: bool | None = None) -> str:
    """Decides which outputs an export has: by default the first of the format, and `raw` for int8 TFLite files.

    Args:
      kind: the format.
      quantize: `none`, `fp16` or `int8`.
      outputs: the requested outputs; None selects the default.
      postprocess: the older flag for `detections` (true) or `raw` (false).

    Raises:
      UsageError: if the format does not support the combination.
    """
    if quantize not in QUANTIZATIONS[kind]:
        raise UsageError(
            f"--quantize={quantize}: not supported by --format={kind}; use {' or '.join(QUANTIZATIONS[kind])}"
            + ("" if kind in ("tflite", "openvino") else ", or --format=tflite")
        )
    if outputs is not None and postprocess is not None:
        raise UsageError(f"--postprocessing: the same as --outputs, which is {outputs}; omit one of the two")
    if postprocess is not None:
        outputs = "detections" if postprocess else "raw"
    if kind == "tflite" and quantize == "int8" and outputs == "detections":
        flag = "--outputs=detections" if postprocess is None else "--postprocessing"
        raise UsageError(
            f"{flag}: box decoding is not exact in 8 bits; omit the flag with --quantize=int8, or use "
            "--outputs=postprocess_op"
        )
    supported = OUTPUTS_OF_KIND[kind]
    if outputs is None:
        return "raw" if kind == "tflite" and quantize == "int8" else supported[0]
    if outputs not in supported:
        kinds = [name for name, allowed in OUTPUTS_OF_KIND.items() if outputs in allowed]
        raise UsageError(
            f"--outputs={outputs}: not supported by --format={kind}; use --format={' or '.join(kinds)}, or "
            f"--outputs={' or '.join(supported)}"
        )
    return outputs


def check_quantization(kind: str, outputs: str, quantization: Quantization) -> Quantization:
    """Checks the options that only some formats have.

    Raises:
      UsageError: if the format does not support an option.
    """
    int8 = quantization.kind == "int8"
    if quantization.per_tensor and not int8:
        raise UsageError("--per_tensor: only int8 has scales; add --quantize=int8 or omit the flag")
    if quantization.per_tensor and kind != "tflite":
        raise UsageError(f"--per_tensor: not supported by --format={kind}; use --format=tflite or omit the flag")
    if quantization.calibration_images != CALIBRATION_IMAGES and not int8:
        raise UsageError("--calibration_images: only int8 is calibrated; add --quantize=int8 or omit the flag")
    if quantization.input_type != "uint8" and kind != "tflite":
        raise UsageError(f"--input_type={quantization.input_type}: not supported by --format={kind}; omit the flag")
    if quantization.input_type == "int8" and not int8:
        raise UsageError("--input_type=int8: needs a quantized network; add --quantize=int8 or use uint8 or float32")
    if quantization.output_type != "float32" and not (kind == "tflite" and int8 and outputs == "raw"):
        raise UsageError(
            f"--output_type={quantization.output_type}: needs the raw outputs of a quantized TFLite file; "
            "use --format=tflite --quantize=int8 --outputs=raw or omit the flag"
        )
    return quantization


def check_trained_quantization(trained: QuantizationConfig, options: ExportOptions, source: str) -> None:
    """Checks that a run with `quantization.aware` is exported as the int8 file that it was trained for.

    Args:
      trained: `quantization` of the run.
      options: the options of the export.
      source: `model.init_from` of the run.

    Raises:
      UsageError: if the export is another one.
    """
    if not trained.aware:
        return
    if options.kind != "tflite" or options.quantization.kind != "int8":
        raise UsageError(
            f"--format={options.kind} --quantize={options.quantization.kind}: the run was trained with "
            f"quantization.aware, for int8 TFLite files; use --format=tflite --quantize=int8, or export {source}"
        )
    if options.quantization.calibration_images != CALIBRATION_IMAGES:
        raise UsageError(
            "--calibration_images: the run was trained with quantization.aware, so its ranges are known; omit the flag"
        )
    if options.quantization.per_tensor != trained.per_tensor:
        change = "add --per_tensor" if trained.per_tensor else "omit --per_tensor"
        raise UsageError(
            f"--per_tensor: the run was trained with quantization.per_tensor: {str(trained.per_tensor).lower()}; "
            f"{change}, or train with another quantization.per_tensor"
        )


def choose_metadata(outputs: str, requested: bool | None, credit: Credits) -> Credits | None:
    """Decides whether the file gets TFLite metadata: by default only with `postprocess_op`.

    Raises:
      UsageError: if the outputs have no standard metadata, or there are credits but no metadata.
    """
    if requested and outputs != "postprocess_op":
        raise UsageError(
            f"--metadata: clients expect the outputs of postprocess_op, not {outputs}; add --outputs=postprocess_op"
        )
    if outputs == "postprocess_op" and requested is not False:
        return credit
    if credit != Credits():
        given = next(flag for flag, value in zip(CREDIT_FLAGS, astuple(credit), strict=True) if value)
        fix = "omit --nometadata" if outputs == "postprocess_op" else "add --outputs=postprocess_op"
        raise UsageError(f"--{given}: only TFLite metadata contains it; {fix}, or omit the flag")
    return None
