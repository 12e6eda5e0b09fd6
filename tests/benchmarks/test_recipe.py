"""The study of the recipe: variants are valid configs, runs have distinct settings, tables contain the results."""

import dataclasses

import pytest

from benchmarks.recipe.__main__ import RESULTS, Run, read_results
from benchmarks.recipe.table import print_table
from benchmarks.recipe.variants import BASE, DATASETS, SEEDS
from ssd_dist.core.config_files import load_config

RUNS = [Run(dataset, variant, seed) for dataset in DATASETS for variant in dataset.variants for seed in SEEDS]


@pytest.mark.parametrize("run", RUNS[:: len(SEEDS)], ids=lambda run: f"{run.dataset.name}, {run.variant.name}")
def test_every_variant_changes_a_valid_config(run):
    plain = load_config(run.config)
    changed = load_config(run.config, [*run.variant.prepare, *run.variant.overrides])
    assert (changed == plain) == (run.variant == BASE or run.variant.fit_anchors)


def test_runs_have_distinct_settings():
    assert len({run.settings for run in RUNS}) == len(RUNS)
    renamed = dataclasses.replace(RUNS[0], variant=dataclasses.replace(RUNS[0].variant, name="renamed"))
    assert renamed.settings == RUNS[0].settings


def test_table_contains_mean_spread_and_gain(capsys):
    rows = _read_table(capsys, {BASE.name: (0.51, 0.49, 0.53), "1 view": (0.56, 0.55, 0.6)}, "bccd", AP50=0.9)
    # Variances of 4e-4 and 7e-4: the difference has a standard error of sqrt(11e-4 / 3) = 0.0191 (Welch).
    assert rows == [
        "| the recipe as it is | 90.0 ± 0.0 | 51.0 ± 2.0 |  | 3 |",
        "| 1 view | 90.0 ± 0.0 | 57.0 ± 2.6 | +6.0 ± 1.9 | 3 |",
    ]


def test_one_seed_has_no_spread(capsys):
    rows = _read_table(capsys, {BASE.name: (0.51, 0.49), "1 view": (0.56,)}, "bccd", AP50=0.9)
    assert rows[1] == "| 1 view | 90.0 | 56.0 | +6.0 | 1 |"


def test_a_variant_without_a_base_has_no_gain(capsys):
    assert _read_table(capsys, {"1 view": (0.56,)}, "bccd", AP50=0.9) == ["| 1 view | 90.0 | 56.0 |  | 1 |"]


def test_table_of_the_recorded_results_can_be_printed(capsys):
    current = {run.settings for run in RUNS}
    results = [result for result in read_results(RESULTS) if result["settings"] in current]
    print_table(results)
    counts = [int(line.split("|")[-2]) for line in capsys.readouterr().out.splitlines() if line.endswith(" |")
              and line.split("|")[-2].strip().isdigit()]  # fmt: skip
    assert sum(counts) == len(results) > 0


def test_gain_is_computed_from_the_class_in_focus(capsys):
    (focused,) = (dataset for dataset in DATASETS if dataset.focus)
    scores = {BASE.name: (0.01,), "1 view": (0.01,)}
    rows = _read_table(capsys, scores, focused.name, AP50=0.03, classes={focused.focus: 0.12, "cup": 0.0})
    assert rows[1] == "| 1 view | 12.0 | 3.0 | 1.0 | +0.0 | 1 |"


def _read_table(capsys, scores, dataset, **result):
    """Prints the table of results with the given APs and returns its rows without the header."""
    print_table([
        {"variant": name, "data_set": dataset, "AP": score, **result}
        for name, values in scores.items() for score in values
    ])  # fmt: skip
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
