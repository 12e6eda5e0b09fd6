"""Prints the tables of the study: mean and standard deviation over the seeds, and the gain over the plain recipe."""

import math
import statistics
from collections.abc import Sequence

from benchmarks.recipe.variants import BASE, DATASETS, Dataset


def print_table(results: Sequence[dict]) -> None:
    """Prints a Markdown table for each dataset, with a row for each variant."""
    for dataset in DATASETS:
        own = [result for result in results if result["data_set"] == dataset.name]
        if own:
            _print_dataset(dataset, own)


def _print_dataset(dataset: Dataset, results: Sequence[dict]) -> None:
    by_variant = {
        variant.name: [
            _select_metrics(result, dataset.focus) for result in results if result["variant"] == variant.name
        ]
        for variant in dataset.variants
    }
    names = list(_select_metrics(results[0], dataset.focus))
    metric = names[0] if dataset.focus else "AP"
    columns = ("variant", *names, f"{metric} against the recipe", "runs")
    print(f"\n{dataset.name}:\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    base = [row[metric] for row in by_variant[BASE.name]]
    for name, rows in by_variant.items():
        if rows:
            spreads = [_format_spread([row[key] for row in rows]) for key in names]
            gain = _format_gain([row[metric] for row in rows], base) if base and name != BASE.name else ""
            print(f"| {' | '.join([name, *spreads, gain, str(len(rows))])} |")


def _select_metrics(result: dict, focus: str) -> dict[str, float]:
    """Returns the metrics of a run, by column."""
    own = {f"AP50 of {focus}": result["classes"][focus]} if focus else {}
    return own | {key: result[key] for key in ("AP50", "AP")}


def _format_spread(values: Sequence[float]) -> str:
    """Formats mean and sample standard deviation, in points (of 100)."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _format_gain(values: Sequence[float], base: Sequence[float]) -> str:
    """Formats the difference of the means and, with several seeds, its standard error, in points (of 100)."""
    gain = f"{100 * (statistics.mean(values) - statistics.mean(base)):+.1f}"
    if min(len(values), len(base)) < 2:
        return gain
    return f"{gain} ± {100 * math.sqrt(sum(statistics.variance(each) / len(each) for each in (values, base))):.1f}"
