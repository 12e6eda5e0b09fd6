"""Trains variants on the datasets of the battery (`make battery MINUTES=30`); prints a table and draws a page.

    folders of links -> ssd-fit on each folder, one run after another -> results.jsonl -> table, battery.html

Settings are chosen by the runs of the `dev` protocol, which never see a test split. Runs that results.jsonl contains
are not repeated, so the study can be interrupted and resumed.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.battery.folders import SETS, SMALL_SETS, build_folder, choose_sources
from benchmarks.battery.page import write_battery_page
from benchmarks.battery.table import print_table
from benchmarks.battery.variants import AFTER, BEFORE, FROM_DETECTOR, VARIANTS, Variant
from benchmarks.machine import name_processor
from benchmarks.run_queue import read_results, run_all

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "runs" / "battery"
RESULTS = Path(__file__).parent / "results.jsonl"
SHARED = Path(os.environ.get("SSD_DIST_SHARED", str(ROOT.parent / "shared")))
WEIGHTS = SHARED / "weights" / "mobilenet_v2_1.0_imagenet_no_top.h5"
RUN_SECONDS = 4 * 3600
DETECTOR_PIXELS = 400
# Two runs must not write the same folder or survey.
PREPARING = threading.Lock()


@dataclass(frozen=True)
class Run:
    """One run of ssd-fit.

    Attributes:
      variant: the overrides.
      dataset: name of the dataset.
      seed: the seed.
      protocol: `dev` or `test`.
      budget: the length of training, as flags of ssd-fit.
    """

    variant: Variant
    dataset: str
    seed: int
    protocol: str
    budget: str

    @property
    def config(self) -> str | None:
        """The config file of the variant."""
        return str(Path(__file__).parent / self.variant.config) if self.variant.config else None

    @property
    def overrides(self) -> list[str]:
        """All `a.b=c` overrides."""
        start = [] if self.detector else [f"backbone.weights={WEIGHTS}"]
        changes = [override.format(detector=self.detector) for override in self.variant.overrides]
        return [*start, f"train.seed={self.seed}", *changes]

    @property
    def detector(self) -> Path | None:
        """The run whose weights this run starts from."""
        name = "_and_".join([*choose_sources(self.dataset), self.budget.replace("=", "_")])
        return FOLDER / "detectors" / name if self.variant == FROM_DETECTOR else None

    @property
    def flags(self) -> list[str]:
        """The flags of ssd-fit for the config and the overrides."""
        config = [f"--config={self.config}"] if self.config else []
        return config + [f"--set={override}" for override in self.overrides]

    @property
    def key(self) -> str:
        """A hash of what the result depends on, apart from the code.

        After a change of what `ssd-fit` chooses, rename the recorded variants, so that they are trained again.
        """
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=30, help="time of a run, on all cores")
    length.add_argument("--steps", type=int, help="the computation of this many steps at 300 pixels, a run per core")
    length.add_argument("--same_steps", type=int, help="this many steps, regardless of their cost, a run per core")
    parser.add_argument("--protocol", choices=("dev", "test"), default="dev")
    parser.add_argument(
        "--only",
        action="append",
        choices=[variant.name for variant in VARIANTS],
        help=f"a variant; repeatable; {BEFORE.name!r} and {AFTER.name!r} by default",
    )
    parser.add_argument(
        "--dataset",
        dest="datasets",
        action="append",
        choices=(*SETS, *SMALL_SETS),
        help="repeatable; by default the battery, without the subsets of blood cells",
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print and draw the recorded results; train nothing")
    arguments = parser.parse_args()
    kind = next((kind for kind in ("steps", "same_steps") if getattr(arguments, kind)), "minutes")
    amount = getattr(arguments, kind)
    budget = f"{kind}={amount:g}" if kind == "minutes" else f"{kind}={amount}"
    names = arguments.only or [BEFORE.name, AFTER.name]
    runs = [
        Run(variant, dataset, seed, arguments.protocol, budget)
        for seed in range(arguments.seeds)
        for variant in VARIANTS
        for dataset in arguments.datasets or SETS
        if variant.name in names
    ]
    if not arguments.table:
        if not (SHARED / "data").is_dir():
            sys.exit(f"{SHARED}/data: no datasets; set SSD_DIST_SHARED to the folder that contains data/")
        done = {result["key"] for result in read_results(RESULTS)}
        available = sorted(os.sched_getaffinity(0))
        # With equal time, one run on all cores; otherwise the time does not matter.
        groups = [available] if kind == "minutes" else [[core] for core in available]
        run_all([run for run in runs if run.key not in done], groups, train, describe, RESULTS)
    results = read_results(RESULTS)
    print_table(results, arguments.protocol, budget)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_battery_page(results, FOLDER / "battery.html")
    print(f"\nall results, drawn: {(FOLDER / 'battery.html').relative_to(ROOT)}")


def describe(result: dict) -> str:
    """Returns a line about a result."""
    metrics = f"AP50 {result['AP50']:.3f}, AP {result['AP']:.3f}"
    return (
        f"{result['dataset']}, {result['variant']}, seed {result['seed']}: {metrics}, {result['steps']} steps in "
        f"{result['seconds']:.0f} s"
    )


def train(run: Run, cores: Sequence[int]) -> dict:
    """Runs ssd-fit on the folder of a dataset and returns the result."""
    with PREPARING:
        folder = build_folder(run.dataset, run.protocol, SHARED / "data", FOLDER / "folders")
        if run.detector and not (run.detector / "metrics.json").exists():
            train_detector(run, run.detector, cores)
    # Imports TensorFlow, which takes seconds.
    from benchmarks.battery.compute import count_multiply_adds

    with TemporaryDirectory(dir=FOLDER, prefix="run_") as output:
        length = length_flags(run, folder)
        flags = [f"--input={folder}", f"--output={output}", "--export=", *run.flags, *length]
        started = time.perf_counter()
        call(cores, "ssd_dist.cli.fit", *flags)
        seconds = time.perf_counter() - started
        metrics = json.loads(Path(output, "metrics.json").read_text())
        settings = json.loads(Path(output, "fit", "choices.json").read_text())
        rows = [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]
        with PREPARING:
            cost = count_multiply_adds(output, len(metrics["per_class"]))
    return {
        "key": run.key, "variant": run.variant.name, "dataset": run.dataset, "seed": run.seed,
        "protocol": run.protocol, "budget": run.budget, "overrides": run.variant.overrides, "length": length,
        "AP": metrics["coco/AP"], "AP50": metrics["coco/AP50"], "AP_small": metrics["coco/AP_small"],
        "steps": rows[-1]["step"], "multiply_adds": cost,
        "evaluations": [row["coco/AP"] for row in rows if row["kind"] == "eval"],
        "choices": {choice["key"]: choice["value"] for choice in settings},
        "seconds": seconds, "commit": read_commit(), "machine": f"{name_processor()}; cores: {len(cores)}",
    }  # fmt: skip


def train_detector(run: Run, output: Path, cores: Sequence[int]) -> None:
    """Trains the detector that a run starts from, on three other datasets, as long as three runs; resumes."""
    # Imports TensorFlow, which takes seconds.
    from benchmarks.battery.detectors import merge_datasets

    merged = output.with_suffix(".merged")
    if not merged.exists():
        prepared = {}
        for name in choose_sources(run.dataset):
            folder = build_folder(name, "dev", SHARED / "data", FOLDER / "folders")
            prepared[name] = output.with_suffix(f".{name}")
            size = f"--set=model.input_size={DETECTOR_PIXELS}"
            call(cores, "pipelines.prepare", f"--input={folder}", f"--output={prepared[name]}", size, "--resume")
        building = output.with_suffix(".building")
        shutil.rmtree(building, ignore_errors=True)
        merge_datasets(prepared, building)
        building.rename(merged)
    kind, amount = run.budget.split("=")
    length = f"--minutes={3 * float(amount)}" if kind == "minutes" else f"--set=train.steps={3 * int(amount)}"
    weights = f"--set=backbone.weights={WEIGHTS}"
    call(cores, "ssd_dist.cli.fit", f"--input={merged}", f"--output={output}", "--export=", weights, length)


def length_flags(run: Run, folder: Path) -> list[str]:
    """Returns the flags of ssd-fit that set the length of training."""
    kind, amount = run.budget.split("=")
    if kind == "minutes":
        return [f"--minutes={amount}"]
    if kind == "same_steps":
        return [f"--set=train.steps={amount}"]
    survey = folder.with_suffix(".survey.json")
    with PREPARING:
        if not survey.exists():
            output = f"--output={folder.with_suffix('.data')}"
            call([], "pipelines.prepare", f"--input={folder}", output, f"--survey={survey}")
        # Imports TensorFlow, which takes seconds.
        from benchmarks.battery.compute import plan_equal_work

        return [f"--set={override}" for override in plan_equal_work(int(amount), survey, run.config, run.overrides)]


def read_commit() -> str:
    """Returns the commit of the checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def call(cores: Sequence[int], module: str, *flags: str) -> None:
    """Runs a program, on the given cores if there are some."""
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run(
        [*pinned, sys.executable, "-m", module, *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=True,
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; run the command again to resume")
