"""Draws the page of the battery: for each protocol and length of training, a row per variant, a column per dataset."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from benchmarks.battery.folders import SETS, SMALL_SETS
from benchmarks.battery.variants import AFTER, BEFORE
from ssd_dist.report.html_page import render_page, write_page
from ssd_dist.report.svg import Scale, Svg

STRIP_WIDTH, STRIP_HEIGHT, RADIUS = 84, 18, 4
STYLES = {BEFORE.name: "s6", AFTER.name: "s1"}
PROTOCOLS = {
    "dev": ("Validation splits", "Settings are chosen by these figures."),
    "test": ("Test splits", "Each run is evaluated once, at its end, after all settings were chosen."),
}

LENGTHS = {
    "minutes": "{} minutes per run",
    "steps": "the computation of {} steps at 300 pixels",
    "same_steps": "{} steps, whatever the input size",
}


def write_battery_page(results: Sequence[dict], path: Path) -> None:
    """Writes the page of all results to a self-contained HTML file."""
    write_page(str(path), render_battery_page(results))


def render_battery_page(results: Sequence[dict]) -> str:
    """Returns the page: a section for each protocol and budget, first the test splits, then the most runs.

    Args:
      results: rows of results.jsonl.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        groups.setdefault((result["protocol"], result["budget"]), []).append(result)
    order = sorted(groups, key=lambda group: (group[0] != "test", -len(groups[group])))
    return render_page(
        "battery.html",
        templates=Path(__file__).parent,
        title="Battery of datasets",
        before=BEFORE.name,
        after=AFTER.name,
        sections=[build_section(protocol, budget, groups[protocol, budget]) for protocol, budget in order],
        machines=sorted({result["machine"] for result in results}),
        commits=sorted({result["commit"] for result in results}),
    )


def build_section(protocol: str, budget: str, results: Sequence[dict]) -> dict:
    """Returns the values of a section of the page."""
    kind, amount = budget.split("=")
    length = LENGTHS[kind].format(amount)
    title, lead = PROTOCOLS[protocol]
    datasets = [name for name in (*SETS, *SMALL_SETS) if any(result["dataset"] == name for result in results)]
    tops = {name: max(result["AP"] for result in results if result["dataset"] == name) for name in datasets}
    rows = []
    for variant in dict.fromkeys(result["variant"] for result in results):
        cells = []
        for name in datasets:
            own = [result for result in results if (result["variant"], result["dataset"]) == (variant, name)]
            cells.append((draw_runs(own, tops[name]), statistics.mean(each["AP"] for each in own)) if own else None)
        rows.append((variant, cells))
    best = [max(cells[column][1] for _, cells in rows if cells[column]) for column in range(len(datasets))]
    return {
        "id": f"{protocol}-{kind}-{amount}",
        "title": f"{title}, {length}",
        "lead": lead,
        "datasets": [(name, f"{100 * tops[name]:.1f}") for name in datasets],
        "rows": rows,
        "best": best,
    }


def draw_runs(results: Sequence[dict], largest: float) -> Markup:
    """Draws the runs of a variant on a dataset as dots on a line from 0 to the largest AP of the dataset."""
    label = ", ".join(f"seed {each['seed']}: AP {100 * each['AP']:.1f}" for each in results)
    strip = Svg(STRIP_WIDTH, STRIP_HEIGHT, label)
    scale = Scale(0.0, max(largest, 0.01), RADIUS, STRIP_WIDTH - RADIUS)
    middle = STRIP_HEIGHT / 2
    strip.add("line", x1=RADIUS, x2=STRIP_WIDTH - RADIUS, y1=middle, y2=middle, class_="grid")
    for result in results:
        style = STYLES.get(result["variant"], "s0")
        tooltip = f"seed {result['seed']}: AP {100 * result['AP']:.1f}, {result['steps']} steps"
        strip.add(
            "circle", tooltip=tooltip, cx=scale(result["AP"]), cy=middle, r=RADIUS, class_=f"dot see-through {style}"
        )
    return strip.markup()
