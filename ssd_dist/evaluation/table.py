"""The table that `evaluate` prints: totals by protocol, then each class."""

from typing import Any

from rich.console import Console
from rich.table import Table

_PER_CLASS = {"coco/AP": "COCO AP", "coco/AP50": "COCO AP50", "voc07/AP": "VOC07 AP", "voc/AP": "VOC AP"}
_TOTALS = {
    "coco/AP": "COCO AP, IoU 0.50:0.95",
    "coco/AP50": "COCO AP50, IoU 0.50",
    "coco/AP75": "COCO AP75, IoU 0.75",
    "coco/AP_small": "COCO AP, small (below 32² pixels)",
    "coco/AP_medium": "COCO AP, medium",
    "coco/AP_large": "COCO AP, large (above 96² pixels)",
    "coco/AR100": "COCO AR, 100 detections an image",
    "voc07/mAP": "VOC 2007 mAP, 11 points, IoU 0.50",
    "voc/mAP": "VOC mAP, area under the curve, IoU 0.50",
}


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """Prints `Metrics.as_dict()`."""
    console = Console(highlight=False)
    totals = Table(title=title, title_justify="left", title_style="bold")
    totals.add_column("metric")
    totals.add_column("value", justify="right")
    for name, text in _TOTALS.items():
        totals.add_row(text, format_value(metrics[name]))
    console.print(totals)
    classes = Table("class", *_PER_CLASS.values(), "objects")
    for column in classes.columns[1:]:
        column.justify = "right"
    for name, values in metrics["per_class"].items():
        classes.add_row(name, *(format_value(values[key]) for key in _PER_CLASS), str(values["objects"]))
    console.print(classes)


def format_value(value: float | None) -> str:
    """Three decimals, or a dash for what does not exist."""
    return "-" if value is None else f"{value:.3f}"
