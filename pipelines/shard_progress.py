"""Shows a progress bar while a job runs on this machine: finished shards, total shards and bytes written.

The bar watches the output folder and not the runner, so that it works alike with one process, several, or Dask.
"""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.split_folder import PARTS_FOLDER
from ssd_dist.core.storage import TEMPORARY, is_remote

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Written:
    """What the folder of a split contains so far; `total` is 0 until the first shard is started."""

    shards: int = 0
    total: int = 0
    bytes: int = 0


def count_written(folder: Path, since: float) -> Written:
    """Counts the finished shards, and the bytes of finished and unfinished ones, from file names and sizes.

    Args:
      folder: the folder of the split.
      since: files last modified before this time are not counted, in seconds since the epoch.
    """
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
            shards += TEMPORARY not in path.name
        else:
            size += found.st_size
    return Written(shards, total, size)


def create_console(stream: TextIO) -> Console:
    """Returns a console that draws only on a terminal; rich itself also draws if Jupyter has set FORCE_COLOR."""
    return Console(file=stream, force_terminal=stream.isatty())


@contextmanager
def show_progress(output: str, splits: Sequence[str], keeps_finished: bool, console: Console) -> Iterator[None]:
    """Shows the progress of the job while the block runs; does nothing without a terminal or with remote output.

    Args:
      output: folder of the manifest.
      splits: names of the splits that the job writes.
      keeps_finished: whether finished shards of an earlier run are counted.
      console: where the bar is drawn.
    """
    if is_remote(output) or not console.is_terminal:
        yield
        return
    # Rounded down, because some file systems store modification times in whole seconds.
    since = 0.0 if keeps_finished else float(int(time.time()))
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[size]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading annotations", total=None, size="")
        done = threading.Event()

        def update_bar() -> None:
            while not done.wait(POLL_SECONDS):
                counts = [count_written(Path(output) / split, since) for split in splits]
                written = Written(*(sum(values) for values in zip(*map(astuple, counts), strict=True)))
                if written.total:
                    bar.update(
                        task,
                        description=f"shard {written.shards} of {written.total}",
                        completed=written.shards,
                        total=written.total,
                        size=f"{written.bytes / 1e6:.0f} MB",
                    )

        watcher = threading.Thread(target=update_bar, name="progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
