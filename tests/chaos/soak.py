"""Trains for a while and looks whether any process grows: resident memory and open files.

    python tests/chaos/soak.py --minutes=30      what `make soak` runs

Two workers that report, evaluate and save in the background all the time, sampled every few seconds. The first third is
left out: tracing, caches and allocators fill up. Of the rest the median of the last third is compared with that of the
first: memory may differ by a kilobyte a step (a tenth of one image of the batch: any tensor that stays behind in each
step is more) plus 1 % (the allocator's noise); files not at all.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from chaos.harness import write_data
from chaos.hurt_run import HurtRun
from rich.console import Console
from rich.table import Table

FLAGS = ("train.steps=100000000", "train.log_every=20", "eval.every_steps=200", "checkpoint.every_steps=100",
         "checkpoint.async_save=true", "cluster.health_timeout=60")  # fmt: skip
PAUSE = 5.0
BYTES_A_STEP = 1024
NOISE = 0.01


@dataclass(frozen=True)
class Sample:
    """One look at a process: after which step, bytes of resident memory, open files."""

    step: int
    memory: int
    files: int


@dataclass(frozen=True)
class Growth:
    """First and last third of a process's samples, by their medians."""

    steps: int
    memory: tuple[float, float]
    files: tuple[float, float]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Growth":
        """From all samples after the first third."""
        settled = samples[len(samples) // 3 :]
        part = max(len(settled) // 3, 1)
        first, last = settled[:part], settled[-part:]

        def medians(values: str) -> tuple[float, float]:
            before, after = (statistics.median(getattr(one, values) for one in samples) for samples in (first, last))
            return before, after

        steps = medians("step")
        return cls(int(steps[1] - steps[0]), medians("memory"), medians("files"))

    @property
    def flat(self) -> bool:
        """Whether it stays within what the module says."""
        grown = self.memory[1] - self.memory[0]
        allowed = BYTES_A_STEP * self.steps + NOISE * self.memory[0]
        return grown <= allowed and self.files[1] <= self.files[0]


def sample_run(run: HurtRun, minutes: float) -> dict[str, list[Sample]]:
    """Samples of the launcher and both workers, by name."""
    run.wait_until(lambda: run.trains)
    processes = {"launcher": psutil.Process(run.launcher.pid)}
    processes |= {f"worker {index}": worker for index, worker in enumerate(run.workers())}
    samples: dict[str, list[Sample]] = {name: [] for name in processes}
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        for name, process in processes.items():
            try:
                samples[name].append(Sample(run.step, process.memory_info().rss, process.num_fds()))
            except psutil.NoSuchProcess:
                sys.exit(f"{name} ended after step {run.step}: nothing can be said of its growth; run it again alone")
        again = time.monotonic() + PAUSE
        run.wait_until(lambda again=again: time.monotonic() > again)
    return samples


def main() -> None:
    """Prints what became of each process; exit code 1 if one of them grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = write_data(Path(name))
        run = HurtRun(data, Path(name) / "run", FLAGS)
        try:
            samples = sample_run(run, arguments.minutes)
        finally:
            run.end()
        gangs = len(run.starts)
    table = Table("process", "steps", "memory, MB", "bytes a step", "open files", "flat")
    growths = {name: Growth.of(values) for name, values in samples.items()}
    for name, growth in growths.items():
        memory = " -> ".join(f"{value / 1e6:.1f}" for value in growth.memory)
        files = " -> ".join(f"{value:g}" for value in growth.files)
        a_step = (growth.memory[1] - growth.memory[0]) / max(growth.steps, 1)
        table.add_row(name, str(growth.steps), memory, f"{a_step:.0f}", files, "yes" if growth.flat else "no")
    table.caption = f"{arguments.minutes:g} minutes, {run.step} steps, {gangs - 1} restarts"
    Console(width=120).print(table)
    sys.exit(gangs != 1 or not all(growth.flat for growth in growths.values()))


if __name__ == "__main__":
    main()
