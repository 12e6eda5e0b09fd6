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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks.recipe.table import print_table
from benchmarks.recipe.variants import DATA_SETS, SEEDS, DataSet, Variant
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
        overrides = (*self.variant.prepare, *self.variant.overrides, f"train.seed={self.seed}")
        return _digest(_read_settings(self.config, overrides), self.variant.fit_anchors, self.data_set.flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="name of a variant; all by default")
    parser.add_argument("--data_set", action="append", default=[], help="name of a data set; all by default")
    parser.add_argument("--table", action="store_true", help="prints the table of what was measured and ends")
    arguments = parser.parse_args()
    # All variants with one seed first: an interrupted study has seen everything once.
    runs = [Run(data_set, variant, seed) for seed in SEEDS for data_set in DATA_SETS for variant in data_set.variants]
    if not arguments.table:
        if not Path(SHARED, "data").is_dir():
            sys.exit(f"no data sets in {SHARED}/data; say where they are by SSD_DIST_SHARED")
        run_all([
            run for run in runs
            if (not arguments.only or run.variant.name in arguments.only)
            and (not arguments.data_set or run.data_set.name in arguments.data_set)
        ])  # fmt: skip
    # What was measured with another recipe is no seed of this one.
    current = {run.settings for run in runs}
    print_table([result for result in read_results() if result["settings"] in current])


def run_all(runs: list[Run]) -> None:
    """Does what has not been done, as many at once as there are cores."""
    done = {result["settings"] for result in read_results()}
    waiting = [run for run in runs if run.settings not in done]
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    console = Console(stderr=True)
    preparing = threading.Lock()
    failed = 0
    with ThreadPoolExecutor(cores.qsize()) as pool:
        found = [pool.submit(_do, run, cores, preparing) for run in waiting]
        try:
            for number, future in enumerate(as_completed(found), 1):
                try:
                    result = future.result()
                except subprocess.SubprocessError as error:
                    failed += 1
                    console.print(f"{number} of {len(found)} failed: {error}\n{(error.stderr or '')[-1000:]}")
                    continue
                with RESULTS.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                console.print(
                    f"{number} of {len(found)}: {result['data_set']}, {result['variant']}, seed {result['seed']}: "
                    f"AP50 {result['AP50']:.3f}, AP {result['AP']:.3f} in {result['seconds']:.0f} s"
                )
        finally:
            # Ctrl-C ends what runs; what waits must not begin.
            pool.shutdown(cancel_futures=True)
    if failed:
        sys.exit(f"{failed} runs failed; start again to repeat them")


def read_results() -> list[dict]:
    """What was measured, a dict a run."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def _do(run: Run, cores: "queue.SimpleQueue[int]", preparing: threading.Lock) -> dict:
    # Two runs must not prepare the same data together.
    with preparing:
        config = _fit_anchors(run) if run.variant.fit_anchors else run.config
        data = _prepare(run.data_set, config, run.variant.prepare)
    core = cores.get()
    try:
        return _train(run, config, data, core)
    finally:
        cores.put(core)


def _prepare(data_set: DataSet, config: Path, overrides: tuple[str, ...]) -> Path:
    """The prepared data of a recipe with overrides; made once, for all seeds: they share the views of seed 0."""
    key = _digest(_read_settings(config, overrides), data_set.flags)
    data = FOLDER / "data" / f"{data_set.name}_{key}"
    if data.exists():
        return data
    building = data.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    for split, source in data_set.splits:
        _call(
            "pipelines.prepare", f"--config={config}", f"--output={building}", f"--split={split}",
            f"--source_split={source}", *(flag.format(shared=SHARED) for flag in data_set.flags),
            *(f"--set={each}" for each in overrides),
        )  # fmt: skip
    building.rename(data)
    return data


def _fit_anchors(run: Run) -> Path:
    """The recipe with anchors that fit its training split, beside the data they were fitted to."""
    plain = _prepare(run.data_set, run.config, ())
    config = plain.with_suffix(".fitted.yaml")
    if not config.exists():
        anchors = plain.with_suffix(".anchors.yaml")
        page = plain.with_suffix(".html")
        _call("ssd_dist.cli.inspect", f"--data={plain}", f"--fit_anchors={anchors}", f"--output={page}")
        config.write_text(f"extends: {run.config}\n{anchors.read_text()}")
    return config


def _train(run: Run, config: Path, data: Path, core: int) -> dict:
    changes = (*run.variant.prepare, *run.variant.overrides, f"train.seed={run.seed}", f"data.dir={data}")
    # A folder of its own: a training that outlived an earlier study may still write into the one it had.
    with TemporaryDirectory(dir=FOLDER, prefix="run_") as folder:
        started = time.perf_counter()
        _call(
            "ssd_dist.cli.train", f"--config={config}", f"--model_dir={folder}", "--noreport",
            *(f"--set={each}" for each in changes),
            core=core,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if row["kind"] == "eval"][-1]
    return {
        "data_set": run.data_set.name, "variant": run.variant.name, "seed": run.seed, "settings": run.settings,
        "AP50": judged["coco/AP50"], "AP": judged["coco/AP"], "steps": judged["step"], "seconds": seconds,
        "classes": {name: found["coco/AP50"] for name, found in judged["per_class"].items()},
    }  # fmt: skip


def _read_settings(config: Path, overrides: Sequence[str]) -> dict:
    """What a recipe and overrides set. The rest is left out: a new key of the config makes no old result void."""
    said = load_config(config, overrides).model_dump(mode="json", exclude_unset=True)
    # The same weights may lie elsewhere.
    said["backbone"]["weights"] = Path(said["backbone"]["weights"]).name
    return said


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _call(module: str, *flags: str, core: int | None = None) -> None:
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    command = [*pinned, sys.executable, "-m", module, *flags]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "SSD_DIST_SHARED": SHARED}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; start again to go on")
