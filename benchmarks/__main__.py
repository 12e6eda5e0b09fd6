"""`make bench`: every benchmark in a process of its own, one table, one JSON file.

A process of its own makes the peak of memory that of the one benchmark, and keeps caches and threads apart.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.rows import print_rows, read_rows, write_rows

BENCHMARKS = ("prepare", "input", "step", "metrics", "workers", "collectives", "start")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    console = Console(stderr=True)
    rows = []
    for name in BENCHMARKS:
        console.print(f"measuring {name}")
        path = RESULTS / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", f"--json={path}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)} failed")
        # Linux counts in KiB, of the process and, of those it waited for, the largest.
        rows += [replace(row, peak_gib=usage.ru_maxrss / (1 << 20)) for row in read_rows(path)]
    print_rows(rows)
    write_rows(rows, RESULTS / "bench.json")


if __name__ == "__main__":
    main()
