"""Charts of one run, and comparison charts with one line per run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ssd_dist.report.charts import Axes, Line, Mark, draw_line_chart
from ssd_dist.report.run_facts import RunFacts

# Title, chart and caption.
Tile = tuple[str, Markup, str]
MAX_LINES = 6
METRIC_NAMES = {
    "coco/AP": "COCO AP",
    "coco/AP50": "COCO AP50",
    "coco/AP75": "COCO AP75",
    "voc07/mAP": "VOC07 mAP",
    "voc/mAP": "VOC mAP",
}


def draw_training_charts(run: RunFacts) -> list[Tile]:
    """Draws the charts of the training reports; returns none if there are no reports."""
    if not run.train.rows:
        return []
    return [
        (
            "Loss",
            _draw_reports(
                run,
                ("loss", "loss/cls", "loss/loc"),
                ("total", "classification", "localization"),
                "loss",
                clip_peaks=True,
            ),
            "Means over the steps between two reports. The high values of the first steps may be cut off.",
        ),
        ("Learning rate", _draw_reports(run, ("lr",), ("",), "learning rate"), "Linear warm-up, then cosine decay."),
        (
            "Anchors in the loss",
            _draw_reports(run, ("positives", "negatives"), ("positives", "negatives"), "anchors per global batch"),
            f"Hard negative mining keeps {run.config.mining.ratio:g} negatives per positive.",
        ),
        (
            "Training speed",
            _draw_reports(
                run,
                # The measured speed is drawn last, so that it is visible where the two lines coincide.
                ("images_per_second_without_wait", "images_per_second"),
                ("without waiting", "measured"),
                "images per second",
            ),
            f"Median {np.nanmedian(run.train.column('images_per_second')):,.0f} images per second. Where the lines "
            "differ, training waits for data.",
        ),
        (
            "Waiting for data",
            _draw_reports(run, ("data_wait",), ("",), "share of time", percent=True),
            "Above a few percent, the input pipeline is the bottleneck: set data.cache_dir, use more CPU cores, or "
            "use precomputed targets.",
        ),
        _draw_loss_scale(run),
    ]


def draw_metric_charts(run: RunFacts) -> list[Tile]:
    """Draws the metrics by step, in total, by object size and by class; returns none if there are no evaluations."""
    if not run.evaluations.rows:
        return []
    return [_draw_metrics(run), _draw_metrics_by_size(run), _draw_metrics_by_class(run)]


def _draw_metrics(run: RunFacts) -> Tile:
    selected = run.config.eval.metric
    names = list(dict.fromkeys(("coco/AP50", "coco/AP75", "coco/AP", selected)))
    styles = {name: f"s{index}" for index, name in enumerate([selected, *(n for n in names if n != selected)])}
    lines = [
        Line(METRIC_NAMES[name], run.evaluations.steps, run.evaluations.column(name), styles[name]) for name in names
    ]
    marks = []
    if run.best is not None and run.best["metric"] in METRIC_NAMES:
        early = run.best["step"] < run.last_step / 3
        marks = [Mark(run.best["step"], run.best["value"], f"best {run.best['value']:.3f}", right=early)]
    return (
        "Metrics by step",
        draw_line_chart("metrics by step", lines, Axes("step", "on the evaluation split", y_range=(0, 1)), marks),
        f"The best checkpoint is the one with the highest {METRIC_NAMES[selected]} (eval.metric).",
    )


def _draw_metrics_by_size(run: RunFacts) -> Tile:
    lines = [
        Line(size, run.evaluations.steps, run.evaluations.column(f"coco/AP_{size}"), f"s{index}")
        for index, size in enumerate(("small", "medium", "large"))
    ]
    axes = Axes("step", "COCO AP", y_range=(0, 1))
    caption = "Small: area below 32² pixels of the original image; medium: below 96²; large: from 96²."
    return "AP by object size", draw_line_chart("COCO AP by step and object size", lines, axes), caption


def _draw_metrics_by_class(run: RunFacts) -> Tile:
    last = _class_ap50(run.evaluations.rows[-1])
    names = sorted(last, key=lambda name: last[name])[:MAX_LINES]
    lines = [
        Line(
            name,
            run.evaluations.steps,
            np.array([_class_ap50(row).get(name, np.nan) for row in run.evaluations.rows]),
            f"s{index}",
        )
        for index, name in enumerate(names)
    ]
    caption = "" if len(last) <= MAX_LINES else f"The {MAX_LINES} classes with the lowest AP50, of {len(last)}."
    axes = Axes("step", "COCO AP50", y_range=(0, 1))
    return "AP50 by class", draw_line_chart("COCO AP50 by step and class", lines, axes), caption


def _class_ap50(row: dict[str, Any]) -> dict[str, float]:
    """Returns the AP50 of each class that has one."""
    found = row.get("per_class")
    values = found.items() if isinstance(found, dict) else ()
    pairs = ((name, part.get("coco/AP50") if isinstance(part, dict) else None) for name, part in values)
    return {name: float(value) for name, value in pairs if isinstance(value, int | float)}


def draw_comparison_charts(runs: Sequence[RunFacts], names: Sequence[str]) -> list[Tile]:
    """Draws the curves of several runs, one color per run."""

    def compare(
        title: str,
        unit: str,
        kind: str,
        column: str,
        caption: str = "",
        clip_peaks: bool = False,
        percent: bool = False,
    ) -> Tile:
        rows = [run.train if kind == "train" else run.evaluations for run in runs]
        lines = [
            Line(name, part.steps, part.column(column), f"s{index % 7}")
            for index, (name, part) in enumerate(zip(names, rows, strict=True))
            if part.rows
        ]
        y_range = _clip_range([line.y for line in lines]) if clip_peaks else None
        axes = Axes("step", unit, y_range=y_range, percent=percent)
        return title, draw_line_chart(f"{title} by step", lines, axes), caption

    return [
        compare("COCO AP", "IoU 0.50:0.95", "eval", "coco/AP"),
        compare("COCO AP50", "IoU 0.50", "eval", "coco/AP50"),
        compare(
            "Total loss",
            "loss",
            "train",
            "loss",
            "Losses are comparable only between runs with the same loss.normalizer and global batch size.",
            clip_peaks=True,
        ),
        compare("Classification loss", "loss/cls", "train", "loss/cls", clip_peaks=True),
        compare("Localization loss", "loss/loc", "train", "loss/loc", clip_peaks=True),
        compare("Learning rate", "learning rate", "train", "lr"),
        compare("Training speed", "images per second", "train", "images_per_second"),
        compare("Waiting for data", "share of time", "train", "data_wait", percent=True),
    ]


def _draw_loss_scale(run: RunFacts) -> Tile:
    scale = run.train.column("loss_scale")
    skipped = int(np.nan_to_num(run.train.column("skipped_steps")).max(initial=0))
    constant = len(np.unique(scale[np.isfinite(scale)])) <= 1
    caption = (
        f"Constant, as in every run without float16. Skipped steps: {skipped}."
        if constant
        else f"Halved at each overflow; that step is skipped on all replicas. Skipped steps: {skipped}."
    )
    log = bool(np.nanmin(scale) > 0) and not constant if np.isfinite(scale).any() else False
    return "Loss scale", _draw_reports(run, ("loss_scale",), ("",), "factor", log=log), caption


def _draw_reports(
    run: RunFacts,
    columns: Sequence[str],
    names: Sequence[str],
    unit: str,
    clip_peaks: bool = False,
    log: bool = False,
    percent: bool = False,
) -> Markup:
    """Draws columns of the training reports by step."""
    values = [run.train.column(column) for column in columns]
    axes = Axes("step", unit, y_range=_clip_range(values) if clip_peaks else None, log=log, percent=percent)
    lines = [
        Line(name, run.train.steps, y, f"s{index}") for index, (name, y) in enumerate(zip(names, values, strict=True))
    ]
    return draw_line_chart(f"{', '.join(columns)} by step", lines, axes)


def _clip_range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns a range that starts at 0 and covers 97 % of the values.

    The first losses are ten times as high as the later ones; showing them would flatten the rest of the curve.
    """
    finite = [part[np.isfinite(part)] for part in values]
    tops = [float(np.quantile(part, 0.97)) for part in finite if part.size]
    return 0.0, 1.15 * max(tops, default=1.0) or 1.0
