"""`make recipe`: trains every variant with every seed on every data set, and prints the table of docs/recipe.md.

    prepare what the variants share -> a queue of runs, one pinned to each core -> results.jsonl -> table

A run that is in results.jsonl with the same settings is not repeated: stop and go on as you like, or add a variant.
"""

import argparse
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.recipe.table import print_table
from benchmarks.recipe.variants import BASE, DATA_SETS, SEEDS, DataSet, Variant
from ssd_dist.core.config_files import load_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "runs" / "recipe"
RESULTS = Path(__file__).parent / "results.jsonl"
SHARED = os.environ.get("SSD_DIST_SHARED", str(ROOT.parent / "shared"))
RUN_SECONDS = 1800


@dataclass(frozen=True)
class Run:
    """One training: a variant of the recipe with one seed on one data set."""

    data_set: DataSet
    variant: Variant
    seed: int

    @property
    def config(self) -> Path:
        """The recipe of the data set."""
        return Path(__file__).parent / f"{self.data_set.name}.yaml"

    @property
    def settings(self) -> str:
        """A digest of all that was set for this run, by its recipe and by its variant."""
        changes = [*self.variant.prepare, *self.variant.overrides, f"train.seed={self.seed}"]
        # What is not set is left out: a new key of the config makes no old result void.
        said = load_config(self.config, changes).model_dump(mode="json", exclude_unset=True)
        said["backbone"]["weights"] = Path(said["backbone"]["weights"]).name
        text = json.dumps([said, self.variant.fit_anchors, self.data_set.flags], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="name of a variant; all by default")
    parser.add_argument("--data_set", action="append", default=[], help="name of a data set; all by default")
    parser.add_argument("--table", action="store_true", help="prints the table of what was measured and ends")
    arguments = parser.parse_args()
    if not arguments.table:
        # All variants with one seed first: an interrupted study has seen everything once.
        runs = [
            Run(data_set, variant, seed) for seed in SEEDS for data_set in DATA_SETS for variant in data_set.variants
        ]
        run_all([
            run for run in runs
            if (not arguments.only or run.variant.name in arguments.only)
            and (not arguments.data_set or run.data_set.name in arguments.data_set)
        ])  # fmt: skip
    print_table(read_results())


def run_all(runs: list[Run]) -> None:
    """Does what has not been done, as many at once as there are cores."""
    done = {result["settings"] for result in read_results()}
    waiting = [run for run in runs if run.settings not in done]
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    console = Console(stderr=True)
    preparing = threading.Lock()
    with ThreadPoolExecutor(cores.qsize()) as pool:
        found = [pool.submit(_do, run, cores, preparing) for run in waiting]
        failed = 0
        for number, future in enumerate(as_completed(found), 1):
            error = future.exception()
            if error is not None:
                failed += 1
                console.print(f"{number} of {len(found)} failed: {error}\n{getattr(error, 'stderr', '')[-1000:]}")
                continue
            result = future.result()
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
            console.print(
                f"{number} of {len(found)}: {result['data_set']}, {result['variant']}, seed {result['seed']}: "
                f"AP50 {result['AP50']:.3f}, AP {result['AP']:.3f} in {result['seconds']:.0f} s"
            )
    if failed:
        sys.exit(f"{failed} runs failed; start again to repeat them")


def read_results() -> list[dict]:
    """What was measured, a dict a run."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def _do(run: Run, cores: "queue.SimpleQueue[int]", preparing: threading.Lock) -> dict:
    # Two runs must not prepare the same data together.
    with preparing:
        data = _prepare(run)
    core = cores.get()
    try:
        return _train(run, data, core)
    finally:
        cores.put(core)


def _prepare(run: Run) -> Path:
    """The prepared data that this run's variant reads; shared with others where nothing in the shards differs."""
    overrides = [f"--set={each}" for each in run.variant.prepare]
    config = run.config
    if run.variant.fit_anchors:
        config = _fit_anchors(run)
    key = hashlib.sha256(json.dumps([config.read_text(), overrides]).encode()).hexdigest()[:12]
    data = FOLDER / "data" / f"{run.data_set.name}_{key}"
    if data.exists():
        return data
    building = data.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    for split, source in run.data_set.splits:
        _call(
            "pipelines.prepare", f"--config={config}", f"--output={building}", f"--split={split}",
            f"--source_split={source}", *(flag.format(shared=SHARED) for flag in run.data_set.flags), *overrides,
        )  # fmt: skip
    building.rename(data)
    return data


def _fit_anchors(run: Run) -> Path:
    """A recipe with anchors that fit the training split."""
    config = FOLDER / f"{run.data_set.name}_fitted.yaml"
    if not config.exists():
        plain = _prepare(Run(run.data_set, BASE, run.seed))
        anchors = FOLDER / f"{run.data_set.name}_anchors.yaml"
        _call(
            "ssd_dist.cli.inspect", f"--data={plain}", f"--fit_anchors={anchors}",
            f"--output={FOLDER / 'inspect.html'}",
        )  # fmt: skip
        config.write_text(f"extends: {run.config}\n{anchors.read_text()}")
    return config


def _train(run: Run, data: Path, core: int) -> dict:
    folder = FOLDER / "runs" / run.settings
    shutil.rmtree(folder, ignore_errors=True)
    config = _fit_anchors(run) if run.variant.fit_anchors else run.config
    changes = (*run.variant.prepare, *run.variant.overrides, f"train.seed={run.seed}", f"data.dir={data}")
    started = time.perf_counter()
    _call(
        "ssd_dist.cli.train", f"--config={config}", f"--model_dir={folder}", *(f"--set={each}" for each in changes),
        core=core,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(row["images_per_second"] for row in rows if row["kind"] == "train")
    judged = [row for row in rows if row["kind"] == "eval"][-1]
    shutil.rmtree(folder)
    return {
        "data_set": run.data_set.name, "variant": run.variant.name, "seed": run.seed, "settings": run.settings,
        "AP50": judged["coco/AP50"], "AP": judged["coco/AP"], "steps": judged["step"],
        "images_per_second": rates[len(rates) // 2], "seconds": seconds,
    }  # fmt: skip


def _call(module: str, *flags: str, core: int | None = None) -> None:
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    command = [*pinned, sys.executable, "-m", module, *flags]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "SSD_DIST_SHARED": SHARED}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=True)


if __name__ == "__main__":
    main()
