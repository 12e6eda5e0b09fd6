"""Builds the report of a run, or of several runs compared: training curves, metrics, errors and images.

RUN -> facts (run_facts) -> evaluation, galleries (run_evaluation) -> charts, tables -> one HTML file

The report can also be built for a run that is unfinished or whose data is missing: notes replace the parts that need
them.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config, flatten_config
from ssd_dist.core.errors import SsdDistError
from ssd_dist.core.stage_line import SILENT, StageLine
from ssd_dist.evaluation.analysis import RECALLS, Analysis, interpolate_precision
from ssd_dist.evaluation.error_types import KINDS, NAMES
from ssd_dist.evaluation.metrics_table import describe_split
from ssd_dist.evaluation.visualization import class_color
from ssd_dist.report.charts import Axes, Line, Mark, draw_calibration_chart, draw_line_chart
from ssd_dist.report.html_page import SHOWN_CLASSES, render_page, write_page
from ssd_dist.report.run_charts import METRIC_NAMES, draw_comparison_charts, draw_metric_charts, draw_training_charts
from ssd_dist.report.run_evaluation import (
    Evaluation,
    choose_checkpoint,
    choose_split,
    draw_first_batch,
    draw_galleries,
    draw_mined,
    evaluate_run,
)
from ssd_dist.report.run_facts import RunFacts, read_run
from ssd_dist.report.svg import format_number

# Classes with a precision-recall curve, and classes in the confusion matrix.
MAX_CURVES, MAX_CONFUSED = 24, 18
# The note on a comparison whose metrics do not belong together.
DIFFERENT_IMAGES = "The runs were evaluated on different images or classes, so their metrics cannot be compared."
ERROR_DESCRIPTIONS = {
    "localisation": "correct class, but IoU between 0.1 and 0.5",
    "class": "IoU of at least 0.5 with an object of another class",
    "both": "IoU between 0.1 and 0.5 with an object of another class",
    "duplicate": "the object is already detected with a higher score",
    "background": "IoU below 0.1 with every object",
    "missed": "object without a true positive and without a localization or class error",
}
T = TypeVar("T")


def build_run_page(
    model_dirs: Sequence[str],
    output: str,
    checkpoint: str,
    split: str,
    overrides: Sequence[str],
    stages: StageLine = SILENT,
) -> list[Evaluation | None]:
    """Writes the report of one run, or the comparison of several runs.

    Args:
      model_dirs: folders of the runs.
      output: HTML file to write.
      checkpoint: `best`, `last`, a path, or `auto` (`best` if it exists, else `last`).
      split: name of the split to evaluate, or `auto` (the split that training evaluates on).
      overrides: `a.b=c` overrides of the configs.
      stages: shows the progress.

    Returns:
      The evaluation of each run; None where it failed.

    Raises:
      CheckpointError: if a folder is not a run, or a checkpoint other than `auto` does not exist.
      DataError: if a split other than `auto` cannot be evaluated.
      UsageError: if an override is not valid, or the file cannot be written.
    """
    runs = [read_run(model_dir, list(overrides)) for model_dir in model_dirs]
    evaluations = [_evaluate(run, checkpoint, split, overrides, stages) for run in runs]
    stages.show("write the report")
    if len(runs) == 1:
        write_page(output, render_run_page(runs[0], evaluations[0]))
    else:
        write_page(output, render_comparison(runs, evaluations))
    return evaluations


def render_run_page(run: RunFacts, evaluation: Evaluation | None) -> str:
    """Renders the report of one run as HTML."""
    mined, galleries = [], []
    if evaluation is not None:
        galleries = _try_section(run, "Images with detections", lambda: draw_galleries(evaluation)) or []
        mined = (
            _try_section(
                run,
                "Mined negatives",
                lambda: draw_mined(run.model_dir, evaluation.checkpoint, run.config, run.manifest),
            )
            or []
        )
    curves = _draw_precision_recall_curves(evaluation) if evaluation else []
    batch = _try_section(run, "First training batch", lambda: draw_first_batch(run.config, run.manifest)) or []
    return render_page(
        "run.html",
        title=run.model_dir,
        run=run,
        headline=_build_headline(run, evaluation),
        metrics=draw_metric_charts(run),
        training=draw_training_charts(run),
        evaluation=evaluation,
        totals=_group_metrics(evaluation),
        class_rows=_build_class_rows(evaluation) if evaluation else [],
        shown_classes=SHOWN_CLASSES,
        curves=curves,
        hidden_curves=len(evaluation.classes) - len(curves) if evaluation else 0,
        confusion=_build_confusion_matrix(evaluation.analysis) if evaluation else None,
        calibration=_draw_calibration(evaluation.analysis) if evaluation else None,
        errors=_build_error_rows(evaluation.analysis) if evaluation else [],
        galleries=galleries,
        mined=mined,
        batch=batch,
        changed=find_changed_keys(run.config),
        config=dump_config(run.config),
        notes=run.notes,
    )


def render_comparison(runs: Sequence[RunFacts], evaluations: Sequence[Evaluation | None]) -> str:
    """Renders the comparison of several runs as HTML."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [run.model_dir for run in runs]
    leaves = [flatten_config(run.config) for run in runs]
    keys = [key for key in leaves[0] if len({str(leaf[key]) for leaf in leaves}) > 1]
    known = [evaluation for evaluation in evaluations if evaluation is not None]
    return render_page(
        "compare.html",
        title=f"{len(runs)} runs",
        runs=list(zip(names, runs, strict=True)),
        notes=[
            *(() if have_same_ground_truth(evaluations) else (DIFFERENT_IMAGES,)),
            *(f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes),
        ],
        charts=draw_comparison_charts(runs, names),
        mean_curve=_draw_mean_curves(names, evaluations) if known else None,
        table=compare_metrics(runs, evaluations),
        errors=[
            (NAMES.get(kind, kind), [None if e is None else e.analysis.errors.gains[kind] for e in evaluations])
            for kind in KINDS
        ]
        if known
        else [],
        differences=[(key, [leaf[key] for leaf in leaves]) for key in keys],
    )


