"""The run folder: stores the config and the manifest of a run, so that later commands need no other input."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config, flatten_config, load_stored_config
from ssd_dist.core.errors import CheckpointError, DataError, UsageError
from ssd_dist.core.folder_names import CONFIG_NAME, check_folder_name
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Manifest
from ssd_dist.core.printable import print_line
from ssd_dist.core.storage import is_remote, join, write_text
from ssd_dist.data.corrupt_records import CorruptRecord
from ssd_dist.runs.checkpoints import complete_checkpoints, read_best
from ssd_dist.runs.gfile_storage import explain_write_errors
from ssd_dist.runs.run_lock import RunLock, lock_run_folder

SKIPPED_NAME = "skipped_records.jsonl"
DIVERGENCES_NAME = "blowups.jsonl"
# The ids of the run in trackers.
WANDB_RUN_NAME = "wandb_run_id"
MLFLOW_RUN_NAME = "mlflow_run_id"

# Keys, and prefixes of keys, that may change when a run is resumed: they affect neither what is learned from a batch
# nor which model is the best.
_MAY_CHANGE = (
    "data.dir", "data.cache_dir", "data.on_corrupt", "train.epochs", "train.steps", "train.log_every",
    "train.steps_per_loop", "train.stall_seconds", "train.recover_from_blowup", "train.early_stopping",
    "eval.every_epochs", "eval.every_steps", "eval.batch_size", "checkpoint.", "preemption.", "cluster.", "tracking.",
)  # fmt: skip

# The best model by the metric on evaluation data that was replaced.
OTHER_BEST_NAME = "best_on_earlier_data"


def open_run_folder(model_dir: str, config: Config, manifest: Manifest, allow_new_data: bool = False) -> RunLock:
    """Writes config and manifest into the run folder, or checks that the run in it can be resumed with them.

    Args:
      model_dir: the run folder; it is created if it does not exist.
      config: the config of the run.
      manifest: the manifest of the data.
      allow_new_data: whether a run may be resumed on other data than it was trained on so far.

    Returns:
      The lock of the folder, which this process holds until it ends.

    Raises:
      UsageError: if the folder has a run with another config or on other data, another process trains in it, or it
        cannot be created.
      CheckpointError: if the run in it was trained on other classes, or the files cannot be written.
    """
    folder = Path(model_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_run_folder(model_dir)
        lock.check()
        check_same_run(model_dir, config, manifest, allow_new_data)
        if allow_new_data and has_saved_run(model_dir):
            _set_aside_best(folder, config, manifest)
    except OSError as error:
        raise UsageError(f"--model_dir={model_dir} cannot be written: {error}; use a writable folder") from None
    # The config is written last: a folder with a config is a run.
    stored = dump_config(_make_paths_absolute(config))
    if not has_saved_run(model_dir):
        with explain_write_errors(model_dir):
            _remove_unsaved_run(folder, stored)
    for name, text in ((MANIFEST_NAME, manifest.to_json()), (CONFIG_NAME, stored)):
        path = folder / name
        with explain_write_errors(str(path)):
            if not path.exists() or path.read_bytes() != text.encode():
                write_text(str(path), text)
    return lock


def read_run_folder(model_dir: str, overrides: Sequence[str] = ()) -> tuple[Config, Manifest]:
    """Reads the config and the manifest of a run.

    Args:
      model_dir: the run folder.
      overrides: config keys to change, as `a.b=c`.

    Raises:
      CheckpointError: if there is no run in the folder, or its manifest cannot be read.
      UsageError: if the name of the folder or an override is not valid, or the folder cannot be read.
    """
    check_folder_name(model_dir)
    folder = Path(model_dir)
    try:
        for name in (CONFIG_NAME, MANIFEST_NAME):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} is not a run: it has no {name}; use the --model_dir of a training run")
        data = (folder / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise UsageError(f"--model_dir={folder} cannot be read: {error}; check its name and permissions") from None
    config = load_stored_config(folder / CONFIG_NAME, overrides)
    try:
        return config, Manifest.from_json(data, str(folder / MANIFEST_NAME))
    except DataError as error:
        # Preparing again would not write this copy.
        problem = str(error).partition(";")[0]
        fix = f"replace it by {join(config.data.dir, MANIFEST_NAME)}, from which it was copied"
        raise CheckpointError(f"{problem}; {fix}") from None


def has_saved_run(model_dir: str) -> bool:
    """Returns whether the folder has a run that saved a checkpoint; any other run is replaced by the next one.

    Raises:
      CheckpointError: if `best.json` of the run cannot be read.
    """
    folder = Path(model_dir)
    return (folder / CONFIG_NAME).exists() and bool(
        complete_checkpoints(str(folder / "checkpoints")) or read_best(model_dir)
    )


def check_same_run(model_dir: str, config: Config, manifest: Manifest, allow_new_data: bool = False) -> None:
    """Checks that the run in the folder, if it has saved a checkpoint, can be resumed with this config and manifest.

    Raises:
      UsageError: if the run has another config or, without `allow_new_data`, was trained on other data.
      CheckpointError: if the run was trained on other classes.
    """
    if not has_saved_run(model_dir):
        return
    folder = Path(model_dir)
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
    if allow_new_data:
        return
    evaluated, selected = (one.eval_split(config.eval.split, config.data.dir) for one in (before_manifest, manifest))
    if evaluated not in (None, selected):
        # The metric of the best model would be compared with that on other images.
        raise UsageError(
            f"--model_dir={folder} has a run that is evaluated on split {evaluated}; {config.data.dir} now has split "
            f"{selected}, which eval.split: auto selects instead; use another --model_dir, or --allow_new_data to "
            f"evaluate on {selected} from now on"
        )
    other = _find_other_split(before_manifest, manifest, config)
    if other is not None:
        raise UsageError(
            f"--model_dir={folder} has a run on other data: split {other} of {config.data.dir} has other records than "
            "the run was started with; use the data of the run, another --model_dir, or --allow_new_data to continue "
            "the run on this data"
        )


def _find_other_split(before: Manifest, now: Manifest, config: Config) -> str | None:
    """Returns the first split that the run trains or evaluates on and whose records have changed; None if none has."""
    for name in dict.fromkeys((TRAIN_SPLIT, before.eval_split(config.eval.split, config.data.dir))):
        if name is not None and _list_checksums(before, name, config) != _list_checksums(now, name, config):
            return name
    return None


def _remove_unsaved_run(folder: Path, stored: str) -> None:
    """Removes the files of a run with another config that never saved a checkpoint, such as its ids in trackers."""
    config = folder / CONFIG_NAME
    if not config.exists() or config.read_bytes() == stored.encode():
        return
    for name in (WANDB_RUN_NAME, MLFLOW_RUN_NAME, DIVERGENCES_NAME):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _set_aside_best(folder: Path, config: Config, manifest: Manifest) -> None:
    """Renames the best model if its metric was measured on other records: no later value could be compared with it."""
    before = read_run_folder(str(folder))[1]
    name = before.eval_split(config.eval.split, config.data.dir)
    if name is None or not (folder / "best").exists():
        return
    is_same = name == manifest.eval_split(config.eval.split, config.data.dir)
    if not is_same or _list_checksums(before, name, config) != _list_checksums(manifest, name, config):
        aside, number = folder / OTHER_BEST_NAME, 1
        while aside.exists():
            number += 1
            aside = folder / f"{OTHER_BEST_NAME}_{number}"
        (folder / "best").rename(aside)
        print_line(f"split {name} has other records than before: the best model so far is in {aside}")


def _list_checksums(manifest: Manifest, split: str, config: Config) -> list[str]:
    """Returns the checksums of the shards that a run reads, in the order of the shards."""
    views = manifest.split(split, config.data.dir).views[: config.data.views]
    return [shard.sha256 for view in views for shard in view.shards]


def _make_paths_absolute(config: Config) -> Config:
    """Returns the config with absolute paths of the data, so that later commands work from any folder."""
    paths = {name: path for name in ("dir", "cache_dir") if (path := getattr(config.data, name))}
    absolute = {name: path if is_remote(path) else os.path.abspath(path) for name, path in paths.items()}
    return config.model_copy(update={"data": config.data.model_copy(update=absolute)})


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
