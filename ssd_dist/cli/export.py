"""Ships a model: python -m ssd_dist.cli.export --model_dir=RUN --format=tflite --quantize=int8 --output=DIR.

Writes the model and `export.json`: what goes in and out, the metrics before and after, size, latency here.
"""

from pathlib import Path

from absl import flags

from ssd_dist.core.commands import define_override_flag, overrides_from_flags, required_flag, run_command


def main(_: list[str]) -> None:
    """Exports the run of the flags and tells what the export is worth."""
    model_dir, output, kind = required_flag("model_dir"), required_flag("output"), required_flag("format")
    quantize, postprocess = flags.FLAGS["quantize"].value, flags.FLAGS["postprocessing"].value
    # TensorFlow takes seconds to load: only once the flags are right.
    from ssd_dist.export.exporter import choose_postprocessing, export_run

    choose_postprocessing(kind, quantize, postprocess)
    card = export_run(
        model_dir, flags.FLAGS["checkpoint"].value, kind, quantize, postprocess, output, overrides_from_flags()
    )
    parity, before, after = card["parity"], card["metrics"]["checkpoint"], card["metrics"]["export"]
    where, size, latency = Path(output, card["file"]), card["bytes"] / 1e6, card["milliseconds_an_image_here"]
    print(f"{where}: {size:.1f} MB, {latency:.0f} ms an image")
    print(
        f"of {parity['detections']} detections on {parity['images']} images {parity['missing']} differ"
        + (f", {parity['surplus']} more are found" if parity["surplus"] else "")
        + (f" and {parity['undecided']} hang on rounding; " if parity["undecided"] else "; ")
        + "  ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in after if after[name] is not None)
    )


def run_main() -> None:
    """Console script `ssd-export`."""
    flags.DEFINE_string("model_dir", None, "Folder of a training run.")
    flags.DEFINE_string("checkpoint", "best", "best, last, or the path of a checkpoint.")
    flags.DEFINE_enum("format", None, ["saved_model", "tflite", "onnx"], "What to write.")
    flags.DEFINE_enum("quantize", "none", ["none", "fp16", "int8"], "Numbers of a TFLite file.")
    flags.DEFINE_bool("postprocessing", None, "Box decoding and suppression in the graph; by default but for int8.")
    flags.DEFINE_string("output", None, "Folder for the model and export.json.")
    define_override_flag()
    run_command(main)


if __name__ == "__main__":
    run_main()
