"""Exports a trained model: python -m ssd_dist.cli.export --model_dir=RUN --format=tflite --output=DIR.

Writes the model and `export.json`, the export summary: inputs, outputs, metrics of the checkpoint and of the export,
file size, and latency on this machine.
"""

from pathlib import Path
from typing import Any

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import define_override_flag, overrides_from_flags, required_flag, run_command
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.core.printable import print_line


def main(_: list[str]) -> None:
    """Exports the run given by the flags and prints how the export compares with the checkpoint."""
    model_dir, output, kind = required_flag("model_dir"), required_flag("output"), required_flag("format")
    quantize, postprocess = flags.FLAGS["quantize"].value, flags.FLAGS["postprocessing"].value
    # TensorFlow takes seconds to import, so it is imported after the flags are checked.
    from ssd_dist.export.exporter import choose_postprocessing, export_run

    choose_postprocessing(kind, quantize, postprocess)
    summary = export_run(
        model_dir, flags.FLAGS["checkpoint"].value, kind, quantize, postprocess, output, overrides_from_flags()
    )
    parity, before, after = summary["parity"], summary["metrics"]["checkpoint"], summary["metrics"]["export"]
    latency = summary["milliseconds_an_image_here"]
    print_line(f"{Path(output, summary['file'])}: {summary['bytes'] / 1e6:.1f} MB, {latency:.0f} ms per image")
    print_line(describe_parity(parity, quantize))
    print_line(
        "  ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in after if after[name] is not None)
    )


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
    flags.DEFINE_enum("format", None, ["saved_model", "tflite", "onnx"], "Format of the export.")
    flags.DEFINE_enum(
        "quantize",
        "none",
        ["none", "fp16", "int8"],
        "Quantization of a TFLite file: fp16 for the weights, int8 for weights and activations.",
    )
    flags.DEFINE_bool(
        "postprocessing", None, "Include box decoding and NMS in the graph; the default is yes, except for int8."
    )
    flags.DEFINE_string("output", None, "Folder for the model and export.json, created if missing.")
    define_override_flag()
    set_tensorflow_defaults()
    run_command(main)


if __name__ == "__main__":
    run_main()
