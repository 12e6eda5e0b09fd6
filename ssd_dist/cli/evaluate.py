"""Evaluates a trained model: python -m ssd_dist.cli.evaluate --model_dir=RUN --split=test [--output=FILE.json]."""

import json
from pathlib import Path

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import define_override_flag, overrides_from_flags, required_flag, run_command
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.core.errors import UsageError


def main(_: list[str]) -> None:
    """Evaluates the checkpoint given by the flags, prints the metrics, and writes the requested files."""
    model_dir, split = required_flag("model_dir"), required_flag("split")
    output, gallery_path = _check_output("output"), _check_output("pictures")
    # TensorFlow takes seconds to import, so it is imported after the flags are checked.
    from ssd_dist.evaluation.analysis import analyse_detections
    from ssd_dist.evaluation.baseline import evaluate_constant_box
    from ssd_dist.evaluation.gallery import draw_gallery
    from ssd_dist.evaluation.metrics import evaluate_detections
    from ssd_dist.evaluation.metrics_table import describe_split, format_value, print_analysis, print_metrics
    from ssd_dist.inference.trained_model import evaluate_split

    config, manifest, ground_truths, detections = evaluate_split(
        model_dir, flags.FLAGS["checkpoint"].value, split, overrides_from_flags()
    )
    metrics = evaluate_detections(ground_truths, detections, manifest.classes).as_dict()
    analysis = analyse_detections(ground_truths, detections, manifest.classes).as_dict()
    title = f"{model_dir}, split {describe_split(split)}, {len(ground_truths)} images"
    baseline = evaluate_constant_box(ground_truths, manifest.classes)
    print_metrics(metrics, title, baseline)
    print_analysis(analysis)
    if output:
        output.write_text(json.dumps(metrics | {"analysis": analysis, "constant_box": baseline}, indent=1) + "\n")
    if gallery_path:
        subtitle = f"COCO AP50 {format_value(metrics['coco/AP50'])}, AP {format_value(metrics['coco/AP'])}"
        thresholds = [analysis["operating_points"][name]["threshold"] for name in manifest.classes]
        gallery = draw_gallery(
            config.data, manifest.splits[split], detections, manifest.classes, title, subtitle, thresholds
        )
        gallery.save(gallery_path, "PNG")


def run_main() -> None:
    """Console script `ssd-evaluate`."""
    flags.DEFINE_string("model_dir", None, "Folder of a training run.")
    flags.DEFINE_string("checkpoint", "best", "best, last, or the path of a checkpoint.")
    flags.DEFINE_string("split", None, "Split of the prepared data to evaluate on, e.g. test.")
    flags.DEFINE_string("output", None, "JSON file to write the metrics and the error analysis to.")
    flags.DEFINE_string("pictures", None, "PNG file to write images with predictions and ground truth to.")
    define_override_flag()
    set_tensorflow_defaults()
    run_command(main)


def _check_output(flag: str) -> Path | None:
    """Returns the path given by a flag; checks that it is writable before an evaluation that takes minutes.

    Raises:
      UsageError: if the file cannot be written.
    """
    if not (name := flags.FLAGS[flag].value):
        return None
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.touch()
        if not existed:
            path.unlink()
        elif path.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise UsageError(f"--{flag}={name}: cannot write the file: {error}; give a file in a writable folder") from None
    return path


if __name__ == "__main__":
    run_main()
