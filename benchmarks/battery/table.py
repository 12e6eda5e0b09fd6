"""Prints the table of the battery: a row for each variant with its cost, a column for each dataset, and the mean."""

import statistics
from collections.abc import Sequence

from benchmarks.battery.folders import SETS, SMALL_SETS


def print_table(results: Sequence[dict], protocol: str, budget: str) -> None:
    """Prints a Markdown table of the mean AP over the seeds, in points of 100."""
    own = [result for result in results if (result["protocol"], result["budget"]) == (protocol, budget)]
    columns = [*SETS, *(name for name in SMALL_SETS if any(result["dataset"] == name for result in own))]
    print(f"\nAP, {protocol}, {budget}:\n")
    print(f"| variant | million multiply-adds | {' | '.join(columns)} | mean of {len(SETS)} | runs |")
    print("|" + "---|" * (len(columns) + 4))
    for variant in dict.fromkeys(result["variant"] for result in own):
        runs = [result for result in own if result["variant"] == variant]
        values = [[run["AP"] for run in runs if run["dataset"] == name] for name in columns]
        means = [100 * statistics.mean(each) if each else None for each in values]
        cells = ["" if mean is None else f"{mean:.1f}" for mean in means]
        # Means over different datasets cannot be compared.
        battery = [each for each in means[: len(SETS)] if each is not None]
        mean = f"{statistics.mean(battery):.1f}" if len(battery) == len(SETS) else ""
        print(f"| {variant} | {describe_cost(runs)} | {' | '.join(cells)} | {mean} | {len(runs)} |")


def describe_cost(runs: Sequence[dict]) -> str:
    """Returns the millions of multiply-adds of the networks: one number, or the smallest and the largest.

    >>> describe_cost([{"multiply_adds": 812345678}, {"multiply_adds": 1412345678}, {"AP": 0.5}])
    '812 to 1412'
    """
    costs = sorted({round(run["multiply_adds"] / 1e6) for run in runs if "multiply_adds" in run})
    return " to ".join(str(cost) for cost in dict.fromkeys((costs[0], costs[-1]))) if costs else ""
