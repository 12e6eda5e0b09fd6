"""A training run, assembled: `run_training` reads top to bottom as the way from a config to a best model."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import orbit
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError, RestartError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.storage import join, load_manifest
from ssd_dist.evaluation.evaluator import DetectorEvaluator, read_ground_truth
from ssd_dist.training.boundaries import Boundaries
from ssd_dist.training.checkpoints import BestModel, CheckpointStore, first_line
from ssd_dist.training.cluster import WorkerRole, create_strategy, read_worker_role
from ssd_dist.training.judge import Judge
from ssd_dist.training.metrics_log import MetricsLog
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.progress import TrainingProgress
from ssd_dist.training.run_folder import open_run_folder
from ssd_dist.training.state import TrainState, create_state
from ssd_dist.training.trainer import DetectorTrainer

TRAIN_SPLIT = "train"


def run_training(config: Config, model_dir: str) -> dict[str, Any] | None:
    """Trains, or goes on with the run in `model_dir`; returns the content of best.json, None without evaluation.

    Raises:
      UsageError, DataError, CheckpointError: for what the user can mend.
    """
    role = read_worker_role()
    strategy = create_strategy(config.cluster)
    make_reproducible(config)
    manifest = check_data(config)
    plan = plan_training(config, manifest.split(TRAIN_SPLIT, config.data.dir), role.index, role.count)
    total_steps = config.train.steps or config.train.epochs * plan.steps_per_epoch
    if role.is_chief:
        open_run_folder(model_dir, config, manifest)
    with strategy.scope():
        state = create_state(config, len(manifest.classes), total_steps)
        store = CheckpointStore(state.checkpoint(), model_dir, config.checkpoint.keep, role.is_chief)
        store.restore_latest()
        trainer = DetectorTrainer(
            config, strategy, state, distribute_training(config, strategy, plan, state), total_steps
        )
    judge = create_judge(config, strategy, state, manifest, model_dir, role)
    boundaries = Boundaries.from_config(config, plan.steps_per_epoch, total_steps)
    log = MetricsLog(model_dir, int(state.step.numpy())) if role.is_chief else None
    with TrainingProgress(int(state.step.numpy()), total_steps, role.is_chief) as progress:
        progress.say(describe_run(config, manifest, strategy, plan, state, total_steps))
        run_loop(trainer, state, boundaries, store, judge, log, progress, role)
    return judge.best.best if judge else None


def run_loop(
    trainer: DetectorTrainer,
    state: TrainState,
    boundaries: Boundaries,
    store: CheckpointStore,
    judge: Judge | None,
    log: MetricsLog | None,
    progress: TrainingProgress,
    role: WorkerRole,
) -> None:
    """Trains from boundary to boundary: a report, an evaluation and a checkpoint, each where it is due."""

    def report(values: dict[str, float]) -> None:
        if values:
            step = int(state.step.numpy())
            progress.report(step, values)
            if log is not None:
                log.write("train", step, values)

    controller = orbit.Controller(
        global_step=state.step,
        trainer=trainer,
        evaluator=judge.evaluator if judge else None,
        steps_per_loop=boundaries.steps_to_next,
        train_actions=[report],
    )
    # Orbit prints a line a loop; `progress` says the same better.
    with contextlib.redirect_stdout(io.StringIO()), lost_peer_means_restart(role):
        while (step := int(state.step.numpy())) < boundaries.total:
            controller.train(step + boundaries.steps_to_next(step), checkpoint_at_completion=False)
            step = int(state.step.numpy())
            if judge is not None and boundaries.evaluation_due(step):
                judge.judge(controller, step, log, progress)
            if boundaries.checkpoint_due(step):
                store.save(step)


@contextlib.contextmanager
def lost_peer_means_restart(role: WorkerRole) -> Iterator[None]:
    """Turns the failure of a collective, which says that another worker is gone, into "start me again"."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if role.count == 1:
            raise
        raise RestartError(
            f"worker {role.index} of {role.count} lost a peer ({first_line(error)}); start all workers again: "
            "the run goes on from its last checkpoint"
        ) from None


def make_reproducible(config: Config) -> None:
    """Sets the Keras policy, the seeds and, if asked, deterministic kernels: all the global state there is."""
    AMPContext(config.amp).install()
    tf_keras.utils.set_random_seed(config.train.seed)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()


def check_data(config: Config) -> Manifest:
    """The manifest of the data, found fit for this config.

    Raises:
      DataError: if it is missing, does not fit, or a split leaks into another.
    """
    manifest = load_manifest(config.data)
    path = join(config.data.dir, MANIFEST_NAME)
    manifest.check_fits(config, path)
    leaks = [leak for leak in manifest.leakage if TRAIN_SPLIT in leak.splits]
    if leaks and not config.data.allow_leakage:
        leak = leaks[0]
        raise DataError(
            f"{path}: {leak.images} images are in both {leak.splits[0]} and {leak.splits[1]} "
            f"(e.g. {', '.join(leak.examples[:2])}): the evaluation would be worthless; take them out of one, "
            "or set data.allow_leakage: true"
        )
    return manifest


def distribute_training(
    config: Config, strategy: tf.distribute.Strategy, plan: EpochPlan, state: TrainState
) -> tf.distribute.DistributedDataset:
    """The training batches of every replica, from the state's step on.

    Raises:
      UsageError: if the global batch does not divide over the replicas.
    """
    replicas = strategy.num_replicas_in_sync
    batch_size, rest = divmod(config.train.global_batch_size, replicas)
    if rest:
        raise UsageError(
            f"train.global_batch_size: {config.train.global_batch_size} does not divide over {replicas} replicas; "
            f"use {max(batch_size, 1) * replicas} or {(batch_size + 1) * replicas}"
        )
    start_step = int(state.step.numpy())
    return strategy.distribute_datasets_from_function(lambda _: training_batches(config, plan, batch_size, start_step))


def create_judge(
    config: Config,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    manifest: Manifest,
    model_dir: str,
    role: WorkerRole,
) -> Judge | None:
    """The evaluation of this run; None if the data has no split to evaluate on.

    Raises:
      DataError: if `eval.split` names a split that is not there.
    """
    split_name = manifest.eval_split(config.eval.split, config.data.dir)
    if split_name is None or not (config.eval.every_epochs or config.eval.every_steps):
        return None
    split = manifest.splits[split_name]
    truths = read_ground_truth(config, split)
    evaluator = DetectorEvaluator(config, strategy, state.model, split, [truth.source_id for truth in truths])
    best = BestModel(state.model, model_dir, config.eval.metric, role.is_chief)
    return Judge(strategy, evaluator, state, best, truths, manifest.classes, config.eval.metric)


def describe_run(
    config: Config,
    manifest: Manifest,
    strategy: tf.distribute.Strategy,
    plan: EpochPlan,
    state: TrainState,
    total_steps: int,
) -> str:
    """The first line a user sees: what is trained on what."""
    parameters = sum(variable.shape.num_elements() for variable in state.model.trainable_variables)
    start = int(state.step.numpy())
    return (
        f"{parameters / 1e6:.1f} M parameters, {len(manifest.classes)} classes, "
        f"{manifest.splits[TRAIN_SPLIT].images} images; {strategy.num_replicas_in_sync} replicas, "
        f"global batch {config.train.global_batch_size}, {plan.steps_per_epoch} steps an epoch; "
        + (f"goes on from step {start} to {total_steps}" if start else f"{total_steps} steps")
    )
