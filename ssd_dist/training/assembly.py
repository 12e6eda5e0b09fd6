"""The parts of a run, put together and restored from its newest checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from ssd_dist.cluster.collectives import WorkerSum
from ssd_dist.cluster.preemption import StopRequest
from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.cluster.watchdog import Watchdog
from ssd_dist.core.config import Config
from ssd_dist.core.errors import UsageError
from ssd_dist.core.manifest import Manifest
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.pipeline import training_batches
from ssd_dist.evaluation.evaluator import DetectorEvaluator, read_ground_truth
from ssd_dist.runs.checkpoints import BestModel, CheckpointStore
from ssd_dist.runs.console_progress import TrainingProgress
from ssd_dist.runs.metrics_log import MetricsLog
from ssd_dist.runs.trackers import Tracker, create_trackers, show_evaluations
from ssd_dist.training.intervals import StepIntervals
from ssd_dist.training.periodic_evaluation import PeriodicEvaluation
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.run_checks import check_same_start, check_steps_left
from ssd_dist.training.state import TrainState, create_state
from ssd_dist.training.trainer import DetectorTrainer


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
    judge: PeriodicEvaluation | None
    store: CheckpointStore
    boundaries: StepIntervals
    log: MetricsLog | None
    progress: TrainingProgress
    worker_sum: WorkerSum
    stop: StopRequest
    stall: Watchdog

    def stop_requested(self) -> bool:
        """Whether any worker was asked to stop; collective."""
        return self.worker_sum.any(self.stop.requested)

    def steps_to_next_pause(self, seconds_a_step: float) -> int:
        """How many steps may run before the next look at `stop`; collective.

        To the next boundary, and no longer than a quarter of the grace time: after a signal the rest of it must do for
        saving. Results do not depend on where training pauses, so they do not depend on this clock.
        """
        steps = self.boundaries.steps_to_next(int(self.state.step.numpy()))
        most = max(int(self.config.preemption.grace_seconds / 4 / seconds_a_step), 1)
        return min(steps, int(self.worker_sum.from_chief(most, self.log is not None)))

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
    stall = Watchdog(config.train.stall_seconds)

    def interrupted() -> bool:
        stall.progress()
        return worker_sum.any(stop.requested)

    with strategy.scope():
        state = create_state(config, len(manifest.classes), total_steps)
        store = CheckpointStore(state.checkpoint(), model_dir, config.checkpoint, role.is_chief)
        store.restore_latest()
        start = int(state.step.numpy())
        check_same_start(start, worker_sum, role, model_dir)
        check_steps_left(start, total_steps, model_dir)

        def read_from() -> tf.distribute.DistributedDataset:
            return distribute_training(config, strategy, plan, state)

        trainer = DetectorTrainer(config, strategy, state, read_from(), total_steps)
    trackers = create_trackers(config, model_dir) if role.is_chief else []
    judge = create_periodic_evaluation(config, strategy, state, manifest, model_dir, interrupted, trackers)
    return Run(
        config=config,
        model_dir=model_dir,
        plan=plan,
        read_from=read_from,
        state=state,
        trainer=trainer,
        judge=judge,
        store=store,
        boundaries=StepIntervals.from_config(config, plan.steps_per_epoch, total_steps),
        log=MetricsLog(model_dir, start, int(state.evaluated.numpy()), trackers) if role.is_chief else None,
        progress=TrainingProgress(start, total_steps, role.is_chief),
        worker_sum=worker_sum,
        stop=stop,
        stall=stall,
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


def create_periodic_evaluation(
    config: Config,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    manifest: Manifest,
    model_dir: str,
    interrupted: Callable[[], bool],
    trackers: Sequence[Tracker],
) -> PeriodicEvaluation | None:
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
    show = show_evaluations(trackers, config, manifest, split_name, truths, state.model)
    best = BestModel(state.model, model_dir, config.eval.metric, config.checkpoint.keep_best)
    return PeriodicEvaluation(evaluator, state, best, truths, manifest.classes, config.eval.metric, show)
