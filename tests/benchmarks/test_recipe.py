"""The study of the recipe: every variant is a config, no two runs are taken for one, the table is what was measured."""

import dataclasses
import statistics

import pytest

from benchmarks.recipe.__main__ import Run
from benchmarks.recipe.table import print_table
from benchmarks.recipe.variants import BASE, DATA_SETS, ONE_CHANGE, SEEDS
from ssd_dist.core.config_files import load_config

RUNS = [Run(data_set, variant, seed) for data_set in DATA_SETS for variant in data_set.variants for seed in SEEDS]


@pytest.mark.parametrize("run", RUNS[:: len(SEEDS)], ids=lambda run: f"{run.data_set.name}, {run.variant.name}")
def test_every_variant_changes_a_valid_config(run):
    plain = load_config(run.config)
    changed = load_config(run.config, [*run.variant.prepare, *run.variant.overrides])
    assert (changed == plain) == (run.variant == BASE or run.variant.fit_anchors)


def test_no_two_runs_are_taken_for_one():
    assert len({run.settings for run in RUNS}) == len(RUNS)
    renamed = dataclasses.replace(RUNS[0], variant=dataclasses.replace(RUNS[0].variant, name="another name"))
    assert renamed.settings == RUNS[0].settings


def test_the_table_holds_mean_spread_and_gain(capsys):
    scores = {BASE.name: (0.51, 0.49, 0.53), ONE_CHANGE[1].name: (0.56, 0.55, 0.6)}
    print_table([
        {"data_set": "bccd", "variant": name, "AP50": 0.9, "AP": score}
        for name, values in scores.items() for score in values
    ])  # fmt: skip
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 2
    for row, (name, values) in zip(rows, scores.items(), strict=True):
        gain = statistics.mean(values) - statistics.mean(scores[BASE.name])
        for part in (name, f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}",
                     f"{100 * gain:+.1f}", "90.0 ± 0.0", "| 3 |"):  # fmt: skip
            assert part in row
