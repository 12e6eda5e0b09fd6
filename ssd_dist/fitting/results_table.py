"""The table at the end of `ssd-fit`: metrics, the threshold of each class, the files, and the next commands."""

from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssd_dist.core.folder_names import REPORT_NAME
from ssd_dist.core.printable import make_printable, print_line
from ssd_dist.fitting.run_files import FitFiles
from ssd_dist.fitting.stages import read_json


def print_results(files: FitFiles, formats: tuple[str, ...], split: str) -> None:
    """Prints what the run reached and wrote."""
    console = Console(highlight=False, soft_wrap=True)
    metrics = read_json(files.metrics)
    table = Table("", "", "", title=Text(f"{files.folder}", style="bold"), title_justify="left", show_header=False)
    note = "; the training images: other images will have lower values" if split == "train" else ""
    table.add_row(f"metrics on {split}", "COCO AP50", f"{_format(metrics['coco/AP50'])}{note}")
    table.add_row("", "COCO AP", _format(metrics["coco/AP"]))
    table.add_section()
    title = "thresholds (best F1)"
    for name, point in metrics["analysis"]["operating_points"].items():
        precision, recall = _format(point["precision"]), _format(point["recall"])
        value = f"{_format(point['threshold'])}: precision {precision}, recall {recall}"
        table.add_row(title, Text(make_printable(name)), value)
        title = ""
    table.add_section()
    title = "files"
    for path, text in list_files(files, formats):
        table.add_row(title, Text(make_printable(path)), text)
        title = ""
    console.print(table)
    # Below the table, which wraps lines, so that they can be copied.
    run, thresholds = quote(f"--model_dir={files.folder}"), quote(f"--score_threshold={files.metrics}")
    print_line("Detect objects in images:")
    print_line(f"  ssd-predict {run} {thresholds} --images=FOLDER --output=DIR")
    print_line("Export to another format:")
    print_line(f"  ssd-export {run} --format=onnx --output=DIR")


def list_files(files: FitFiles, formats: tuple[str, ...]) -> list[tuple[str, str]]:
    """Returns the path and the description of each result."""
    exports = []
    for kind in formats:
        summary = read_json(files.export(kind))
        exports.append((str(files.export(kind).parent / summary["file"]), f"{summary['bytes'] / 1e6:.1f} MB"))
    return [
        *exports,
        (str(files.folder / REPORT_NAME), "curves, errors, images with predictions"),
        (str(files.folder / "predictions.png"), "predictions and ground truth"),
        (str(files.metrics), "all metrics and thresholds"),
        (str(files.config), "the config, with all choices"),
    ]


def _format(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
