"""Hurts runs by a plan and compares their ends with an undisturbed one, bit by bit.

    python tests/chaos/harness.py --faults=50 --seed=0      what `make chaos` runs

Each run of 100 steps takes up to ten faults, at steps drawn from the seed; every second one saves in the background.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
from chaos.faults import FAULTS, Fault
from chaos.hurt_run import FLAGS, STEPS, HurtRun
from chaos.world import CuttableNetwork, SmallDisk, can_make_worlds
from rich.console import Console
from rich.table import Table
from support.synthetic import write_dataset

from ssd_dist.core.config_files import load_config

FAULTS_A_RUN = 10
EVALUATION = 50
CLOCKS = ("images_per_second", "images_per_second_without_wait", "data_wait")


@dataclass(frozen=True)
class Outcome:
    """What became of a fault; seconds from it, None where they have no meaning.

    Attributes:
      struck: whether it met a run that still had something to lose; only then it says anything.
      noticed: until the last worker it met was gone.
      training_again: until the next gang reported its first step.
      steps_repeated: steps reported before it that were trained again.
    """

    fault: str
    struck: bool
    noticed: float | None = None
    training_again: float | None = None
    steps_repeated: int = 0


def write_data(folder: Path) -> Path:
    """A small data set of rectangles, and beside it the config `small.yaml`."""
    (folder / "small.yaml").write_text("{}")
    write_dataset(folder / "data", load_config(folder / "small.yaml", FLAGS), {"train": 32, "val": 10}, shards=4)
    return folder / "data"


def make_plan(rng: random.Random, faults: Sequence[Fault], count: int) -> list[list[tuple[int, Fault]]]:
    """`count` faults, of each kind at least one if there is room, dealt to runs; each with the step it waits for."""
    chosen = [*faults, *rng.choices(faults, k=max(count - len(faults), 0))]
    rng.shuffle(chosen)
    runs = [chosen[first : first + FAULTS_A_RUN] for first in range(0, count, FAULTS_A_RUN)]
    room = STEPS // (FAULTS_A_RUN + 2)
    plans = []
    for run in runs:
        # Evaluations are rare: who needs one waits for it in the middle.
        run = run[:count]
        early = [fault for fault in run if fault.moment != "evaluation"]
        half = len(early) // 2
        ordered = early[:half] + [fault for fault in run if fault.moment == "evaluation"] + early[half:]
        # Two checkpoints at least before the first: one may be damaged.
        plans.append([(room * (place + 1) + rng.randrange(1, room), fault) for place, fault in enumerate(ordered)])
    return plans


def run_undisturbed(data: Path, folder: Path) -> None:
    """The run that all others are compared with."""
    run = HurtRun(data, folder)
    try:
        run.wait_until(lambda: False)
    finally:
        run.end()


def run_with_faults(
    data: Path,
    folder: Path,
    plan: Sequence[tuple[int, Fault]],
    flags: Sequence[str] = (),
    disk: SmallDisk | None = None,
    network: CuttableNetwork | None = None,
) -> list[Outcome]:
    """Runs to the end, each fault inflicted at its time; what became of each."""
    run = HurtRun(data, folder, flags, disk, network)
    try:
        outcomes = [inflict(run, step, fault) for step, fault in plan]
        run.wait_until(lambda: False)
    finally:
        run.end()
    return outcomes


def inflict(run: HurtRun, step: int, fault: Fault) -> Outcome:
    """Waits for the fault's moment, lets it strike, and watches until training goes on."""
    wait_for_moment(run, step, fault.moment)
    if run.code is not None:
        return Outcome(fault.name, struck=False)
    before, gangs, trained = run.step, len(run.starts), run.trains
    victims = {worker.pid for worker in run.workers()}
    struck = time.monotonic()
    try:
        fault.strike(run)
    except (IndexError, psutil.NoSuchProcess):  # who was to be hurt had just ended
        return Outcome(fault.name, struck=False)
    if fault.passes:
        run.wait_until(lambda: run.step > before or len(run.starts) > gangs)
        if len(run.starts) == gangs:
            return Outcome(fault.name, struck=True)
    run.wait_until(lambda: not victims & {worker.pid for worker in run.workers()})
    noticed = time.monotonic() - struck
    if run.mend is not None:
        run.mend()
        run.mend = None
    run.wait_until(lambda: len(run.starts) > gangs and run.trains)
    if run.code is not None and len(run.starts) == gangs:
        # It had done its last step.
        return Outcome(fault.name, struck=False)
    again = time.monotonic() - struck
    return Outcome(fault.name, True, noticed, again, max(before - run.starts[gangs], 0) if trained else 0)


