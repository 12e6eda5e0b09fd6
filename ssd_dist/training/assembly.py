"""Creates the parts of a run from its config and restores its newest checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow as tf

from ssd_dist.cluster.collectives import WorkerCollectives, share_initial_weights
from ssd_dist.cluster.preemption import StopRequest
from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.cluster.watchdog import Watchdog
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import Config
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest
from ssd_dist.core.printable import print_line
from ssd_dist.core.stage_line import StageLine
from ssd_dist.core.storage import join
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.pipeline import training_batches
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.data.shard_guard import ShardGuard
from ssd_dist.evaluation.evaluator import DetectorEvaluator, read_ground_truth
from ssd_dist.model.channel_ranges import limit_channel_ranges
from ssd_dist.model.detector import build_detector
from ssd_dist.runs.checkpoints import BestModel, CheckpointStore
from ssd_dist.runs.console_progress import TrainingProgress
from ssd_dist.runs.metrics_log import MetricsLog
from ssd_dist.runs.trackers import Tracker, create_detection_logger, create_trackers
from ssd_dist.training.batch_division import divide_batch
from ssd_dist.training.ema import ExponentialMovingAverage
from ssd_dist.training.intervals import StepIntervals
from ssd_dist.training.optimizer import PackedOptimizer
from ssd_dist.training.parameter_groups import group_parameters
from ssd_dist.training.periodic_evaluation import PeriodicEvaluation
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.run_checks import (
    check_data,
    check_same_folder,
    check_same_start,
    check_same_statistics,
    check_steps_left,
    choose_evaluated_split,
)
from ssd_dist.training.run_parts import DivergencePolicy, Run, RunOutput, TrainingData, WorkerGroup
from ssd_dist.training.schedule import CosineWarmupSchedule
from ssd_dist.training.source_weights import read_source_weights
from ssd_dist.training.state import TrainState
from ssd_dist.training.trainer import DetectorTrainer
from ssd_dist.training.weight_transfer import transfer_weights

# The stall reports of a worker.
STALL_NAME = "stall_worker{}.txt"


def load_checked_manifest(config: Config) -> Manifest:
    """Loads the manifest of the data and checks that the data fits the config.

    Raises:
      DataError: if the data is missing or damaged, was prepared for another config, or a split leaks into another.
    """
    manifest = load_manifest(config.data)
    manifest.check_fits(config, join(config.data.dir, MANIFEST_NAME))
    check_data(manifest, config.data, choose_evaluated_split(manifest, config), config.model.input_size)
    return manifest


def assemble_run(
    config: Config,
    model_dir: str,
    role: WorkerRole,
    strategy: tf.distribute.Strategy,
    manifest: Manifest,
    plan: EpochPlan,
    total_steps: int,
    stop: StopRequest,
    before_write: Callable[[], None],
    stages: StageLine,
) -> Run:
    """Creates all parts of a run and restores its newest checkpoint; a new run takes over `model.init_from`.

    `before_write` is called before each write into the run folder and raises an error to prevent it. `stages` is the
    live line of the command.

    Raises:
      UsageError: if workers do not share the run folder, or the run is beyond `total_steps`.
      CheckpointError: if the checkpoint belongs to a different model, all checkpoints are damaged, or the weights of
        `model.init_from` cannot be read or do not fit.
      RestartError: if workers restored different checkpoints.
    """
    watchdog = Watchdog(config.train.stall_seconds, str(Path(model_dir) / STALL_NAME.format(role.index)))
    workers = WorkerGroup(WorkerCollectives(strategy, role.count), role.is_chief, stop, watchdog)
    with strategy.scope():
        if role.count > 1:
            check_same_folder(workers.collectives, role, model_dir)
        state = create_state(config, len(manifest.classes), total_steps)
        checkpoints = CheckpointStore(state.checkpoint(), model_dir, config.checkpoint, role.is_chief, before_write)
        restored = checkpoints.restore_latest()
        start = state.current_step
        # Before the weights of `model.init_from` are shared, which only workers without a checkpoint would do.
        check_same_start(start, workers.collectives, role, model_dir)
    if restored is None and config.model.init_from:
        report = start_from_source(config, manifest.classes, strategy, state)
        for line in report if role.is_chief else []:
            print_line(line)
    with strategy.scope():
        if role.count > 1:
            check_same_statistics(state.model.variables, workers.collectives, role)
        check_steps_left(start, total_steps, model_dir)
        data = TrainingData(plan, lambda: distribute_training(config, strategy, plan, state))
        trainer = create_trainer(config, strategy, state, data.create_dataset(), total_steps)
    trackers = create_trackers(config, model_dir) if role.is_chief else []
    progress = TrainingProgress(start, total_steps, role.is_chief, stages)
    return Run(
        state=state,
        trainer=trainer,
        evaluation=create_periodic_evaluation(
            config, strategy, state, manifest, model_dir, workers, trackers, before_write, progress, plan.guard
        ),
        data=data,
        checkpoints=checkpoints,
        intervals=StepIntervals.from_config(
            config.train, config.eval, config.checkpoint, plan.steps_per_epoch, total_steps
        ),
        grace_seconds=config.preemption.grace_seconds,
        workers=workers,
        output=RunOutput(
            model_dir,
            MetricsLog(model_dir, start, state.evaluated_step, trackers, before_write) if role.is_chief else None,
            progress,
        ),
        divergence=DivergencePolicy(config.train.recover_from_blowup, AMPContext(config.amp).overflow_is_expected),
        early_stopping=config.train.early_stopping,
    )


def create_state(config: Config, class_count: int, total_steps: int) -> TrainState:
    """Creates model, optimizer and counters; call in strategy scope, with the Keras policy and the seeds set."""
    # With `model.init_from` the backbone's weights are assigned later, or restored.
    weights = "none" if config.model.init_from else config.backbone.weights
    backbone = config.backbone.model_copy(update={"weights": weights})
    model = build_detector(config.model, backbone, config.anchors, class_count, config.quantization)
    share_initial_weights(model.variables)
    groups = group_parameters(model, config.optimizer, config.backbone)
    ema = ExponentialMovingAverage(groups, config.ema) if config.ema.enabled else None
    schedule = CosineWarmupSchedule(config.optimizer.lr, total_steps, config.schedule)
    optimizer = PackedOptimizer(groups, config.optimizer, schedule, ema)
    return TrainState.create(model, AMPContext(config.amp).wrap_optimizer(optimizer), ema)


def start_from_source(
    config: Config, classes: Sequence[str], strategy: tf.distribute.Strategy, state: TrainState
) -> list[str]:
    """Assigns the weights of `model.init_from` to a new run; returns lines that state what was taken over.

    Raises:
      CheckpointError: if there are no weights, or they do not fit.
    """
    # Read outside of the strategy's scope: the source is a model of its own, without replicas.
    source = read_source_weights(config.model.init_from)
    with strategy.scope():
        report = transfer_weights(state.model, classes, config.anchors, source)
        if config.quantization.per_tensor:
            changed = limit_channel_ranges(state.model)
            report.append(f"  for one scale per layer: {changed} channels of depthwise kernels reduced")
        # The source may have changed between the reads of two workers.
        share_initial_weights(state.model.variables)
        if state.ema is not None:
            state.ema.restart()
    return report


def create_trainer(
    config: Config,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    dataset: tf.distribute.DistributedDataset,
    total_steps: int,
) -> DetectorTrainer:
    """Creates the trainer of a state; call in strategy scope."""
    return DetectorTrainer(
        strategy,
        state,
        dataset,
        train=config.train,
        division=divide_batch(config, strategy.num_replicas_in_sync),
        loss=config.loss,
        mining=config.mining,
        precision=AMPContext(config.amp).precision,
        anchor_count=len(generate_anchors(config.anchors, config.model.input_size)),
        total_steps=total_steps,
    )


def distribute_training(
    config: Config, strategy: tf.distribute.Strategy, plan: EpochPlan, state: TrainState
) -> tf.distribute.DistributedDataset:
    """Creates the training batches of every replica, starting at the state's current step.

    Raises:
      UsageError: if the global batch cannot be divided between the replicas, parts and batch-norm groups.
    """
    division = divide_batch(config, strategy.num_replicas_in_sync)
    batch_size = division.images // division.replicas
    order = division.order_records(plan.workers)
    start_step = state.current_step

    def create_batches(_: tf.distribute.InputContext) -> tf.data.Dataset:
        return training_batches(
            config.data, config.anchors, config.matching, config.model.input_size, plan, batch_size, start_step, order
        )

    return strategy.distribute_datasets_from_function(create_batches)


def create_periodic_evaluation(
    config: Config,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    manifest: Manifest,
    model_dir: str,
    workers: WorkerGroup,
    trackers: Sequence[Tracker],
    before_write: Callable[[], None],
    progress: TrainingProgress,
    guard: ShardGuard | None,
) -> PeriodicEvaluation | None:
    """Creates the evaluation of a run; None if it has no evaluation split or `eval.every_*` are 0.

    `guard` checks the shards of the evaluation split.

    Raises:
      DataError: if the data has no split with the name of `eval.split`.
    """
    split_name = choose_evaluated_split(manifest, config)
    if split_name is None:
        return None
    split = manifest.splits[split_name]
    ground_truth = read_ground_truth(config.data, split)
    source_ids = [image.source_id for image in ground_truth]
    evaluator = DetectorEvaluator(
        strategy,
        state.model,
        split,
        source_ids,
        data=config.data,
        anchors=config.anchors,
        evaluation=config.eval,
        input_size=config.model.input_size,
        interrupted=create_interrupt_check(workers),
        after_batch=progress.advance,
        guard=guard,
    )
    return PeriodicEvaluation(
        evaluator=evaluator,
        state=state,
        best=BestModel(state.model, model_dir, config.eval.metric, config.checkpoint.keep_best, before_write),
        ground_truth=ground_truth,
        classes=manifest.classes,
        metric=config.eval.metric,
        use_ema=config.eval.use_ema,
        log_detections=create_detection_logger(trackers, config, manifest, split_name, ground_truth, state.model),
    )


def create_interrupt_check(workers: WorkerGroup) -> Callable[[], bool]:
    """Creates a function that an evaluation calls after each batch and that returns whether to stop."""

    def stop_requested() -> bool:
        workers.watchdog.reset()
        return workers.stop_requested()

    return stop_requested