def find_changed_keys(config: Config) -> list[tuple[str, Any, Any]]:
    """Returns (key, value, default) of each key that differs from the defaults."""
    defaults = flatten_config(Config())
    return [(key, value, defaults[key]) for key, value in flatten_config(config).items() if value != defaults[key]]


def _evaluate(
    run: RunFacts, checkpoint: str, split: str, overrides: Sequence[str], stages: StageLine
) -> Evaluation | None:
    """Evaluates a run; with `auto` for checkpoint and split, a failure becomes a note of the report."""

    def evaluate() -> Evaluation:
        selected = choose_checkpoint(run.model_dir, checkpoint)
        evaluated = choose_split(run.config.data, run.config.eval.split, split)
        return evaluate_run(run.model_dir, selected, evaluated, overrides, stages)

    explicit = (checkpoint, split) != ("auto", "auto")
    return evaluate() if explicit else _try_section(run, "Evaluation", evaluate)


def _try_section(run: RunFacts, title: str, build: Callable[[], T]) -> T | None:
    """Builds a section; if an error prevents it, adds a note to the run and returns None."""
    try:
        return build()
    except SsdDistError as error:
        run.notes.append(f"{title}: not available. {error}.")
        return None


def _build_headline(run: RunFacts, evaluation: Evaluation | None) -> list[tuple[str, str]]:
    """Returns the (label, value) pairs at the top of the report."""
    numbers = []
    if run.best is not None:
        metric = METRIC_NAMES.get(run.best["metric"], run.best["metric"])
        numbers.append((f"best {metric}, at step {run.best['step']:,}", f"{run.best['value']:.3f}"))
    if evaluation is not None:
        value = evaluation.metrics.scalars["coco/AP50"]
        numbers.append(("COCO AP50", "–" if value is None else f"{value:.3f}"))
    if run.train.rows:
        numbers.append(("last loss", format_number(run.train.column("loss")[-1])))
        numbers.append(("images per second, median", f"{np.nanmedian(run.train.column('images_per_second')):,.0f}"))
    numbers.append((f"steps trained, of {run.total_steps:,}", f"{run.last_step:,}"))
    return numbers


