"""Exports a trained model: python -m ssd_dist.cli.export --model_dir=RUN --format=tflite --output=DIR.

Writes the model and `export.json`, the export summary: inputs, outputs, metrics of the checkpoint and of the export,
file size, and latency on this machine.
"""

from pathlib import Path
from typing import Any

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import (
    define_override_flag,
    local_path,
    overrides_from_flags,
    required_flag,
    run_command,
)
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.core.printable import print_line
from ssd_dist.core.stage_line import show_stages
from ssd_dist.export.export_options import (
    CALIBRATION_IMAGES,
    KINDS,
    OUTPUTS,
    PIXEL_TYPES,
    Credits,
    ExportOptions,
    Quantization,
    check_quantization,
    choose_metadata,
    choose_outputs,
)


def main(_: list[str]) -> None:
    """Exports the run given by the flags and prints how the export compares with the checkpoint."""
    model_dir, output, kind = required_flag("model_dir"), required_flag("output"), required_flag("format")
    local_path("output")
    options = read_options(kind)
    with show_stages("start TensorFlow", model_dir, "export") as stages:
        # TensorFlow takes seconds to import, so it is imported after the flags are checked.
        from ssd_dist.export.exporter import export_run

        checkpoint = flags.FLAGS["checkpoint"].value
        summary = export_run(model_dir, checkpoint, options, output, overrides_from_flags(), stages)
    parity, before, after = summary["parity"], summary["metrics"]["checkpoint"], summary["metrics"]["export"]
    latency = summary["milliseconds_an_image_here"]
    print_line(f"{Path(output, summary['file'])}: {summary['bytes'] / 1e6:.1f} MB, {latency:.0f} ms per image")
    print_line(describe_parity(parity, options.quantization.kind))
    print_line(
        "  ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in after if after[name] is not None)
    )


def read_options(kind: str) -> ExportOptions:
    """Returns the options that the flags give for a format.

    Raises:
      UsageError: if the format does not support them.
    """
    values = flags.FLAGS.flag_values_dict()
    quantization = Quantization(
        kind=values["quantize"],
        per_tensor=values["per_tensor"],
        calibration_images=values["calibration_images"],
        input_type=values["input_type"],
        output_type=values["output_type"],
    )
    outputs = choose_outputs(kind, quantization.kind, values["outputs"], values["postprocessing"])
    credit = Credits(values["author"], values["model_version"], values["license"])
    metadata = choose_metadata(outputs, values["metadata"], credit)
    return ExportOptions(kind, outputs, check_quantization(kind, outputs, quantization), metadata)


def describe_parity(parity: dict[str, Any], quantize: str) -> str:
    """Returns a sentence on the detections of an export compared with those of its checkpoint."""
    if quantize != "none":
        # Single detections differ by design; their counts are in export.json.
        return (
            f"{quantize} changes every score and box slightly, so the metrics on {parity['images']} images are "
            "compared, checkpoint -> export:"
        )
    return (
        f"{parity['missing']} of {parity['detections']} detections on {parity['images']} images are missing, "
        f"{parity['surplus']} are new, {parity['undecided']} differ by rounding"
    )


def run_main() -> None:
    """Console script `ssd-export`."""
    flags.DEFINE_string("model_dir", None, "Folder of a training run.")
    flags.DEFINE_string("checkpoint", "best", "best, last, or the path of a checkpoint.")
    flags.DEFINE_enum("format", None, list(KINDS), "Format of the export.")
    flags.DEFINE_enum(
        "quantize",
        "none",
        ["none", "fp16", "int8"],
        "Quantization of a TFLite file or an OpenVINO IR: fp16 for the weights, int8 for weights and activations.",
    )
    flags.DEFINE_enum(
        "outputs",
        None,
        list(OUTPUTS),
        "detections: boxes, labels and scores after NMS; raw: logits and offsets; postprocess_op: a TFLite file that "
        "ends in TFLite_Detection_PostProcess; detection_output: an OpenVINO IR that ends in DetectionOutput. The "
        "default is detections, raw for TFLite files in int8, and detection_output for OpenVINO.",
    )
    flags.DEFINE_bool("postprocessing", None, "The same as --outputs=detections; --nopostprocessing: --outputs=raw.")
    flags.DEFINE_bool("per_tensor", False, "int8: one scale per weight tensor instead of one per output channel.")
    flags.DEFINE_integer(
        "calibration_images",
        CALIBRATION_IMAGES,
        "int8: training images from which the ranges of the activations are calibrated.",
        lower_bound=1,
    )
    flags.DEFINE_enum("input_type", "uint8", list(PIXEL_TYPES), "Type of the pixels of a TFLite file.")
    flags.DEFINE_enum("output_type", "float32", ["float32", "uint8", "int8"], "Type of the raw outputs of int8.")
    flags.DEFINE_bool("metadata", None, "Write TFLite metadata and the label file; the default for postprocess_op.")
    flags.DEFINE_string("author", "", "Author of the model, for the metadata.")
    flags.DEFINE_string("model_version", "", "Version of the model, for the metadata.")
    flags.DEFINE_string("license", "", "License of the model, for the metadata.")
    flags.DEFINE_string("output", None, "Folder for the model and export.json, created if missing.")
    define_override_flag()
    set_tensorflow_defaults()
    run_command(main)


if __name__ == "__main__":
    run_main()
