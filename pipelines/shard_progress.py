"""What a person sees while a job runs on this machine: shards done of how many, and bytes written.

The output folder is watched rather than the runner: it tells the same for one process, for many and for Dask.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines import beam_storage
from pipelines.split_report import PARTS_FOLDER

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Written:
    """What a split's folder holds so far; `total` shards is 0 until the first of them is begun."""

    shards: int = 0
    total: int = 0
    bytes: int = 0


def count_written(folder: Path, since: float) -> Written:
    """Counts what was written from the time `since` on, by name and size alone; half-written shards count as bytes."""
    shards = total = size = 0
    for path in (*folder.glob("*.tfrecord*"), *folder.glob(f"{PARTS_FOLDER}/*.json")):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        number = re.search(r"-of-(\d+)\.", path.name)
        if number is None or found.st_mtime < since:
            continue
        total = int(number[1])
        if path.parent.name == PARTS_FOLDER:
            shards += beam_storage.storage.TEMPORARY not in path.name
        else:
            size += found.st_size
    return Written(shards, total, size)


@contextmanager
def show_progress(output: str, split: str, keeps_finished: bool, console: Console) -> Iterator[None]:
    """Shows how far the split has come as long as the block runs, if there is a terminal and the output is near.

    With `keeps_finished` shards of an earlier run count too.
    """
    if beam_storage.is_remote(output) or not console.is_terminal:
        yield
        return
    # Some file systems keep whole seconds.
    since = 0.0 if keeps_finished else float(int(time.time()))
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[size]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading annotations", total=None, size="")
        done = threading.Event()

        def look() -> None:
            while not done.wait(SECONDS_BETWEEN_LOOKS):
                written = count_written(Path(output) / split, since)
                if written.total:
                    bar.update(
                        task,
                        description=f"shard {written.shards} of {written.total}",
                        completed=written.shards,
                        total=written.total,
                        size=f"{written.bytes / 1e6:.0f} MB",
                    )

        watcher = threading.Thread(target=look, name="progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
