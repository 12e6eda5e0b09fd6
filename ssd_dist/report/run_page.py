"""The page of a run, or of several side by side: how it learnt, what it gets wrong, on which pictures.

RUN -> facts (run_facts) -> evaluation, galleries (run_evaluation) -> charts, tables -> one HTML file

A run that is unfinished, or whose data is gone, has a page too: each part that cannot be made becomes a note.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config, flatten_config
from ssd_dist.core.errors import SsdDistError
from ssd_dist.evaluation.analysis import RECALLS, Analysis, interpolate_precision
from ssd_dist.evaluation.error_types import KINDS
from ssd_dist.evaluation.visualization import class_color
from ssd_dist.report.charts import Axes, Line, Mark, line_chart, reliability_chart
from ssd_dist.report.html_page import SHOWN_CLASSES, render_page, write_page
from ssd_dist.report.run_charts import METRIC_NAMES, compare_charts, metric_charts, training_charts
from ssd_dist.report.run_evaluation import (
    Evaluation,
    choose_checkpoint,
    draw_first_batch,
    draw_galleries,
    draw_mined,
    evaluate_run,
)
from ssd_dist.report.run_facts import RunFacts, read_run
from ssd_dist.report.svg import format_number

MOST_CURVES = 24
MOST_CONFUSED = 18
KIND_TEXTS = {
    "localisation": "right class, IoU between 0.1 and 0.5",
    "class": "right place, another class",
    "both": "near an object of another class",
    "duplicate": "a better detection has the object",
    "background": "nothing is there",
    "missed": "object that no detection comes near",
}
T = TypeVar("T")


def build_run_page(
    model_dirs: Sequence[str], output: str, checkpoint: str, split: str, overrides: Sequence[str]
) -> None:
    """Writes the page of one run, or the comparison of several.

    Raises:
      CheckpointError: if a folder is no run. UsageError: for a wrong override, or a page that cannot be written.
      DataError, CheckpointError: if a checkpoint or split other than `auto` cannot be evaluated.
    """
    runs = [read_run(model_dir, list(overrides)) for model_dir in model_dirs]
    evaluations = [_evaluate(run, checkpoint, split, overrides) for run in runs]
    if len(runs) == 1:
        write_page(output, render_run_page(runs[0], evaluations[0]))
    else:
        write_page(output, render_comparison(runs, evaluations))


def render_run_page(run: RunFacts, evaluation: Evaluation | None) -> str:
    """The page of one run as HTML."""
    mined, galleries = [], []
    if evaluation is not None:
        galleries = _attempt(run, "Galleries", lambda: draw_galleries(evaluation)) or []
        mined = (
            _attempt(
                run,
                "Anchors on pictures",
                lambda: draw_mined(run.model_dir, evaluation.checkpoint, run.config, run.manifest),
            )
            or []
        )
    curves = _pr_charts(evaluation) if evaluation else []
    batch = _attempt(run, "The first training batch", lambda: draw_first_batch(run.config, run.manifest)) or []
    return render_page(
        "run.html",
        title=run.model_dir,
        run=run,
        headline=_headline(run, evaluation),
        metrics=metric_charts(run),
        training=training_charts(run),
        evaluation=evaluation,
        totals=_totals(evaluation),
        class_rows=_class_rows(evaluation) if evaluation else [],
        shown_classes=SHOWN_CLASSES,
        curves=curves,
        hidden_curves=len(evaluation.classes) - len(curves) if evaluation else 0,
        confusion=_confusion_rows(evaluation.analysis) if evaluation else None,
        calibration=_calibration(evaluation.analysis) if evaluation else None,
        errors=_error_rows(evaluation.analysis) if evaluation else [],
        galleries=galleries,
        mined=mined,
        batch=batch,
        changed=changed_keys(run.config),
        config=dump_config(run.config),
        notes=run.notes,
    )


def render_comparison(runs: Sequence[RunFacts], evaluations: Sequence[Evaluation | None]) -> str:
    """The page of several runs as HTML."""
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
        notes=[f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes],
        charts=compare_charts(runs, names),
        mean_curve=_mean_curves(names, evaluations) if known else None,
        table=_compare_metrics(runs, evaluations),
        errors=[(kind, [None if e is None else e.analysis.errors.gains[kind] for e in evaluations]) for kind in KINDS]
        if known
        else [],
        differences=[(key, [leaf[key] for leaf in leaves]) for key in keys],
    )


def changed_keys(config: Config) -> list[tuple[str, Any, Any]]:
    """(key, value, default) of what the run's config says otherwise than the defaults."""
    defaults = flatten_config(Config())
    return [(key, value, defaults[key]) for key, value in flatten_config(config).items() if value != defaults[key]]


