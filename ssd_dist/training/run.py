"""A training run, assembled: `run_training` reads top to bottom as the way from a config to a best model."""

import contextlib
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orbit
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import flatten_config
from ssd_dist.core.errors import DataError, RestartError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Manifest
from ssd_dist.data.integrity import CorruptRecord, explain_failure, secure_plan, secure_shards
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.storage import join, load_manifest
from ssd_dist.evaluation.evaluator import DetectorEvaluator, Interrupted, read_ground_truth
from ssd_dist.training.agreement import WorkerSum
from ssd_dist.training.blowup import Blowup, read_source_ids, write_blowup
from ssd_dist.training.boundaries import Boundaries
from ssd_dist.training.checkpoints import BestModel, CheckpointStore
from ssd_dist.training.cluster import START_SECONDS, WorkerRole, create_strategy, read_worker_role
from ssd_dist.training.durable import first_line, write_errors
from ssd_dist.training.environment import describe_environment, write_environment
from ssd_dist.training.judge import Judge
from ssd_dist.training.metrics_log import MetricsLog
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.preemption import StopRequest
from ssd_dist.training.progress import TrainingProgress
from ssd_dist.training.rendezvous import Introduction, meet
from ssd_dist.training.run_folder import SKIPPED_NAME, open_run_folder, write_skipped_records
from ssd_dist.training.stall import StallWatch
from ssd_dist.training.state import TrainState, create_state
from ssd_dist.training.trackers import Tracker, create_trackers, show_evaluations
from ssd_dist.training.trainer import DetectorTrainer


def run_training(config: Config, model_dir: str, stop: StopRequest) -> dict[str, Any] | None:
    """Trains, or goes on with the run in `model_dir`.

    Returns:
      The content of best.json; None without evaluation, and on workers other than the chief.

    Raises:
      UsageError, DataError, CheckpointError: for what the user can mend.
      RestartError: if the run was stopped, or lost a worker; it goes on when started again.
    """
    role = read_worker_role()
    manifest = check_data(config)
    plan = plan_training(config, manifest.split(TRAIN_SPLIT, config.data.dir), role.index, role.count)
    total_steps = config.train.steps or config.train.epochs * plan.steps_per_epoch
    if role.is_chief:
        open_run_folder(model_dir, config, manifest)
    plan, replaced = secure_plan(plan, manifest.splits[TRAIN_SPLIT], config)
    if role.is_chief:
        write_skipped_records(model_dir, replaced)
    with lost_peer_means_restart(role), bad_record_is_named(config, manifest, plan):
        meet(introduce(role, config, manifest, replaced), START_SECONDS)
        with stop.held_back():
            strategy = create_strategy(config.cluster)
        if role.is_chief:
            with write_errors(model_dir):
                write_environment(model_dir, describe_environment(strategy, role.count))
        make_reproducible(config)
        run = assemble_run(config, model_dir, role, strategy, manifest, plan, total_steps, stop)
        with run.progress:
            run.progress.say(describe_run(config, manifest, strategy, plan, run.state, total_steps))
            if replaced:
                run.progress.say(f"{len(replaced)} corrupt records are left out, others stand in: {SKIPPED_NAME}")
            stop.allow_saving(config.preemption.grace_seconds)
            run_loop(run)
            stop.finish()
    return run.judge.best.best if run.judge and role.is_chief else None


@dataclass(frozen=True)
class Run:
    """The parts that the loop of a run works with; `log` is the chief's alone, `judge` only where one evaluates.

    `read_from` gives the training batches from the state's step on.
    """

    config: Config
    model_dir: str
    plan: EpochPlan
    read_from: Callable[[], tf.distribute.DistributedDataset]
    state: TrainState
    trainer: DetectorTrainer
    judge: Judge | None
    store: CheckpointStore
    boundaries: Boundaries
    log: MetricsLog | None
    progress: TrainingProgress
    worker_sum: WorkerSum
    stop: StopRequest
    stall: StallWatch

    def stop_requested(self) -> bool:
        """Whether any worker was asked to stop; collective."""
        return self.worker_sum.any(self.stop.requested)

    @property
    def overflows_are_usual(self) -> bool:
        """Whether gradients may be infinite without the run being ill."""
        return AMPContext(self.config.amp).policy == "mixed_float16"

    def wait_for_all(self) -> None:
        """Holds a worker that is done until the chief has saved: the launcher takes the end of one for that of all."""
        self.worker_sum(0.0)


