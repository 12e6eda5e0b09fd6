"""What must hold before and while workers train together, and what it means when it does not."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

from ssd_dist.cluster.collectives import WorkerSum
from ssd_dist.cluster.rendezvous import WorkerDescription
from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import flatten_config
from ssd_dist.core.errors import DataError, RestartError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Manifest
from ssd_dist.data.corrupt_records import CorruptRecord, explain_failure, verify_shards
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.shard_files import join, load_manifest


def check_data(config: Config) -> Manifest:
    """The manifest of the data, found fit for this config.

    Raises:
      DataError: if it is missing, does not fit, or a split leaks into another.
    """
    manifest = load_manifest(config.data)
    path = join(config.data.dir, MANIFEST_NAME)
    manifest.check_fits(config, path)
    # A figure over fewer images would be another figure: nothing is skipped here.
    judged = manifest.eval_split(config.eval.split, config.data.dir)
    if judged is not None:
        strict = config.data.model_copy(update={"on_corrupt": "fail"})
        verify_shards(manifest.splits[judged].views[0].shards, config.model.input_size, strict)
    leaks = [leak for leak in manifest.leakage if TRAIN_SPLIT in leak.splits]
    if leaks and not config.data.allow_leakage:
        leak = leaks[0]
        raise DataError(
            f"{path}: {leak.images} images are in both {leak.splits[0]} and {leak.splits[1]} "
            f"(e.g. {', '.join(leak.examples[:2])}): the evaluation would be worthless; take them out of one, "
            "or set data.allow_leakage: true"
        )
    return manifest


def check_same_start(step: int, worker_sum: WorkerSum, role: WorkerRole, model_dir: str) -> None:
    """Checks that all workers restored the same checkpoint; collective.

    Raises:
      UsageError: if one of them sees no run at all: it does not see the same folder.
      RestartError: if all see one, but not the same checkpoint.
    """
    chief_step = int(worker_sum.from_chief(step, role.is_chief))
    if not worker_sum.any(step != chief_step):
        return
    mine = f"this one, {role.index}," if step != chief_step else "another"
    text = f"the chief goes on from step {chief_step} and a worker, {mine} from another step"
    if worker_sum.any(step == 0):
        raise UsageError(f"{text}: --model_dir={model_dir} must be one folder that all workers share")
    # What a host knows of a folder of NFS may be some seconds old.
    raise RestartError(
        f"{text}: start again, when all see the newest checkpoint; --model_dir={model_dir} must be one folder that all "
        "workers share"
    )


def check_steps_left(step: int, total_steps: int, model_dir: str) -> None:
    """Checks that a restored run is not beyond its end.

    Raises:
      UsageError: if it is: its last steps cannot be taken back.
    """
    if step > total_steps:
        raise UsageError(
            f"--model_dir={model_dir} holds a run at step {step}, and train.epochs or train.steps end it at "
            f"{total_steps}: raise them, or use another --model_dir"
        )


def describe_worker(
    role: WorkerRole, config: Config, manifest: Manifest, replaced: Sequence[CorruptRecord]
) -> WorkerDescription:
    """What the other workers must agree with."""
    facts = {
        **{key: repr(value) for key, value in flatten_config(config).items()},
        "dataset.json": hashlib.sha256(manifest.to_json().encode()).hexdigest()[:12],
        "number of corrupt records": str(len(replaced)),
        "list of corrupt records": hashlib.sha256(repr(replaced).encode()).hexdigest()[:12],
        "TensorFlow": tf.__version__,
        # Collectives of hosts with unlike numbers of replicas hang.
        "number of GPUs": str(len(tf.config.list_physical_devices("GPU"))),
    }
    return WorkerDescription(role.index, role.addresses, facts)


@contextlib.contextmanager
def explain_bad_record(config: Config, manifest: Manifest, plan: EpochPlan) -> Iterator[None]:
    """Looks for the record that made TensorFlow's reader fail.

    Raises:
      DataError: with shard and record; RestartError where the next start leaves it out.
    """
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
        found = explain_failure(plan, manifest.splits[TRAIN_SPLIT], config)
        if found is None:
            raise
        if config.data.on_corrupt == "skip":
            raise RestartError(f"{found}: corrupt since the start; start again to go on without it") from None
        raise DataError(
            f"shard {join(config.data.dir, found)}; prepare the data again, or set data.on_corrupt: skip to do without"
        ) from None