def _evaluate(run: RunFacts, checkpoint: str, split: str, overrides: Sequence[str]) -> Evaluation | None:
    def evaluate() -> Evaluation:
        chosen = choose_checkpoint(run.model_dir, checkpoint)
        return evaluate_run(run.model_dir, chosen, run.config, split, overrides)

    # What is asked for by name must be there.
    named = (checkpoint, split) != ("auto", "auto")
    return evaluate() if named else _attempt(run, "Evaluation", evaluate)


def _attempt(run: RunFacts, what: str, make: Callable[[], T]) -> T | None:
    """What `make` makes; None, and a note, where something the user can mend stands in the way."""
    try:
        return make()
    except SsdDistError as error:
        run.notes.append(f"{what}: not here. {error}.")
        return None


def _headline(run: RunFacts, evaluation: Evaluation | None) -> list[tuple[str, str]]:
    numbers = []
    if run.best is not None:
        metric = METRIC_NAMES.get(run.best["metric"], run.best["metric"])
        numbers.append((f"best {metric}, step {run.best['step']:,}", f"{run.best['value']:.3f}"))
    if evaluation is not None:
        value = evaluation.metrics.scalars["coco/AP50"]
        numbers.append(("COCO AP50", "–" if value is None else f"{value:.3f}"))
    if run.train.rows:
        numbers.append(("last loss", format_number(run.train.column("loss")[-1])))
        numbers.append(("images a second, median", f"{np.nanmedian(run.train.column('images_per_second')):,.0f}"))
    numbers.append((f"of {run.total_steps:,} steps", f"{run.last_step:,}"))
    return numbers


def _totals(evaluation: Evaluation | None) -> list[tuple[str, list[tuple[str, float | None]]]]:
    if evaluation is None:
        return []
    values = evaluation.metrics.scalars
    return [
        ("COCO", [("AP", values["coco/AP"]), ("AP50", values["coco/AP50"]), ("AP75", values["coco/AP75"])]),
        ("By size", [(f"AP {size}", values[f"coco/AP_{size}"]) for size in ("small", "medium", "large")]),
        ("Recall", [(f"AR{count}", values[f"coco/AR{count}"]) for count in (1, 10, 100)]),
        ("VOC, IoU 0.50", [("mAP 2007, 11 points", values["voc07/mAP"]), ("mAP, area", values["voc/mAP"])]),
    ]


def _class_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
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


def _pr_charts(evaluation: Evaluation) -> list[tuple[str, Markup, str]]:
    """One tile a class, those with most objects first; a class that is hardly ever found has nothing to show."""
    analysis = evaluation.analysis
    tiles = []
    for index in [index for index in _by_objects(analysis) if (analysis.curves[index].ap or 0) >= 0.01][:MOST_CURVES]:
        curve, point = analysis.curves[index], analysis.points[index]
        marks = []
        if point.f1 is not None:
            marks = [Mark(point.recall or 0, point.precision or 0, f"{point.threshold:.3f}", right=True)]
        unit = (0.0, 1.0)
        axes = Axes("recall", "precision", unit, unit, width=252, height=200)
        # From the start at full precision: the first detection may be a miss.
        line = Line("", np.append(0.0, curve.recall), np.append(curve.precision[:1], curve.precision))
        name = evaluation.classes[index]
        drawing = line_chart(f"precision by recall of {name}", [line], axes, marks)
        tiles.append((name, drawing, f"AP {curve.ap or 0:.3f}, {curve.objects:,} objects"))
    return tiles