def assemble_run(
    config: Config,
    model_dir: str,
    role: WorkerRole,
    strategy: tf.distribute.Strategy,
    manifest: Manifest,
    plan: EpochPlan,
    total_steps: int,
    stop: StopRequest,
) -> Run:
    """All parts of a run, its state restored from the newest checkpoint if there is one."""
    worker_sum = WorkerSum(strategy, role.count)
    stall = StallWatch(config.train.stall_seconds)

    def interrupted() -> bool:
        stall.progress()
        return worker_sum.any(stop.requested)

    with strategy.scope():
        state = create_state(config, len(manifest.classes), total_steps)
        store = CheckpointStore(state.checkpoint(), model_dir, config.checkpoint, role.is_chief)
        store.restore_latest()
        start = int(state.step.numpy())
        check_same_start(start, worker_sum, role, model_dir)

        def read_from() -> tf.distribute.DistributedDataset:
            return distribute_training(config, strategy, plan, state)

        trainer = DetectorTrainer(config, strategy, state, read_from(), total_steps)
    trackers = create_trackers(config, model_dir) if role.is_chief else []
    judge = create_judge(config, strategy, state, manifest, model_dir, interrupted, trackers)
    return Run(
        config=config,
        model_dir=model_dir,
        plan=plan,
        read_from=read_from,
        state=state,
        trainer=trainer,
        judge=judge,
        store=store,
        boundaries=Boundaries.from_config(config, plan.steps_per_epoch, total_steps),
        log=MetricsLog(model_dir, start, trackers) if role.is_chief else None,
        progress=TrainingProgress(start, total_steps, role.is_chief),
        worker_sum=worker_sum,
        stop=stop,
        stall=stall,
    )


def run_loop(run: Run) -> None:
    """Trains from boundary to boundary: a report, an evaluation and a checkpoint, each where it is due.

    Raises:
      RestartError: when it was stopped; all is saved.
      NumericsError: for a loss that is not finite.
    """
    state, boundaries = run.state, run.boundaries
    overflow = OverflowReport(run)

    def report(values: dict[str, float]) -> None:
        if values:
            step = int(state.step.numpy())
            run.progress.report(step, values)
            overflow.look(step)
            if run.log is not None:
                run.log.write("train", step, values)

    controller = orbit.Controller(
        global_step=state.step,
        trainer=run.trainer,
        evaluator=run.judge.evaluator if run.judge else None,
        steps_per_loop=boundaries.steps_to_next,
        train_actions=[report],
    )
    # Orbit prints a line a loop; `progress` says the same better.
    with contextlib.redirect_stdout(io.StringIO()), run.stall:
        if run.config.train.recover_from_blowup and not int(state.step.numpy()):
            run.store.save(0)  # what a blow-up before the first checkpoint goes back to
        while True:
            step = int(state.step.numpy())
            run.stall.progress()
            # A run stopped between a step and its evaluation makes up for it here.
            if run.judge is not None and boundaries.evaluation_due(step) and step > int(state.evaluated.numpy()):
                with contextlib.suppress(Interrupted):
                    run.judge.judge(controller, step, run.log, run.progress)
                    state.evaluated.assign(step)
            if boundaries.checkpoint_due(step):
                run.store.save(step)
            if run.stop_requested():
                run.store.save(step)
                run.store.wait()
                run.wait_for_all()
                raise RestartError(f"stopped and saved after step {step} of {boundaries.total}; start again to go on")
            if step == boundaries.total:
                run.store.wait()
                run.wait_for_all()
                return
            controller.train(step + boundaries.steps_to_next(step), checkpoint_at_completion=False)
            blowup = None if run.overflows_are_usual else run.trainer.find_blowup()
            if blowup is not None:
                go_back(run, *blowup)


def go_back(run: Run, step: int, reason: str) -> None:
    """Goes on with the last checkpoint's weights after `step`, whose loss or gradient was not finite.

    Raises:
      NumericsError: if the config does not want that, or it was done as often as it wants.
    """
    state, source_ids = run.state, read_source_ids(run.plan, step)
    before = int(state.recoveries.numpy())
    stops = before >= run.config.train.recover_from_blowup
    if stops:
        run.store.wait()
        blowup = Blowup(step, reason, source_ids, run.store.latest())
    else:
        checkpoint = run.store.restore_latest()
        start = int(state.step.numpy())
        before = int(state.recoveries.numpy())
        blowup = Blowup(step, reason, source_ids, checkpoint, (start + 1, step))
    if run.log is not None:
        write_blowup(run.model_dir, blowup)
    if stops:
        run.wait_for_all()
        raise blowup.error(before)
    state.recoveries.assign(before + 1)
    state.step.assign(step)
    run.trainer.train_dataset = run.read_from()
    if run.log is not None:
        run.log.drop_rows_after(start)
    run.progress.say(
        f"step {step}  {reason}: back to the weights of step {start}, on after step {step} "
        f"({before + 1} of train.recover_from_blowup: {run.config.train.recover_from_blowup})"
    )
    run.store.save(step)


