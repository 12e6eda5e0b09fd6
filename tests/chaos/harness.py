"""Injects faults into runs following a plan, and compares their final states with a run without faults, bit by bit.

    python tests/chaos/harness.py --faults=50 --seed=0      what `make chaos` runs

Each run has 100 steps and up to ten faults, at steps drawn from the seed. Every second run saves in the background. A
fault that came too late, because the run was over, is repeated in a further run.
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
from chaos.disk_and_network import SeparableNetwork, SmallDisk, can_create
from chaos.faults import FAULTS, Fault
from chaos.supervised_run import FLAGS, STEPS, SupervisedRun
from rich.console import Console
from rich.table import Table
from support.synthetic import write_dataset

from ssd_dist.core.config_files import load_config

FAULTS_PER_RUN = 10
EVALUATION = 50
TIMES = ("images_per_second", "images_per_second_without_wait", "data_wait")


@dataclass(frozen=True)
class Outcome:
    """The effect of a fault. Times are in seconds since the fault; None where they have no meaning.

    Attributes:
      fault: name of the fault.
      injected: whether the fault affected a run that was not yet over; otherwise the outcome means nothing.
      detected: time until the last affected worker ended.
      resumed: time until the restarted workers reported their first step.
      steps_repeated: steps that were reported before the fault and trained again.
    """

    fault: str
    injected: bool
    detected: float | None = None
    resumed: float | None = None
    steps_repeated: int = 0


def write_data(folder: Path) -> Path:
    """Writes a small dataset of rectangles and the config `small.yaml`; returns the folder of the data."""
    (folder / "small.yaml").write_text("{}")
    write_dataset(folder / "data", load_config(folder / "small.yaml", FLAGS), {"train": 32, "val": 10}, shards=4)
    return folder / "data"


def choose_faults(rng: random.Random, faults: Sequence[Fault], count: int) -> list[Fault]:
    """Returns `count` faults in random order, each fault at least once if possible."""
    chosen = [*faults, *rng.choices(faults, k=max(count - len(faults), 0))]
    rng.shuffle(chosen)
    return chosen[:count]


def plan_run(rng: random.Random, faults: Sequence[Fault]) -> list[tuple[int, Fault]]:
    """Returns the faults of one run in the order of their injection, each with the step after which it is injected."""
    interval = STEPS // (FAULTS_PER_RUN + 2)
    # Evaluations are rare: faults that need one come in the middle of the run.
    early = [fault for fault in faults if fault.moment != "evaluation"]
    half = len(early) // 2
    ordered = early[:half] + [fault for fault in faults if fault.moment == "evaluation"] + early[half:]
    # At least two checkpoints before the first fault, as it may damage one.
    return [(interval * (place + 1) + rng.randrange(1, interval), fault) for place, fault in enumerate(ordered)]


def run_without_faults(
    data: Path, folder: Path, flags: Sequence[str] = (), python: str | Path = sys.executable
) -> None:
    """Trains without faults; the runs with faults are compared with this one."""
    run = SupervisedRun(data, folder, flags, python=python)
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
    network: SeparableNetwork | None = None,
    python: str | Path = sys.executable,
) -> list[Outcome]:
    """Runs to the end with the faults of a plan; returns their outcomes."""
    run = SupervisedRun(data, folder, flags, disk, network, python)
    try:
        outcomes = [inject_fault(run, step, fault) for step, fault in plan]
        run.wait_until(lambda: False)
    finally:
        run.end()
    return outcomes


def inject_fault(run: SupervisedRun, step: int, fault: Fault) -> Outcome:
    """Waits for the fault's moment, injects it, and waits until training continues."""
    wait_for_moment(run, step, fault.moment)
    if run.code is not None:
        return Outcome(fault.name, injected=False)
    step_before, starts, trained = run.step, len(run.starts), run.is_training
    affected = {worker.pid for worker in run.workers()}
    started = time.monotonic()
    try:
        fault.inject(run)
    except (IndexError, psutil.NoSuchProcess):  # the process had just ended
        return Outcome(fault.name, injected=False)
    if fault.survivable:
        run.wait_until(lambda: run.step > step_before or len(run.starts) > starts)
        if len(run.starts) == starts:
            return Outcome(fault.name, injected=True)
    run.wait_until(lambda: not affected & {worker.pid for worker in run.workers()})
    detected = time.monotonic() - started
    if run.undo is not None:
        run.undo()
        run.undo = None
    run.wait_until(lambda: len(run.starts) > starts and run.is_training)
    if run.code is not None and len(run.starts) == starts:
        # The run had finished its last step.
        return Outcome(fault.name, injected=False)
    resumed = time.monotonic() - started
    return Outcome(fault.name, True, detected, resumed, max(step_before - run.starts[starts], 0) if trained else 0)