def _by_objects(analysis: Analysis) -> list[int]:
    return np.argsort(-analysis.matches.count_objects(), kind="stable").tolist()


def _confusion_rows(analysis: Analysis) -> dict[str, Any]:
    """Names and cells (count, share of the row, kind) of the classes that are most confused with others."""
    matrix, classes = analysis.confusion, analysis.matches.classes
    off = matrix - np.diag(np.diag(matrix))
    weight = (off.sum(axis=0) + off.sum(axis=1))[:-1]
    chosen = sorted(np.argsort(-weight, kind="stable")[:MOST_CONFUSED].tolist())
    last = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    rows = []
    for row in [*chosen, last]:
        cells = []
        for column in [*chosen, last]:
            kind = "right" if row == column else "off"
            cells.append(
                (int(matrix[row, column]), float(shares[row, column]), kind if matrix[row, column] else "none")
            )
        # Nothing there and nothing found is not counted.
        if row == last:
            cells[-1] = (None, 0.0, "none")
        rows.append(("background" if row == last else classes[row], cells))
    return {
        "columns": [*(classes[column] for column in chosen), "missed"],
        "rows": rows,
        "hidden": len(classes) - len(chosen),
    }


def _calibration(analysis: Analysis) -> tuple[Markup, float | None]:
    found = analysis.calibration
    return reliability_chart("hit rate by score", found.scores, found.hit_rates, found.counts), found.error


def _error_rows(analysis: Analysis) -> list[tuple[str, str, int, float, float]]:
    """(kind, meaning, count, gain, gain as a share of the largest)."""
    errors = analysis.errors
    largest = max(*errors.gains.values(), 1e-9)
    return [
        (kind, KIND_TEXTS[kind], errors.counts[kind], errors.gains[kind], max(errors.gains[kind], 0.0) / largest)
        for kind in KINDS
    ]


def _compare_metrics(
    runs: Sequence[RunFacts], evaluations: Sequence[Evaluation | None]
) -> list[tuple[str, list[str], list[int]]]:
    """(name, a cell for each run, the indices of the best if there are better and worse)."""
    rows: list[tuple[str, list[str], list[int]]] = [
        ("evaluated", ["–" if e is None else f"{e.checkpoint} on {e.split_name}" for e in evaluations], []),
        ("steps", [f"{run.last_step:,} of {run.total_steps:,}" for run in runs], []),
        ("best step", ["–" if run.best is None else f"{run.best['step']:,}" for run in runs], []),
    ]
    wanted = {**METRIC_NAMES, **{f"coco/AP_{size}": f"COCO AP, {size}" for size in ("small", "medium", "large")}}
    for key, name in wanted.items():
        values = [None if e is None else e.metrics.scalars[key] for e in evaluations]
        known = [value for value in values if value is not None]
        best = [index for index, value in enumerate(values) if len(set(known)) > 1 and value == max(known)]
        rows.append((name, ["–" if value is None else f"{value:.3f}" for value in values], best))
    errors = ["–" if e is None or e.analysis.calibration.error is None else f"{e.analysis.calibration.error:.3f}"
              for e in evaluations]  # fmt: skip
    rows.append(("calibration error", errors, []))
    speeds = [f"{np.nanmedian(run.train.column('images_per_second')):,.0f}" if run.train.rows else "–" for run in runs]
    rows.append(("images a second, median", speeds, []))
    return rows


def _mean_curves(names: Sequence[str], evaluations: Sequence[Evaluation | None]) -> Markup:
    lines = []
    for index, (name, evaluation) in enumerate(zip(names, evaluations, strict=True)):
        if evaluation is None:
            continue
        curves = [interpolate_precision(curve) for curve in evaluation.analysis.curves if curve.objects]
        if curves:
            lines.append(Line(name, RECALLS, np.mean(curves, axis=0), f"s{index % 7}"))
    unit = (0.0, 1.0)
    return line_chart("precision by recall, mean of the classes", lines, Axes("recall", "precision", unit, unit))