def wait_for_moment(run: HurtRun, step: int, moment: str) -> None:
    """Returns when the fault may strike: in training after `step`, or in what it is meant for."""
    run.wait_until(lambda: run.trains and run.step >= step and len(run.workers()) == 2)
    if moment == "evaluation":
        run.wait_until(lambda: run.step % EVALUATION == 0)
        time.sleep(0.2)
    elif moment == "save":
        run.wait_until((run.folder / "checkpoints" / "partial").exists, pause=0.001)
    elif moment == "start":
        # A gang that is told to stop, and the one after it.
        victims = {worker.pid for worker in run.workers()}
        run.workers()[1].terminate()
        run.wait_until(lambda: len(run.workers()) == 2 and not victims & {worker.pid for worker in run.workers()})
        deadline = time.monotonic() + 4.0
        run.wait_until(lambda: time.monotonic() > deadline)


def find_differences(first: Path, second: Path) -> list[str]:
    """What differs between the ends of two runs: tensors, metrics, the best model; bit by bit."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    found = []
    best = [(folder / "best" / "best.json").read_text() for folder in (first, second)]
    if best[0] != best[1]:
        return ["best.json"]
    for part in (f"checkpoints/ckpt-{STEPS}", f"best/{json.loads(best[0])['checkpoint']}"):
        readers = [tf.train.load_checkpoint(str(folder / part)) for folder in (first, second)]
        names = [set(reader.get_variable_to_shape_map()) for reader in readers]
        found += sorted(names[0] ^ names[1])
        for name in sorted(names[0] & names[1]):
            values = [reader.get_tensor(name) for reader in readers]
            if name != "_CHECKPOINTABLE_OBJECT_GRAPH" and not np.array_equal(*values):
                found.append(f"{part}: {name}")
    if read_rows(first) != read_rows(second):
        found.append("metrics.jsonl")
    return found


def read_rows(folder: Path) -> list[dict]:
    """Rows of metrics.jsonl without its clocks, reports before evaluations."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]
    return sorted(rows, key=lambda row: (row["kind"], row["step"]))


def tabulate(results: Sequence[tuple[Outcome, bool]], planned: int) -> Table:
    """One row for each kind of fault; `results` says of each whether its run ended identical.

    One that did not strike is not survived.
    """
    table = Table("fault", "times", "survived", "noticed, s", "training again, s", "steps repeated", "identical")

    def add(name: str, rows: Sequence[tuple[Outcome, bool]]) -> None:
        def largest(values: Sequence[float | None]) -> str:
            known = [value for value in values if value is not None]
            return f"{max(known):.1f}" if known else "-"

        table.add_row(
            name, str(len(rows)), str(sum(one.struck for one, _ in rows)), largest([one.noticed for one, _ in rows]),
            largest([one.training_again for one, _ in rows]), str(max(one.steps_repeated for one, _ in rows)),
            str(sum(same for _, same in rows)),
        )  # fmt: skip

    for name in dict.fromkeys(sorted(one.fault for one, _ in results)):
        add(name, [row for row in results if row[0].fault == name])
    table.add_section()
    if results:
        add("all", results)
    table.caption = f"times: the longest of each; {planned} planned"
    return table


def main() -> None:
    """Inflicts the faults and prints what became of them.

    Exit code 1 if a run did not end, or not identical, or a fault did not strike.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the runs and their logs, which are else thrown away")
    arguments = parser.parse_args()
    # Told to stop it cleans up: runs, mounts and namespaces.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    world = can_make_worlds()
    faults = [fault for fault in FAULTS if world or not fault.needs_world]
    if not world:
        print("not root, or no network namespaces: without faults of disk and network")
    plans = make_plan(random.Random(arguments.seed), faults, arguments.faults)
    results: list[tuple[Outcome, bool]] = []
    started, failed = time.monotonic(), False
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        data = write_data(folder)
        run_undisturbed(data, folder / "undisturbed")
        print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
        for number, plan in enumerate(plans):
            with contextlib.ExitStack() as around:
                disk = around.enter_context(SmallDisk(folder / f"disk{number}")) if world else None
                network = around.enter_context(CuttableNetwork()) if world else None
                hurt = (disk.folder if disk else folder) / f"run{number}"
                flags = [f"checkpoint.async_save={str(bool(number % 2)).lower()}"]
                try:
                    outcomes = run_with_faults(data, hurt, plan, flags, disk, network)
                except AssertionError as error:
                    print(f"run {number} did not end: {error}", flush=True)
                    failed = True
                    continue
                differences = find_differences(folder / "undisturbed", hurt)
            missed = [outcome.fault for outcome in outcomes if not outcome.struck]
            failed |= bool(differences or missed)
            results += [(outcome, not differences) for outcome in outcomes]
            said = f"differs: {', '.join(differences[:3])}" if differences else "identical"
            said += f", did not strike: {', '.join(missed)}" if missed else ""
            print(f"run {number}: {len(outcomes)} faults, {said}, {time.monotonic() - started:.0f} s", flush=True)
    Console(width=120).print(tabulate(results, arguments.faults))
    sys.exit(failed)


if __name__ == "__main__":
    main()
