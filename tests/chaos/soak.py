"""Trains for a while and checks that no process grows: resident memory and open files.

    python tests/chaos/soak.py --minutes=30      what `make soak` runs

Two workers report, evaluate and save in the background all the time; memory and files are sampled every few seconds.
The first third of the samples is ignored: tracing, caches and allocators fill up. Of the rest, the medians of the first
and the last third are compared. Memory may grow by one kilobyte per step (a tenth of one image of the batch; a tensor
that leaks in each step is larger) plus 1 % (noise of the allocator). The number of open files may not grow.
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
from chaos.supervised_run import SupervisedRun
from rich.console import Console
from rich.table import Table

FLAGS = ("train.steps=100000000", "train.log_every=20", "eval.every_steps=200", "checkpoint.every_steps=100",
         "checkpoint.async_save=true", "cluster.health_timeout=60")  # fmt: skip
SAMPLE_SECONDS = 5.0
BYTES_PER_STEP = 1024
NOISE = 0.01


@dataclass(frozen=True)
class Sample:
    """A sample of a process: the last reported step, bytes of resident memory, number of open files."""

    step: int
    memory: int
    files: int


@dataclass(frozen=True)
class Growth:
    """Medians of a process's samples in the first and the last third; `steps` is the number of steps between them."""

    steps: int
    memory: tuple[float, float]
    files: tuple[float, float]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Growth":
        """Computes the growth from all samples; ignores the first third."""
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
        """Whether the growth is within the limits of the module docstring."""
        grown = self.memory[1] - self.memory[0]
        allowed = BYTES_PER_STEP * self.steps + NOISE * self.memory[0]
        return grown <= allowed and self.files[1] <= self.files[0]


def sample_run(run: SupervisedRun, minutes: float) -> dict[str, list[Sample]]:
    """Returns the samples of the launcher and of both workers, by name."""
    run.wait_until(lambda: run.is_training)
    processes = {"launcher": psutil.Process(run.launcher.pid)}
    processes |= {f"worker {index}": worker for index, worker in enumerate(run.workers())}
    samples: dict[str, list[Sample]] = {name: [] for name in processes}
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        for name, process in processes.items():
            try:
                samples[name].append(Sample(run.step, process.memory_info().rss, process.num_fds()))
            except psutil.NoSuchProcess:
                sys.exit(f"{name} ended after step {run.step}: its growth is unknown; run again on an idle machine")
        next_sample = time.monotonic() + SAMPLE_SECONDS
        run.wait_until(lambda next_sample=next_sample: time.monotonic() > next_sample)
    return samples


def main() -> None:
    """Prints the growth of each process; exits with 1 if a process grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = write_data(Path(name))
        run = SupervisedRun(data, Path(name) / "run", FLAGS)
        try:
            samples = sample_run(run, arguments.minutes)
        finally:
            run.end()
        starts = len(run.starts)
    table = Table("process", "steps", "memory, MB", "bytes per step", "open files", "flat")
    growths = {name: Growth.of(values) for name, values in samples.items()}
    for name, values in samples.items():
        growth = growths[name]
        memory = " -> ".join(f"{value / 1e6:.1f}" for value in growth.memory)
        files = " -> ".join(f"{value:g}" for value in growth.files)
        per_step = (growth.memory[1] - growth.memory[0]) / max(growth.steps, 1)
        table.add_row(name, str(growth.steps), memory, f"{per_step:.0f}", files, "yes" if growth.flat else "no")
        # A leak grows evenly; an allocator grows in few jumps.
        tenths = [values[index * (len(values) - 1) // 10].memory / 1e6 for index in range(11)]
        print(f"{name}, MB at every tenth of the time: {' '.join(f'{value:.0f}' for value in tenths)}")
    table.caption = f"{arguments.minutes:g} minutes, {run.step} steps, {starts - 1} restarts"
    Console(width=120).print(table)
    sys.exit(starts != 1 or not all(growth.flat for growth in growths.values()))


if __name__ == "__main__":
    main()