def wait_for_moment(run: SupervisedRun, step: int, moment: str) -> None:
    """Waits for the moment of a fault: in training after `step`, or the next evaluation, save or start after it."""
    run.wait_until(lambda: run.is_training and run.step >= step and len(run.workers()) == 2)
    if moment == "evaluation":
        run.wait_until(lambda: run.step % EVALUATION == 0)
        time.sleep(0.2)
    elif moment == "save":
        run.wait_until((run.folder / "checkpoints" / "partial").exists, pause=0.001)
    elif moment == "start":
        # Stops the workers, so that they start again.
        affected = {worker.pid for worker in run.workers()}
        run.workers()[1].terminate()
        run.wait_until(lambda: len(run.workers()) == 2 and not affected & {worker.pid for worker in run.workers()})
        deadline = time.monotonic() + 4.0
        run.wait_until(lambda: time.monotonic() > deadline)


def find_differences(first: Path, second: Path, steps: int = STEPS) -> list[str]:
    """Returns what differs between the final states of two runs, bit by bit: tensors, metrics, the best model."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    found = []
    best = [(folder / "best" / "best.json").read_text() for folder in (first, second)]
    if best[0] != best[1]:
        return ["best.json"]
    for part in (f"checkpoints/ckpt-{steps}", f"best/{json.loads(best[0])['checkpoint']}"):
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
    """Returns the rows of metrics.jsonl without measured times, evaluations before reports."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    return sorted(rows, key=lambda row: (row["kind"], row["step"]))


def tabulate(results: Sequence[tuple[Outcome, bool]], planned: int) -> Table:
    """Creates a table with one row per kind of fault.

    Args:
      results: outcomes of injected faults, each with whether its run ended identical.
      planned: number of planned faults.
    """
    table = Table("fault", "survived", "detected, s", "resumed, s", "steps repeated", "identical")

    def add(name: str, rows: Sequence[tuple[Outcome, bool]]) -> None:
        def largest(values: Sequence[float | None]) -> str:
            known = [value for value in values if value is not None]
            return f"{max(known):.1f}" if known else "-"

        table.add_row(
            name, str(len(rows)), largest([one.detected for one, _ in rows]),
            largest([one.resumed for one, _ in rows]), str(max(one.steps_repeated for one, _ in rows)),
            str(sum(same for _, same in rows)),
        )  # fmt: skip

    for name in dict.fromkeys(sorted(one.fault for one, _ in results)):
        add(name, [row for row in results if row[0].fault == name])
    table.add_section()
    if results:
        add("all", results)
    table.caption = f"times: the maximum per kind; {planned} planned"
    return table


def main() -> None:
    """Injects the faults and prints their outcomes.

    Exits with 1 if a run did not end, a final state differs, or a fault was not injected.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to keep the runs and their logs in; deleted by default")
    arguments = parser.parse_args()
    # On SIGTERM the context managers still remove runs, mounts and namespaces.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    is_root = can_create()
    faults = [fault for fault in FAULTS if is_root or not fault.needs_root]
    if not is_root:
        print("not root, or no network namespaces: faults of disk and network are skipped")
    rng = random.Random(arguments.seed)
    waiting = choose_faults(rng, faults, arguments.faults)
    most_runs = 2 * -(-arguments.faults // FAULTS_PER_RUN)
    results: list[tuple[Outcome, bool]] = []
    started, failed = time.monotonic(), False
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        data = write_data(folder)
        run_without_faults(data, folder / "without_faults")
        print(f"run without faults: {time.monotonic() - started:.0f} s", flush=True)
        for number in range(most_runs):
            if not waiting:
                break
            plan, waiting = plan_run(rng, waiting[:FAULTS_PER_RUN]), waiting[FAULTS_PER_RUN:]
            with contextlib.ExitStack() as resources:
                disk = resources.enter_context(SmallDisk(folder / f"disk{number}")) if is_root else None
                network = resources.enter_context(SeparableNetwork()) if is_root else None
                run_folder = (disk.folder if disk else folder) / f"run{number}"
                flags = [f"checkpoint.async_save={str(bool(number % 2)).lower()}"]
                try:
                    outcomes = run_with_faults(data, run_folder, plan, flags, disk, network)
                except AssertionError as error:
                    print(f"run {number} did not end: {error}", flush=True)
                    failed = True
                    continue
                differences = find_differences(folder / "without_faults", run_folder)
            late = [fault for (_, fault), outcome in zip(plan, outcomes, strict=True) if not outcome.injected]
            waiting += late
            failed |= bool(differences)
            results += [(outcome, not differences) for outcome in outcomes if outcome.injected]
            result = f"differs: {', '.join(differences[:3])}" if differences else "identical"
            result += f", too late: {', '.join(fault.name for fault in late)}" if late else ""
            seconds = time.monotonic() - started
            print(f"run {number}: {len(outcomes) - len(late)} faults, {result}, {seconds:.0f} s", flush=True)
    Console(width=120).print(tabulate(results, arguments.faults))
    sys.exit(failed or bool(waiting))


if __name__ == "__main__":
    main()
