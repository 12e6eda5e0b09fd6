"""Evaluates a trained model: python -m ssd_dist.cli.evaluate --model_dir=RUN --split=test [--output=FILE.json].

--export=DIR evaluates an export instead of a checkpoint, on the data of --model_dir=RUN or of --set data.dir=OUT.
"""

import json
from typing import Any

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import (
    define_override_flag,
    output_file,
    overrides_from_flags,
    refuse_flags,
    required_flag,
    run_command,
)
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.core.printable import print_warning
from ssd_dist.core.stage_line import show_stages


def main(_: list[str]) -> None:
    """Evaluates the checkpoint given by the flags, prints the metrics, and writes the requested files."""
    export = flags.FLAGS["export"].value
    model_dir = flags.FLAGS["model_dir"].value if export else required_flag("model_dir")
    split = required_flag("split")
    if export:
        refuse_flags(["checkpoint"], beside="export")
    output, gallery_path = output_file("output"), output_file("pictures")
    # Without a run there is no folder for the messages of libraries.
    with show_stages("start TensorFlow", "" if export else model_dir, "evaluate") as stages:
        # TensorFlow takes seconds to import, so it is imported after the flags are checked.
        from ssd_dist.evaluation.evaluation_summary import summarize_evaluation
        from ssd_dist.evaluation.gallery import draw_gallery
        from ssd_dist.evaluation.metrics_table import describe_split, format_value, print_analysis, print_metrics
        from ssd_dist.inference.trained_model import evaluate_split
        from ssd_dist.runs.checkpoints import read_best

        if export:
            from ssd_dist.export.exported_detector import evaluate_export

            evaluated = evaluate_export(export, model_dir, split, overrides_from_flags(), stages)
        else:
            checkpoint = flags.FLAGS["checkpoint"].value
            best = read_best(model_dir) if checkpoint == "best" else None
            evaluated = evaluate_split(model_dir, checkpoint, split, overrides_from_flags(), stages)
        config, manifest, ground_truths, detections = evaluated
        stages.show("compute the metrics")
        summary = summarize_evaluation(ground_truths, detections, manifest.classes)
        metrics = {name: value for name, value in summary.items() if name not in ("analysis", "constant_box")}
        analysis = summary["analysis"]
    title = f"{export or model_dir}, split {describe_split(split)}, {len(ground_truths)} images"
    print_metrics(metrics, title, summary["constant_box"])
    print_analysis(analysis)
    if not export and best is not None and not overrides_from_flags():
        _record_evaluation(model_dir, split, best["step"], len(ground_truths), metrics)
    if gallery_path:
        subtitle = f"COCO AP50 {format_value(metrics['coco/AP50'])}, AP {format_value(metrics['coco/AP'])}"
        thresholds = [analysis["operating_points"][name]["threshold"] for name in manifest.classes]
        gallery = draw_gallery(
            config.data, manifest.splits[split], detections, manifest.classes, title, subtitle, thresholds
        )
        gallery.save(gallery_path, "PNG")
    # Last, because a complete file shows `ssd-fit` that the evaluation is finished.
    if output:
        output.write_text(json.dumps(summary, indent=1) + "\n")


def run_main() -> None:
    """Console script `ssd-evaluate`."""
    flags.DEFINE_string("model_dir", None, "Folder of a training run.")
    flags.DEFINE_string(
        "export", None, "Folder or file of an export (SavedModel, TFLite, ONNX or OpenVINO), instead of a run."
    )
    flags.DEFINE_string("checkpoint", "best", "best, last, or the path of a checkpoint.")
    flags.DEFINE_string("split", None, "Split of the prepared data to evaluate on, e.g. test.")
    flags.DEFINE_string("output", None, "JSON file to write the metrics and the error analysis to.")
    flags.DEFINE_string("pictures", None, "PNG file to write images with predictions and ground truth to.")
    define_override_flag()
    set_tensorflow_defaults()
    run_command(main)


def _record_evaluation(model_dir: str, split: str, step: int, images: int, metrics: dict[str, Any]) -> None:
    """Adds the metrics to the model card of the run; a folder that cannot be written is reported, but is no error."""
    from ssd_dist.report.model_card import MODEL_CARD_NAME, record_evaluation

    try:
        record_evaluation(model_dir, split, step, images, metrics)
    except OSError as error:
        print_warning(f"{model_dir}/{MODEL_CARD_NAME} was not updated: {error}")


if __name__ == "__main__":
    run_main()
