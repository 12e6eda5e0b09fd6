"""Trains every variant with every seed on every dataset (`make recipe`), and prints the tables of RESULTS.md.

    prepare the datasets -> a queue of runs, each pinned to one core -> results.jsonl -> tables

Runs that results.jsonl contains with the same settings are not repeated, so the study can be interrupted and resumed,
and variants can be added.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.recipe.table import print_table
from benchmarks.recipe.variants import DATASETS, SEEDS, Dataset, Variant
from benchmarks.run_queue import read_results, run_all
from ssd_dist.core.config_files import load_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "runs" / "recipe"
RESULTS = Path(__file__).parent / "results.jsonl"
SHARED = os.environ.get("SSD_DIST_SHARED", str(ROOT.parent / "shared"))
RUN_SECONDS = 1800
PREPARING = threading.Lock()


@dataclass(frozen=True)
class Run:
    """One training run: a variant of the recipe with one seed on one dataset."""

    dataset: Dataset
    variant: Variant
    seed: int

    @property
    def config(self) -> Path:
        """The path of the dataset's recipe."""
        return Path(__file__).parent / f"{self.dataset.name}.yaml"

    @property
    def settings(self) -> str:
        """A hash of all settings that the recipe and the variant of this run set."""
        overrides = (*self.variant.prepare, *self.variant.overrides, f"train.seed={self.seed}")
        return _digest(_read_settings(self.config, overrides), self.variant.fit_anchors, self.dataset.flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="name of a variant; all by default; repeatable")
    parser.add_argument(
        "--data_set", dest="datasets", action="append", default=[], help="name of a dataset; all by default; repeatable"
    )
    parser.add_argument(
        "--table", action="store_true", help="print the tables of the recorded results without training"
    )
    arguments = parser.parse_args()
    # All variants with the first seed come first, so that an interrupted study has results of each.
    runs = [Run(dataset, variant, seed) for seed in SEEDS for dataset in DATASETS for variant in dataset.variants]
    if not arguments.table:
        if not Path(SHARED, "data").is_dir():
            sys.exit(f"{SHARED}/data: no datasets; set SSD_DIST_SHARED to the folder that contains data/")
        done = {result["settings"] for result in read_results(RESULTS)}
        waiting = [
            run
            for run in runs
            if (not arguments.only or run.variant.name in arguments.only)
            and (not arguments.datasets or run.dataset.name in arguments.datasets)
            and run.settings not in done
        ]
        cores = [[core] for core in sorted(os.sched_getaffinity(0))]
        run_all(waiting, cores, _prepare_and_train, _describe, RESULTS)
    # Results of earlier versions of a recipe are not shown.
    current = {run.settings for run in runs}
    print_table([result for result in read_results(RESULTS) if result["settings"] in current])


def _describe(result: dict) -> str:
    return (
        f"{result['data_set']}, {result['variant']}, seed {result['seed']}: "
        f"AP50 {result['AP50']:.3f}, AP {result['AP']:.3f} in {result['seconds']:.0f} s"
    )


def _prepare_and_train(run: Run, cores: Sequence[int]) -> dict:
    # Two runs must not prepare the same data at the same time.
    with PREPARING:
        config = _fit_anchors(run) if run.variant.fit_anchors else run.config
        data = _prepare(run.dataset, config, run.variant.prepare)
    return _train(run, config, data, cores)


def _prepare(dataset: Dataset, config: Path, overrides: tuple[str, ...]) -> Path:
    """Prepares the data of a recipe with overrides once; all seeds share the augmented copies of seed 0."""
    key = _digest(_read_settings(config, overrides), dataset.flags)
    data = FOLDER / "data" / f"{dataset.name}_{key}"
    if data.exists():
        return data
    building = data.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    for split, source in dataset.splits:
        _call(
            "pipelines.prepare", f"--config={config}", f"--output={building}", f"--split={split}",
            f"--source_split={source}", *(flag.format(shared=SHARED) for flag in dataset.flags),
            *(f"--set={each}" for each in overrides),
        )  # fmt: skip
    building.rename(data)
    return data


def _fit_anchors(run: Run) -> Path:
    """Fits anchors to the training split; writes the recipe with these anchors next to the prepared data."""
    plain = _prepare(run.dataset, run.config, ())
    config = plain.with_suffix(".fitted.yaml")
    if not config.exists():
        anchors = plain.with_suffix(".anchors.yaml")
        page = plain.with_suffix(".html")
        _call("ssd_dist.cli.inspect", f"--data={plain}", f"--fit_anchors={anchors}", f"--output={page}")
        config.write_text(f"extends: {run.config}\n{anchors.read_text()}")
    return config


def _train(run: Run, config: Path, data: Path, cores: Sequence[int]) -> dict:
    changes = (*run.variant.prepare, *run.variant.overrides, f"train.seed={run.seed}", f"data.dir={data}")
    # A new folder per run: a process left over from an earlier study may still write to its own folder.
    with TemporaryDirectory(dir=FOLDER, prefix="run_") as folder:
        started = time.perf_counter()
        _call(
            "ssd_dist.cli.train", f"--config={config}", f"--model_dir={folder}", "--noreport",
            *(f"--set={each}" for each in changes),
            cores=cores,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    evaluation = [row for row in rows if row["kind"] == "eval"][-1]
    return {
        "data_set": run.dataset.name, "variant": run.variant.name, "seed": run.seed, "settings": run.settings,
        "AP50": evaluation["coco/AP50"], "AP": evaluation["coco/AP"], "steps": evaluation["step"], "seconds": seconds,
        "classes": {name: metrics["coco/AP50"] for name, metrics in evaluation["per_class"].items()},
    }  # fmt: skip


def _read_settings(config: Path, overrides: Sequence[str]) -> dict:
    """Returns the keys that a recipe and overrides set.

    Defaults are omitted: otherwise each new key of the config would invalidate the recorded results.
    """
    settings = load_config(config, overrides).model_dump(mode="json", exclude_unset=True)
    # Only the file name: the same weights may be in another folder.
    settings["backbone"]["weights"] = Path(settings["backbone"]["weights"]).name
    return settings


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _call(module: str, *flags: str, cores: Sequence[int] = ()) -> None:
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []
    command = [*pinned, sys.executable, "-m", module, *flags]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "SSD_DIST_SHARED": SHARED}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; run the command again to resume")
