"""The table at the end of `ssd-fit` and `ssd-train`: metrics, thresholds of the classes, files, and next commands."""

from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ssd_dist.core.config_files import load_stored_config
from ssd_dist.core.folder_names import CONFIG_NAME, REPORT_NAME
from ssd_dist.core.manifest import TRAIN_SPLIT
from ssd_dist.core.printable import make_printable, print_line
from ssd_dist.fitting.run_files import FitFiles
from ssd_dist.fitting.stages import read_json

# The files that training writes, with their descriptions.
RUN_FILES = {
    "best": "the weights of the best evaluation",
    "checkpoints": "the last weights; the same command resumes from them",
    REPORT_NAME: "curves, errors, images with predictions",
    "model_card.md": "data, metrics, intended input, limits",
    "predictions.png": "predictions and ground truth",
    "metrics.json": "all metrics and thresholds",
    CONFIG_NAME: "the config, with all choices",
}


def print_results(files: FitFiles, formats: tuple[str, ...], split: str) -> None:
    """Prints what a run of `ssd-fit` reached and wrote."""
    exports = []
    for kind in formats:
        summary = read_json(files.export(kind))
        path = files.export(kind).parent / summary["file"]
        exports.append((str(path.relative_to(files.folder)), f"{summary['bytes'] / 1e6:.1f} MB"))
    print_table(files.folder, split, read_json(files.metrics), [*exports, *list_files(files.folder)])
    run, thresholds = describe_run(files.folder), quote(f"--score_threshold={files.metrics}")
    print_line("Detect objects in images:")
    print_line(f"  ssd-predict {run} {thresholds} --images=FOLDER --output=DIR")
    if formats:
        export = quote(f"--export={files.export(formats[0]).parent}")
        print_line("Detect objects with the export:")
        print_line(f"  ssd-predict {export} {thresholds} --images=FOLDER --output=DIR")
    print_line("Export to another format:")
    print_line(f"  ssd-export {run} {describe_export(files.folder, 'onnx')} --output=DIR")


def print_training_results(model_dir: str, split: str, metrics: dict[str, Any] | None) -> None:
    """Prints what a run of `ssd-train` reached and wrote; `metrics` is None if the model was not evaluated."""
    print_table(Path(model_dir), split, metrics, list_files(Path(model_dir)))
    run = describe_run(Path(model_dir))
    print_line("Detect objects in images:")
    print_line(f"  ssd-predict {run} --images=FOLDER --output=DIR")
    print_line("Export:")
    print_line(f"  ssd-export {run} {describe_export(Path(model_dir), 'tflite')} --output=DIR")


def describe_run(folder: Path) -> str:
    """Returns the flags that select the weights of a run: the best ones, or the last if training did not evaluate."""
    run = quote(f"--model_dir={folder}")
    return run if (folder / "best/best.json").exists() else f"{run} --checkpoint=last"


def describe_export(folder: Path, kind: str) -> str:
    """Returns the flags that export a run to a format, or to TFLite in int8 if the run was trained for it."""
    trained = load_stored_config(folder / CONFIG_NAME).quantization
    if not trained.aware:
        return f"--format={kind}"
    return "--format=tflite --quantize=int8 --outputs=postprocess_op" + " --per_tensor" * trained.per_tensor


def print_table(folder: Path, split: str, metrics: dict[str, Any] | None, files: list[tuple[str, str]]) -> None:
    """Prints metrics, thresholds and files.

    Args:
      folder: the run folder.
      split: the split of the metrics.
      metrics: the metrics, with the thresholds in `analysis` and, for small sets of one class, `constant_box`; None if
        there are none.
      files: path within the run folder and description of each file.
    """
    console = Console(highlight=False, soft_wrap=True)
    title = Text(make_printable(f"{folder}"), style="bold")
    # No name may be cut off: in a narrow terminal it continues on the next line.
    columns = [Column(overflow="fold") for _ in range(3)]
    table = Table(*columns, title=title, title_justify="left", show_header=False)
    if metrics is not None:
        note = "; the training images: other images will have lower values" if split == TRAIN_SPLIT else ""
        table.add_row(Text(f"metrics on {split}"), "COCO AP50", f"{_format(metrics['coco/AP50'])}{note}")
        table.add_row("", "COCO AP", _format(metrics["coco/AP"]))
        if constant_box := metrics.get("constant_box"):
            value = f"AP50 {_format(constant_box.get('coco/AP50'))}, AP {_format(constant_box.get('coco/AP'))}"
            table.add_row("", "the same box on every image", value)
        table.add_section()
        heading = f"thresholds: best F1 on {split}"
        for name, point in metrics["analysis"]["operating_points"].items():
            precision, recall = _format(point["precision"]), _format(point["recall"])
            value = f"{_format(point['threshold'])}: precision {precision}, recall {recall}"
            table.add_row(heading, Text(make_printable(name)), value)
            heading = ""
        table.add_section()
    heading = "files"
    for path, text in files:
        table.add_row(heading, Text(make_printable(path)), text)
        heading = ""
    console.print(table)


def list_files(folder: Path) -> list[tuple[str, str]]:
    """Returns the name and the description of each result in a run folder."""
    return [(name, text) for name, text in RUN_FILES.items() if (folder / name).exists()]


def _format(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
