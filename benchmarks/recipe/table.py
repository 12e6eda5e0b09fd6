"""The study's table: mean and spread over the seeds, beside the recipe as it is."""

import statistics
from collections.abc import Sequence

from benchmarks.recipe.variants import BASE, DATA_SETS


def print_table(results: Sequence[dict]) -> None:
    """Prints Markdown: a table for each data set, a row for each variant."""
    for data_set in DATA_SETS:
        own = [result for result in results if result["data_set"] == data_set.name]
        if not own:
            continue
        print(f"\n{data_set.name}:\n\n| variant | AP50 | AP | AP against the recipe | runs |\n|{'---|' * 5}")
        base = [result["AP"] for result in own if result["variant"] == BASE.name]
        for variant in data_set.variants:
            found = [result for result in own if result["variant"] == variant.name]
            if found:
                values = [_spread([result[key] for result in found]) for key in ("AP50", "AP")]
                gain = statistics.mean(result["AP"] for result in found) - statistics.mean(base)
                print(f"| {variant.name} | {' | '.join(values)} | {100 * gain:+.1f} | {len(found)} |")


def _spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, in points (of 100)."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"
