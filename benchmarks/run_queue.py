"""Runs the processes of a study, each on cores of its own, and records each result as soon as it is known."""

import json
import queue
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

RunT = TypeVar("RunT")


def run_all(
    runs: Sequence[RunT],
    groups: Sequence[Sequence[int]],
    train: Callable[[RunT, Sequence[int]], dict[str, Any]],
    describe: Callable[[dict[str, Any]], str],
    results: Path,
) -> None:
    """Trains runs, one at a time on each group of cores, and appends their results to a file of JSON lines.

    Ends the program with a message if runs failed.

    Args:
      runs: the runs without a recorded result.
      groups: the groups of cores.
      train: trains a run on the given cores and returns its result; fails with `subprocess.SubprocessError`.
      describe: returns a line about a result.
      results: the file.
    """
    free: queue.SimpleQueue[Sequence[int]] = queue.SimpleQueue()
    for group in groups:
        free.put(group)

    def train_on_free_cores(run: RunT) -> dict[str, Any]:
        group = free.get()
        try:
            return train(run, group)
        finally:
            free.put(group)

    console = Console(stderr=True)
    failed = 0
    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [pool.submit(train_on_free_cores, run) for run in runs]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                try:
                    result = future.result()
                except subprocess.SubprocessError as error:
                    failed += 1
                    console.print(f"{number} of {len(futures)} failed: {error}\n{(error.stderr or '')[-1000:]}")
                    continue
                with results.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                console.print(f"{number} of {len(futures)}: {describe(result)}")
        finally:
            # Ctrl-C ends the running processes; waiting runs must not start.
            pool.shutdown(cancel_futures=True)
    if failed:
        sys.exit(f"{failed} runs failed; run the command again to repeat them")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Reads recorded results, one dict per run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
