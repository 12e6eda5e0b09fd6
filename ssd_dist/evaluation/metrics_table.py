"""Prints the tables of `ssd-evaluate`: metrics over all classes, metrics per class, thresholds and errors."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssd_dist.core.manifest import TRAIN_SPLIT
from ssd_dist.core.printable import NAME_LENGTH, make_printable
from ssd_dist.evaluation.error_types import NAMES

_PER_CLASS = {"coco/AP": "COCO AP", "coco/AP50": "COCO AP50", "voc07/AP": "VOC07 AP", "voc/AP": "VOC AP"}
_TOTALS = {
    "coco/AP": "COCO AP, IoU 0.50:0.95",
    "coco/AP50": "COCO AP50, IoU 0.50",
    "coco/AP75": "COCO AP75, IoU 0.75",
    "coco/AP_small": "COCO AP, small (below 32² pixels)",
    "coco/AP_medium": "COCO AP, medium",
    "coco/AP_large": "COCO AP, large (above 96² pixels)",
    "coco/AR100": "COCO AR, 100 detections per image",
    "voc07/mAP": "VOC 2007 mAP, 11 points, IoU 0.50 without the devkit's + 1 pixel",
    "voc/mAP": "VOC mAP, area under the curve, IoU 0.50 without the devkit's + 1 pixel",
}


def print_metrics(metrics: dict[str, Any], title: str, constant_box: dict[str, float] | None = None) -> None:
    """Prints the metrics that `Metrics.as_dict()` returns, under a title.

    Args:
      metrics: the metrics.
      title: the title.
      constant_box: `coco/AP` and `coco/AP50` of the same box on every image, for comparison; None to omit them.
    """
    console = Console(highlight=False)
    # Text() keeps names such as [red] from being parsed as markup.
    totals = Table(title=Text(make_printable(title), style="bold"), title_justify="left")
    totals.add_column("metric")
    totals.add_column("value", justify="right")
    for name, text in _TOTALS.items():
        totals.add_row(text, format_value(metrics[name]))
        if constant_box is not None and name in constant_box:
            totals.add_row("  the same box on every image", format_value(constant_box[name]))
    console.print(totals)
    classes = Table("class", *_PER_CLASS.values(), "objects")
    for column in classes.columns[1:]:
        column.justify = "right"
    for name, values in metrics["per_class"].items():
        classes.add_row(_name_cell(name), *(format_value(values[key]) for key in _PER_CLASS), str(values["objects"]))
    console.print(classes)


def print_analysis(analysis: dict[str, Any]) -> None:
    """Prints the thresholds and errors that `Analysis.as_dict()` returns."""
    console = Console(highlight=False)
    points = Table("class", "score threshold", "F1", "precision", "recall", title="Best F1 of each class, IoU 0.50")
    points.title_justify, points.title_style = "left", "bold"
    for name, point in analysis["operating_points"].items():
        values = (point[key] for key in ("threshold", "f1", "precision", "recall"))
        points.add_row(_name_cell(name), *map(format_value, values))
    errors = Table("error type", "count at these thresholds", "VOC mAP gain if corrected", title="Error types (TIDE)")
    errors.title_justify, errors.title_style = "left", "bold"
    for kind, count in analysis["errors"]["counts"].items():
        errors.add_row(NAMES.get(kind, kind), str(count), f"{analysis['errors']['ap_gain_if_mended'][kind]:+.3f}")
    for table in (points, errors):
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)
    error = analysis["calibration"]["error"]
    console.print(f"expected calibration error {format_value(error)}: mean difference between score and precision")


def describe_split(name: str) -> str:
    """Returns the name of a split, with a warning if its images were trained on."""
    return f"{name} (the training split: metrics on other images are lower)" if name == TRAIN_SPLIT else name


def format_value(value: float | None) -> str:
    """Formats a value with three decimals; None as a dash."""
    return "-" if value is None else f"{value:.3f}"


def _name_cell(name: str) -> Text:
    return Text(make_printable(name, NAME_LENGTH))
