"""Checks that run before and during training; each failure explains what is wrong."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from ssd_dist.cluster.collectives import WorkerCollectives
from ssd_dist.cluster.rendezvous_messages import WorkerDescription
from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.core.config import Config, DataConfig
from ssd_dist.core.errors import DataError, RestartError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Manifest
from ssd_dist.core.storage import join
from ssd_dist.data.corrupt_records import CorruptRecord, verify_shards
from ssd_dist.runs.environment import ENVIRONMENT_NAME

# Longer than the clients of NFS keep the listing of a folder (60 s by default).
_VISIBLE_SECONDS = 65.0


def choose_evaluated_split(manifest: Manifest, config: Config) -> str | None:
    """Returns the name of the split that a run evaluates on; None if it does not evaluate.

    Raises:
      DataError: if the run evaluates and the data has no split with the name of `eval.split`.
      UsageError: if `train.early_stopping` needs evaluations and there are none.
    """
    split = manifest.eval_split(config.eval.split, config.data.dir) if config.eval.enabled else None
    if split is None and config.train.early_stopping:
        raise UsageError(
            f"train.early_stopping: {config.train.early_stopping} needs evaluations, but the run has none; prepare a "
            "val or test split and set eval.every_epochs, or set train.early_stopping: 0"
        )
    return split


def check_data(manifest: Manifest, data: DataConfig, evaluated: str | None, input_size: int) -> None:
    """Checks the shards of the evaluation split, and that no image of the training split is in another split.

    Args:
      manifest: the manifest of the prepared data.
      data: where the data is, and whether leakage is allowed.
      evaluated: the name of the split that the run evaluates on; None if it does not evaluate.
      input_size: side of the prepared images in pixels.

    Raises:
      DataError: if a shard is missing or damaged, or a split leaks into another.
    """
    path = join(data.dir, MANIFEST_NAME)
    if evaluated is not None:
        verify_shards(manifest.splits[evaluated].views[0].shards, input_size, data, evaluates=True)
    leaks = [leak for leak in manifest.leakage if TRAIN_SPLIT in leak.splits]
    if leaks and not data.allow_leakage:
        leak = leaks[0]
        raise DataError(
            f"{path}: {leak.images} images are in both {leak.splits[0]} and {leak.splits[1]} "
            f"(e.g. {', '.join(leak.examples[:2])}), so metrics would be too high; remove them from one of the two "
            "splits, or set data.allow_leakage: true"
        )


def check_same_folder(collectives: WorkerCollectives, role: WorkerRole, model_dir: str) -> None:
    """Checks that all workers see the chief's run folder; a collective, so all workers must call it.

    Otherwise the other workers would find no checkpoint after hours, when the job starts again.

    Args:
      collectives: exchanges numbers between workers.
      role: this worker's role.
      model_dir: the run folder, in which the chief has written the environment of the run.

    Raises:
      UsageError: if a worker does not see the file of the chief.
    """
    path = Path(model_dir) / ENVIRONMENT_NAME
    chief = int(collectives.broadcast_from_chief(_digest_file(path) if role.is_chief else 0, role.is_chief))
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not (is_seen := _digest_file(path) == chief) and time.monotonic() < deadline:
        time.sleep(1)
    if collectives.any(not is_seen):
        worker = "another worker" if is_seen else f"this worker ({role.index})"
        raise UsageError(
            f"--model_dir={model_dir}: {worker} does not see the {ENVIRONMENT_NAME} that the chief wrote there; use "
            "one folder that all workers share"
        )


def check_same_start(step: int, collectives: WorkerCollectives, role: WorkerRole, model_dir: str) -> None:
    """Checks that all workers restored the same checkpoint; a collective, so all workers must call it.

    Args:
      step: the step this worker restored; 0 if it found no checkpoint.
      collectives: exchanges numbers between workers.
      role: this worker's role.
      model_dir: the run folder, for the message.

    Raises:
      UsageError: if some workers found a run and others none: they do not share one folder.
      RestartError: if all workers found a run, but not the same checkpoint.
    """
    chief_step = int(collectives.broadcast_from_chief(step, role.is_chief))
    if not collectives.any(step != chief_step):
        return
    worker = f"this worker ({role.index})" if step != chief_step else "another worker"
    problem = f"--model_dir={model_dir}: the chief resumes at step {chief_step}, but {worker} at a different step"
    if collectives.any(step == 0):
        raise UsageError(f"{problem}; use one folder that all workers share")
    # The directory listing of an NFS folder may be some seconds old.
    raise RestartError(
        f"{problem}; start again when all workers see the newest checkpoint, and use one folder that all workers share"
    )


def check_same_statistics(variables: Sequence[tf.Variable], collectives: WorkerCollectives, role: WorkerRole) -> None:
    """Checks that all workers start with the same moving statistics; a collective, so all workers must call it.

    They come from a checkpoint or from a file of weights that each worker reads itself. The weights are those of the
    chief (`share_initial_weights`).

    Args:
      variables: the variables of the model; only those that synchronize on read are compared.
      collectives: exchanges numbers between workers.
      role: this worker's role.

    Raises:
      UsageError: if the statistics differ.
    """
    digest = hashlib.sha256()
    for variable in variables:
        if variable.synchronization == tf.VariableSynchronization.ON_READ:
            # Reading the distributed variable would average it over all workers.
            digest.update(variable.values[0].numpy().tobytes())
    own = _to_number(digest.digest())
    chief = int(collectives.broadcast_from_chief(own, role.is_chief))
    if collectives.any(own != chief):
        raise UsageError(
            "the workers start from different batch-norm statistics: backbone.weights or model.init_from is another "
            "file on one of them; use one file that all workers share"
        )


def check_steps_left(step: int, total_steps: int, model_dir: str) -> None:
    """Checks that a restored run is not beyond its last step.

    Raises:
      UsageError: if it is, because steps cannot be undone.
    """
    if step > total_steps:
        raise UsageError(
            f"--model_dir={model_dir} holds a run at step {step}, but train.epochs or train.steps end it at "
            f"{total_steps}; raise them, or use another --model_dir"
        )


def describe_worker(
    role: WorkerRole, config_values: Mapping[str, Any], manifest: Manifest, replaced: Sequence[CorruptRecord]
) -> WorkerDescription:
    """Describes what must be equal on all workers.

    Args:
      role: this worker's role.
      config_values: every value of the config by its dotted key.
      manifest: the manifest of the data.
      replaced: corrupt records that this worker replaces.
    """
    facts = {
        **{key: repr(value) for key, value in config_values.items()},
        "dataset.json": hashlib.sha256(manifest.to_json().encode()).hexdigest()[:12],
        "number of corrupt records": str(len(replaced)),
        "list of corrupt records": hashlib.sha256(repr(replaced).encode()).hexdigest()[:12],
        "TensorFlow": tf.__version__,
        # Collectives hang if hosts have different numbers of replicas.
        "number of GPUs": str(len(tf.config.list_physical_devices("GPU"))),
    }
    return WorkerDescription(role.index, role.addresses, facts)


@contextlib.contextmanager
def explain_bad_record(
    find_change: Callable[[], str | None], find_bad_record: Callable[[], str | None], data: DataConfig
) -> Iterator[None]:
    """Context manager that replaces TensorFlow reader errors with an error that reports the shard and record.

    Args:
      find_change: returns which shard has changed since the start of the run, or None if none has.
      find_bad_record: searches the shards; returns shard and record, or None if all records are valid.
      data: where the data is, and what to do with corrupt records.

    Raises:
      DataError: if a shard changed or a record is corrupt.
      RestartError: if a record is corrupt and `data.on_corrupt` is `skip`; the restarted run skips it.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if change := find_change():
            raise DataError(f"{change}; the run resumes from its last checkpoint") from None
        # A dataset with an unexpected number of records is a failed precondition, but so are many other errors.
        miscounted = isinstance(error, tf.errors.FailedPreconditionError) and "dataset was expected" in str(error)
        if not miscounted and not isinstance(error, tf.errors.DataLossError | tf.errors.InvalidArgumentError):
            raise
        found = find_bad_record()
        if found is None:
            raise
        if data.on_corrupt == "skip":
            raise RestartError(f"{found}: became corrupt after the run started; start again to skip it") from None
        raise DataError(
            f"shard {join(data.dir, found)}; prepare the data again, or set data.on_corrupt: skip to skip the record"
        ) from None


def _digest_file(path: Path) -> int:
    """Returns a number that the content of a file determines; 0 if the file cannot be read."""
    try:
        return _to_number(hashlib.sha256(path.read_bytes()).digest())
    except OSError:
        return 0


def _to_number(digest: bytes) -> int:
    """Returns the first 48 bits of a digest, which float64 represents exactly."""
    return int.from_bytes(digest[:6], "big")
