"""Runs all benchmarks (`make bench`), prints the machine and one table, and writes one JSON file.

Each benchmark runs in a separate process, so that the peak memory is that of this benchmark and benchmarks share no
caches or threads.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.machine import print_machine
from benchmarks.rows import print_rows, read_rows, write_rows

BENCHMARKS = ("prepare", "matching", "input", "step", "reduction", "metrics", "workers", "collectives", "start")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    console = Console(stderr=True)
    rows = []
    print_machine()
    for name in BENCHMARKS:
        console.print(f"measuring {name}")
        path = RESULTS / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", f"--json={path}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"benchmark {name} failed; run it alone to see the error: {' '.join(command)}")
        # Linux reports KiB: the maximum over the process and its waited-for children.
        rows += [replace(row, peak_gib=usage.ru_maxrss / (1 << 20)) for row in read_rows(path)]
    print_rows(rows)
    write_rows(rows, RESULTS / "bench.json")


if __name__ == "__main__":
    main()
