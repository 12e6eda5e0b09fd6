"""The study's table: mean and spread over the seeds, beside the recipe as it is."""

import math
import statistics
from collections.abc import Sequence

from benchmarks.recipe.variants import BASE, DATA_SETS, DataSet


def print_table(results: Sequence[dict]) -> None:
    """Prints Markdown: a table for each data set, a row for each variant."""
    for data_set in DATA_SETS:
        own = [result for result in results if result["data_set"] == data_set.name]
        if own:
            _print_data_set(data_set, own)


def _print_data_set(data_set: DataSet, results: Sequence[dict]) -> None:
    found = {
        variant.name: [_figures(result, data_set.focus) for result in results if result["variant"] == variant.name]
        for variant in data_set.variants
    }
    names = list(_figures(results[0], data_set.focus))
    judge = names[0] if data_set.focus else "AP"
    columns = ("variant", *names, f"{judge} against the recipe", "runs")
    print(f"\n{data_set.name}:\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    base = [row[judge] for row in found[BASE.name]]
    for name, rows in found.items():
        if rows:
            spreads = [_spread([row[key] for row in rows]) for key in names]
            gain = _gain([row[judge] for row in rows], base) if base and name != BASE.name else ""
            print(f"| {' | '.join([name, *spreads, gain, str(len(rows))])} |")


def _figures(result: dict, focus: str) -> dict[str, float]:
    """The columns of a run."""
    own = {f"AP50 of {focus}": result["classes"][focus]} if focus else {}
    return own | {key: result[key] for key in ("AP50", "AP")}


def _spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, in points (of 100)."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _gain(values: Sequence[float], base: Sequence[float]) -> str:
    """Difference of the means and, where both have several seeds, its standard error, in points (of 100)."""
    gain = f"{100 * (statistics.mean(values) - statistics.mean(base)):+.1f}"
    if min(len(values), len(base)) < 2:
        return gain
    return f"{gain} ± {100 * math.sqrt(sum(statistics.variance(each) / len(each) for each in (values, base))):.1f}"