def _group_metrics(evaluation: Evaluation | None) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """Returns the metrics over all classes as (group, (name, value) pairs)."""
    if evaluation is None:
        return []
    values = evaluation.metrics.scalars
    voc07, voc = values["voc07/mAP"], values["voc/mAP"]
    return [
        ("COCO", [("AP", values["coco/AP"]), ("AP50", values["coco/AP50"]), ("AP75", values["coco/AP75"])]),
        ("COCO AP by size", [(f"AP {size}", values[f"coco/AP_{size}"]) for size in ("small", "medium", "large")]),
        ("Recall", [(f"AR{count}", values[f"coco/AR{count}"]) for count in (1, 10, 100)]),
        ("VOC, IoU 0.50 without + 1 pixel", [("mAP, 11 points (2007)", voc07), ("mAP, area", voc)]),
    ]


def _build_class_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns the rows of the class table, in order of decreasing AP50."""
    per_class = evaluation.metrics.per_class
    points = evaluation.analysis.points
    rows = [
        {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*class_color(index + 1)),
            "objects": per_class[name]["objects"],
            "ap": per_class[name]["coco/AP"],
            "ap50": per_class[name]["coco/AP50"],
            "point": point,
        }
        for index, (name, point) in enumerate(zip(evaluation.classes, points, strict=True))
    ]
    return sorted(rows, key=lambda row: 1.0 if row["ap50"] is None else -row["ap50"])


def _draw_precision_recall_curves(evaluation: Evaluation) -> list[tuple[str, Markup, str]]:
    """Draws the precision-recall curve of each class with an AP of at least 0.01, in order of decreasing objects."""
    analysis = evaluation.analysis
    tiles = []
    shown = [index for index in _sort_classes_by_objects(analysis) if (analysis.curves[index].ap or 0) >= 0.01]
    for index in shown[:MAX_CURVES]:
        curve, point = analysis.curves[index], analysis.points[index]
        marks = []
        if point.f1 is not None:
            marks = [Mark(point.recall or 0, point.precision or 0, f"{point.threshold:.3f}", right=True)]
        unit = (0.0, 1.0)
        axes = Axes("recall", "precision", unit, unit, width=252, height=200)
        # The curve starts at recall 0 with the precision of the first detection.
        line = Line("", np.append(0.0, curve.recall), np.append(curve.precision[:1], curve.precision))
        name = evaluation.classes[index]
        drawing = draw_line_chart(f"precision-recall curve of {name}", [line], axes, marks)
        tiles.append((name, drawing, f"AP {curve.ap or 0:.3f}, {curve.objects:,} objects"))
    return tiles


def _sort_classes_by_objects(analysis: Analysis) -> list[int]:
    """Returns the class indices in order of decreasing number of objects."""
    return np.argsort(-analysis.matches.count_objects(), kind="stable").tolist()


def _build_confusion_matrix(analysis: Analysis) -> dict[str, Any]:
    """Returns the confusion matrix of the classes with most confusions; a cell is (count, share of the row, style)."""
    matrix, classes = analysis.confusion, analysis.matches.classes
    off = matrix - np.diag(np.diag(matrix))
    weight = (off.sum(axis=0) + off.sum(axis=1))[:-1]
    selected = sorted(np.argsort(-weight, kind="stable")[:MAX_CONFUSED].tolist())
    last = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    rows = []
    for row in [*selected, last]:
        cells: list[tuple[int | None, float, str]] = []
        for column in [*selected, last]:
            style = "none" if not matrix[row, column] else "correct" if row == column else "error"
            cells.append((int(matrix[row, column]), float(shares[row, column]), style))
        # True negatives are not counted.
        if row == last:
            cells[-1] = (None, 0.0, "none")
        rows.append(("background" if row == last else classes[row], cells))
    return {
        "columns": [*(classes[column] for column in selected), "missed"],
        "rows": rows,
        "hidden": len(classes) - len(selected),
    }


def _draw_calibration(analysis: Analysis) -> tuple[Markup, float | None]:
    """Returns the calibration chart and the expected calibration error."""
    found = analysis.calibration
    return draw_calibration_chart("precision by score", found.scores, found.precisions, found.counts), found.error


def _build_error_rows(analysis: Analysis) -> list[tuple[str, str, int, float, float]]:
    """Returns (name, description, count, mAP gain, gain divided by the largest gain) for each type of error."""
    errors = analysis.errors
    largest = max(*errors.gains.values(), 1e-9)
    return [
        (
            NAMES.get(kind, kind),
            ERROR_DESCRIPTIONS[kind],
            errors.counts[kind],
            errors.gains[kind],
            max(errors.gains[kind], 0.0) / largest,
        )
        for kind in KINDS
    ]


def compare_metrics(
    runs: Sequence[RunFacts], evaluations: Sequence[Evaluation | None]
) -> list[tuple[str, list[str], list[int]]]:
    """Returns (name, one cell per run, indices of the best runs) for each row.

    No run is the best if all are equal, or if the runs were evaluated on different images or classes.
    """
    comparable = have_same_ground_truth(evaluations)
    rows: list[tuple[str, list[str], list[int]]] = [
        (
            "evaluated",
            ["–" if e is None else f"{e.checkpoint} on {describe_split(e.split_name)}" for e in evaluations],
            [],
        ),
        ("steps trained", [f"{run.last_step:,} of {run.total_steps:,}" for run in runs], []),
        ("best step", ["–" if run.best is None else f"{run.best['step']:,}" for run in runs], []),
    ]
    labels = {**METRIC_NAMES, **{f"coco/AP_{size}": f"COCO AP, {size}" for size in ("small", "medium", "large")}}
    for key, name in labels.items():
        values = [None if e is None else e.metrics.scalars[key] for e in evaluations]
        known = [value for value in values if value is not None]
        best = [index for index, value in enumerate(values) if len(set(known)) > 1 and value == max(known)]
        best = best if comparable else []
        rows.append((name, ["–" if value is None else f"{value:.3f}" for value in values], best))
    errors = ["–" if e is None or e.analysis.calibration.error is None else f"{e.analysis.calibration.error:.3f}"
              for e in evaluations]  # fmt: skip
    rows.append(("expected calibration error", errors, []))
    speeds = [f"{np.nanmedian(run.train.column('images_per_second')):,.0f}" if run.train.rows else "–" for run in runs]
    rows.append(("images per second, median", speeds, []))
    return rows


def have_same_ground_truth(evaluations: Sequence[Evaluation | None]) -> bool:
    """Returns whether all evaluations are of the same images with the same objects, so that metrics can be compared."""
    known = [evaluation for evaluation in evaluations if evaluation is not None]
    contents = [
        (e.classes, sorted((image.source_id, *sorted(image.objects.labels.tolist())) for image in e.ground_truths))
        for e in known
    ]
    return all(content == contents[0] for content in contents)


def _draw_mean_curves(names: Sequence[str], evaluations: Sequence[Evaluation | None]) -> Markup:
    """Draws the precision-recall curve of each run, averaged over the classes."""
    lines = []
    for index, (name, evaluation) in enumerate(zip(names, evaluations, strict=True)):
        if evaluation is None:
            continue
        interpolated = [interpolate_precision(curve) for curve in evaluation.analysis.curves]
        curves = [values for values in interpolated if values is not None]
        if curves:
            lines.append(Line(name, RECALLS, np.mean(curves, axis=0), f"s{index % 7}"))
    axes = Axes("recall", "precision", x_range=(0.0, 1.0), y_range=(0.0, 1.0))
    return draw_line_chart("precision-recall curve, mean over the classes", lines, axes)
