"""Measures, prints and stores the rows of all benchmarks: each compares a value with a reference from the same run.

Each benchmark is a module that prints its rows as a table and, with `--json=FILE`, writes them to a file.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """A measured value and its reference.

    Attributes:
      what: the measured work.
      unit: unit of both values.
      ours: the value of this project.
      reference: the value of the reference.
      beside: a description of the reference.
      peak_gib: peak memory of the benchmark in GiB.
    """

    what: str
    unit: str
    ours: float
    reference: float
    beside: str
    peak_gib: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.reference


def take_turns(
    ours: Callable[[], object],
    reference: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Returns the median seconds of two functions, called alternately; the first round is a warm-up and not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(rounds + 1):
        for function, seconds in zip((ours, reference), times, strict=True):
            started = clock()
            function()
            if round_number:
                seconds.append(clock() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def print_rows(rows: Sequence[Row]) -> None:
    """Prints the rows as a table."""
    table = Table("work", "ours", "reference", "unit", "ours / reference", "compared with", "peak GiB")
    for row in rows:
        peak = "" if row.peak_gib is None else f"{row.peak_gib:.2f}"
        ratio = f"{row.ratio:.3f}"
        table.add_row(row.what, f"{row.ours:.3g}", f"{row.reference:.3g}", row.unit, ratio, row.beside, peak)
    Console(width=140).print(table)


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Reads the rows that `write_rows` wrote."""
    rows = json.loads(path.read_text())
    return [Row(**{key: value for key, value in row.items() if key != "ratio"}) for row in rows]


def run_benchmark(measure: Callable[[], list[Row]], description: str) -> None:
    """Runs a benchmark from the command line: measures, prints and, with `--json`, writes the rows."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--json", type=Path, help="JSON file to write the rows to")
    arguments = parser.parse_args()
    rows = measure()
    print_rows(rows)
    if arguments.json:
        write_rows(rows, arguments.json)