class OverflowReport:
    """Says at reports when float16 overflows and the loss scale can fall no further."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._skipped = int(run.state.loss_scale.skipped_steps.numpy())

    def look(self, step: int) -> None:
        """Looks at the steps since the last report."""
        loss_scale = self._run.state.loss_scale
        skipped, before = int(loss_scale.skipped_steps.numpy()), self._skipped
        self._skipped = skipped
        if self._run.overflows_are_usual and skipped > before and loss_scale.at_floor():
            self._run.progress.say(
                f"step {step}  warning: {skipped - before} steps overflowed with the loss scale at its floor, "
                f"{float(loss_scale.scale.numpy()):g}: lower optimizer.lr, or use amp.policy: mixed_bfloat16"
            )


@contextlib.contextmanager
def lost_peer_means_restart(role: WorkerRole) -> Iterator[None]:
    """Turns the failure of a collective, which says that another worker is gone, into "start me again"."""
    try:
        yield
    except (tf.errors.OpError, RuntimeError) as error:
        # What a lost peer raises depends on where it was lost; alone, the same errors are bugs.
        lost = isinstance(
            error,
            tf.errors.UnavailableError
            | tf.errors.AbortedError
            | tf.errors.CancelledError
            | tf.errors.InternalError
            | tf.errors.DeadlineExceededError
            | tf.errors.FailedPreconditionError,
        ) or "Timeout waiting for the cluster" in str(error)
        if role.count == 1 or not lost:
            raise
        raise RestartError(
            f"worker {role.index} of {role.count} lost a peer ({first_line(error)}); start all workers again: "
            "the run goes on from its last checkpoint"
        ) from None


@contextlib.contextmanager
def bad_record_is_named(config: Config, manifest: Manifest, plan: EpochPlan) -> Iterator[None]:
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


def introduce(role: WorkerRole, config: Config, manifest: Manifest, replaced: Sequence[CorruptRecord]) -> Introduction:
    """What the other workers must agree with."""
    facts = {
        **{key: repr(value) for key, value in flatten_config(config).items()},
        "dataset.json": hashlib.sha256(manifest.to_json().encode()).hexdigest()[:12],
        "number of corrupt records": str(len(replaced)),
        "list of corrupt records": hashlib.sha256(repr(replaced).encode()).hexdigest()[:12],
        "TensorFlow": tf.__version__,
    }
    return Introduction(role.index, role.addresses, facts, time.time())


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
    # A figure over fewer images would be another figure: nothing is skipped here.
    judged = manifest.eval_split(config.eval.split, config.data.dir)
    if judged is not None:
        strict = config.data.model_copy(update={"on_corrupt": "fail"})
        secure_shards(manifest.splits[judged].views[0].shards, config.model.input_size, strict)
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
      UsageError: if they did not, because they do not see the same folder.
    """
    chief_step = int(worker_sum.from_chief(step, role.is_chief))
    if worker_sum.any(step != chief_step):
        mine = f"this one, {role.index}," if step != chief_step else "another"
        raise UsageError(
            f"the chief goes on from step {chief_step} and a worker, {mine} from another step: "
            f"--model_dir={model_dir} must be one folder that all workers share"
        )


def distribute_training(
    config: Config, strategy: tf.distribute.Strategy, plan: EpochPlan, state: TrainState
) -> tf.distribute.DistributedDataset:
    """The training batches of every replica, from the state's step on.

    Raises:
      UsageError: if the global batch does not divide over the replicas and the parts of each.
    """
    parts = strategy.num_replicas_in_sync * config.train.accumulate_steps
    size, rest = divmod(config.train.global_batch_size, parts)
    if rest:
        split_over = f"{strategy.num_replicas_in_sync} replicas"
        if config.train.accumulate_steps > 1:
            split_over += f" in {config.train.accumulate_steps} parts (train.accumulate_steps)"
        raise UsageError(
            f"train.global_batch_size: {config.train.global_batch_size} does not divide over {split_over}; "
            f"use {max(size, 1) * parts} or {(size + 1) * parts}"
        )
    batch_size = size * config.train.accumulate_steps
    start_step = int(state.step.numpy())
    return strategy.distribute_datasets_from_function(lambda _: training_batches(config, plan, batch_size, start_step))


def create_judge(
    config: Config,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    manifest: Manifest,
    model_dir: str,
    interrupted: Callable[[], bool],
    trackers: Sequence[Tracker],
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
    source_ids = [truth.source_id for truth in truths]
    evaluator = DetectorEvaluator(config, strategy, state.model, split, source_ids, interrupted)
    show = show_evaluations(trackers, config, manifest, split_name, truths)
    best = BestModel(state.model, model_dir, config.eval.metric, config.checkpoint.keep_best)
    return Judge(evaluator, state, best, truths, manifest.classes, config.eval.metric, show)


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
