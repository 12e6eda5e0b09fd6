"""The run folder: stores the config and the manifest of a run, so that later commands need no other input."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config, flatten_config, load_config
from ssd_dist.core.errors import CheckpointError, UsageError
from ssd_dist.core.folder_names import check_folder_name
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest
from ssd_dist.core.printable import print_line
from ssd_dist.core.storage import write_text
from ssd_dist.data.corrupt_records import CorruptRecord
from ssd_dist.runs.gfile_storage import explain_write_errors

CONFIG_NAME = "config.yaml"
SKIPPED_NAME = "skipped_records.jsonl"
LOCK_NAME = ".lock"

# Longer than NFS keeps the lock of a lost host (90 s), and longer than a run takes to save and exit.
_LOCK_SECONDS = 100.0

# Keys, and prefixes of keys, that may change when a run is resumed: they affect neither what is learned from a batch
# nor which model is the best.
_MAY_CHANGE = (
    "data.dir", "data.cache_dir", "data.on_corrupt", "train.epochs", "train.steps", "train.log_every",
    "train.steps_per_loop", "train.stall_seconds", "train.recover_from_blowup", "train.early_stopping",
    "eval.every_epochs", "eval.every_steps", "eval.batch_size", "checkpoint.", "preemption.", "cluster.", "tracking.",
)  # fmt: skip


def open_run_folder(model_dir: str, config: Config, manifest: Manifest) -> None:
    """Writes config and manifest into the run folder, or checks that the run in it can be resumed with them.

    Locks the folder for this process.

    Raises:
      UsageError: if the folder has a run with another config, another process trains in it, or it cannot be created.
      CheckpointError: if the run in it was trained on other classes, or the files cannot be written.
    """
    folder = Path(model_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_run_folder(model_dir)
        check_same_run(model_dir, config, manifest)
    except OSError as error:
        raise UsageError(f"--model_dir={model_dir} cannot be written: {error}; use a writable folder") from None
    # The config is written last: a folder with a config is a run.
    for name, text in ((MANIFEST_NAME, manifest.to_json()), (CONFIG_NAME, dump_config(config))):
        path = folder / name
        with explain_write_errors(str(path)):
            if not path.exists() or path.read_text() != text:
                write_text(str(path), text)


def lock_run_folder(model_dir: str) -> None:
    """Locks the run folder until this process ends; waits for another process that is about to exit.

    Raises:
      UsageError: if another process still trains in the folder after `_LOCK_SECONDS`.
      OSError: if the folder cannot be written.
    """
    path = Path(model_dir) / LOCK_NAME
    # Never closed: closing the file releases the lock. The operating system closes it when the process ends.
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + _LOCK_SECONDS
    reported = False
    while not _try_lock(lock):
        owner = " ".join(path.read_text().split())
        text = f"--model_dir={model_dir}: another process trains in this folder ({owner})"
        if time.monotonic() > deadline:
            raise UsageError(
                f"{text}; stop it, or use another --model_dir; if its host no longer exists, delete {path}"
            )
        if not reported:
            print_line(f"{text}; waiting up to {_LOCK_SECONDS:g} s for it to exit", sys.stderr)
            reported = True
        time.sleep(0.5)
    # The owner is only for the message above; on a full disk the lock works without it.
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"host {socket.gethostname()}, process {os.getpid()}\n".encode(), 0)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Any other error means that the file system does not support locks.
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def read_run_folder(model_dir: str, overrides: Sequence[str] = ()) -> tuple[Config, Manifest]:
    """Reads the config and the manifest of a run.

    Args:
      model_dir: the run folder.
      overrides: config keys to change, as `a.b=c`.

    Raises:
      CheckpointError: if there is no run in the folder.
      UsageError: if the name of the folder or an override is not valid.
    """
    check_folder_name(model_dir)
    folder = Path(model_dir)
    for name in (CONFIG_NAME, MANIFEST_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a run: it has no {name}; use the --model_dir of a training run")
    manifest_path = folder / MANIFEST_NAME
    return load_config(folder / CONFIG_NAME, overrides), Manifest.from_json(
        manifest_path.read_bytes(), str(manifest_path)
    )


def check_same_run(model_dir: str, config: Config, manifest: Manifest) -> None:
    """Checks that the run in the folder, if there is one, can be resumed with this config and manifest.

    Raises:
      UsageError: if the run has another config.
      CheckpointError: if the run was trained on other classes.
    """
    folder = Path(model_dir)
    if not (folder / CONFIG_NAME).exists():
        return
    before_config, before_manifest = read_run_folder(model_dir)
    before, now = flatten_config(before_config), flatten_config(config)
    changed = [key for key in now if now[key] != before[key] and not key.startswith(_MAY_CHANGE)]
    if changed:
        key = changed[0]
        raise UsageError(
            f"--model_dir={folder} has a run with {key}: {before[key]!r}, this config has {now[key]!r}; "
            "use another --model_dir, or the same config to resume the run"
        )
    if before_manifest.classes != manifest.classes:
        raise CheckpointError(
            f"--model_dir={folder} has a run on classes {', '.join(before_manifest.classes)}; the data has "
            f"{', '.join(manifest.classes)}; use another --model_dir"
        )


def write_skipped_records(model_dir: str, records: Sequence[CorruptRecord]) -> None:
    """Writes the records that this start skips, with the reasons; removes the file if there are none.

    Raises:
      UsageError: if the folder cannot be written.
    """
    path = Path(model_dir) / SKIPPED_NAME
    try:
        if records:
            path.write_text("".join(json.dumps(vars(record)) + "\n" for record in records))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--model_dir={model_dir} cannot be written: {error}; use a writable folder") from None
