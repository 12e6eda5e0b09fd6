"""Curves of one run or of several, laid over each other: one chart a quantity, one line a run."""

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from ssd_dist.report.charts import Axes, Line, Mark, line_chart
from ssd_dist.report.run_facts import RunFacts

# (title, chart, sentence)
Tile = tuple[str, Markup, str]
MOST_LINES = 6
METRIC_NAMES = {
    "coco/AP": "COCO AP",
    "coco/AP50": "COCO AP50",
    "coco/AP75": "COCO AP75",
    "voc07/mAP": "VOC07 mAP",
    "voc/mAP": "VOC mAP",
}


def training_charts(run: RunFacts) -> list[Tile]:
    """Loss parts, learning rate, anchors, speed, waiting and loss scale of one run; none without reports."""
    if not run.train.rows:
        return []
    return [
        (
            "Loss",
            _chart(run, ("loss", "loss/cls", "loss/loc"), ("total", "class", "place"), "loss", robust=True),
            "Means of the steps between two reports. The first, steep steps may lie above the chart.",
        ),
        ("Learning rate", _chart(run, ("lr",), ("",), "learning rate"), "Linear warm-up, then a cosine."),
        (
            "Anchors in the loss",
            _chart(run, ("positives", "negatives"), ("positives", "negatives"), "anchors a step, global batch"),
            f"Mining keeps {run.config.mining.ratio:g} negatives for each positive.",
        ),
        (
            "Speed",
            _chart(
                run,
                # What was is drawn over what could have been: mostly the two are one line.
                ("images_per_second_without_wait", "images_per_second"),
                ("data always ready", "as it was"),
                "images a second",
            ),
            f"Median {np.nanmedian(run.train.column('images_per_second')):,.0f} images a second. "
            "Where the lines part, steps wait for data.",
        ),
        (
            "Waiting for data",
            _chart(run, ("data_wait",), ("",), "share of the time", percent=True),
            "Above a few percent the input is the brake: data.cache_dir, more cores, precomputed targets.",
        ),
        _scale_chart(run),
    ]


def metric_charts(run: RunFacts) -> list[Tile]:
    """Metrics by step, the best of the one that decides marked, by size and by class; none without evaluations."""
    if not run.evaluations.rows:
        return []
    return [_metrics(run), _metrics_by_size(run), _metrics_by_class(run)]


def _metrics(run: RunFacts) -> Tile:
    decides = run.config.eval.metric
    names = list(dict.fromkeys(("coco/AP50", "coco/AP75", "coco/AP", decides)))
    styles = {name: f"s{index}" for index, name in enumerate([decides, *(n for n in names if n != decides)])}
    lines = [
        Line(METRIC_NAMES[name], run.evaluations.steps, run.evaluations.column(name), styles[name]) for name in names
    ]
    marks = []
    if run.best is not None and run.best["metric"] in METRIC_NAMES:
        early = run.best["step"] < run.last_step / 3
        marks = [Mark(run.best["step"], run.best["value"], f"best {run.best['value']:.3f}", right=early)]
    return (
        "Metrics by step",
        line_chart("metrics by step", lines, Axes("step", "on the evaluation split", y_range=(0, 1)), marks),
        f"{METRIC_NAMES[decides]} decides which checkpoint is kept as the best.",
    )


def _metrics_by_size(run: RunFacts) -> Tile:
    lines = [
        Line(size, run.evaluations.steps, run.evaluations.column(f"coco/AP_{size}"), f"s{index}")
        for index, size in enumerate(("small", "medium", "large"))
    ]
    axes = Axes("step", "COCO AP", y_range=(0, 1))
    sentence = "Below 32², below 96² and above, in pixels of the original images."
    return "By size of object", line_chart("COCO AP by step and size", lines, axes), sentence


def _metrics_by_class(run: RunFacts) -> Tile:
    last = _per_class(run.evaluations.rows[-1])
    names = sorted(last, key=lambda name: last[name])[:MOST_LINES]
    lines = [
        Line(
            name,
            run.evaluations.steps,
            np.array([_per_class(row).get(name, np.nan) for row in run.evaluations.rows]),
            f"s{index}",
        )
        for index, name in enumerate(names)
    ]
    sentence = "" if len(last) <= MOST_LINES else f"The {MOST_LINES} weakest of {len(last)} classes."
    axes = Axes("step", "COCO AP50", y_range=(0, 1))
    return "By class", line_chart("COCO AP50 by step and class", lines, axes), sentence


def _per_class(row: dict) -> dict[str, float]:
    """AP50 of the classes that have one."""
    found = row.get("per_class")
    values = found.items() if isinstance(found, dict) else ()
    pairs = ((name, part.get("coco/AP50") if isinstance(part, dict) else None) for name, part in values)
    return {name: float(value) for name, value in pairs if isinstance(value, int | float)}


def compare_charts(runs: Sequence[RunFacts], names: Sequence[str]) -> list[Tile]:
    """The same quantities of several runs, each in its own colour."""

    def overlay(title: str, unit: str, kind: str, column: str, sentence: str = "", **options) -> Tile:
        rows = [run.train if kind == "train" else run.evaluations for run in runs]
        lines = [
            Line(name, part.steps, part.column(column), f"s{index % 7}")
            for index, (name, part) in enumerate(zip(names, rows, strict=True))
            if part.rows
        ]
        if options.pop("robust", False):
            options["y_range"] = _robust_range([line.y for line in lines])
        return title, line_chart(f"{title} by step", lines, Axes("step", unit, **options)), sentence

    return [
        overlay("COCO AP", "IoU 0.50:0.95", "eval", "coco/AP"),
        overlay("COCO AP50", "IoU 0.50", "eval", "coco/AP50"),
        overlay(
            "Loss", "total loss", "train", "loss", "Comparable where normalizer and batch are the same.", robust=True
        ),
        overlay("Loss of classes", "loss/cls", "train", "loss/cls", robust=True),
        overlay("Loss of places", "loss/loc", "train", "loss/loc", robust=True),
        overlay("Learning rate", "learning rate", "train", "lr"),
        overlay("Speed", "images a second", "train", "images_per_second"),
        overlay("Waiting for data", "share of the time", "train", "data_wait", percent=True),
    ]


def _scale_chart(run: RunFacts) -> Tile:
    scale = run.train.column("loss_scale")
    skipped = int(np.nan_to_num(run.train.column("skipped_steps")).max(initial=0))
    constant = len(np.unique(scale[np.isfinite(scale)])) <= 1
    sentence = (
        f"Constant: without float16 nothing needs to be scaled. {skipped} steps were skipped."
        if constant
        else f"Halved at each overflow, whose step is skipped on all replicas: {skipped} steps so far."
    )
    log = bool(np.nanmin(scale) > 0) and not constant if np.isfinite(scale).any() else False
    return "Loss scale", _chart(run, ("loss_scale",), ("",), "factor", log=log), sentence


def _chart(
    run: RunFacts, columns: Sequence[str], names: Sequence[str], unit: str, robust: bool = False, **options
) -> Markup:
    values = [run.train.column(column) for column in columns]
    if robust:
        options["y_range"] = _robust_range(values)
    lines = [
        Line(name, run.train.steps, y, f"s{index}") for index, (name, y) in enumerate(zip(names, values, strict=True))
    ]
    return line_chart(f"{', '.join(columns)} by step", lines, Axes("step", unit, **options))


def _robust_range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """From 0 to where nearly all values lie: a loss begins an order of magnitude above where it is interesting."""
    finite: Callable[[np.ndarray], np.ndarray] = lambda part: part[np.isfinite(part)]  # noqa: E731
    tops = [float(np.quantile(finite(part), 0.97)) for part in values if finite(part).size]
    return 0.0, 1.15 * max(tops, default=1.0) or 1.0
