"""Runs one training: `run_training` performs all stages, from the config to the best model, in order."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from ssd_dist.cluster.failures import explain_out_of_memory, restart_on_lost_peer
from ssd_dist.cluster.preemption import StopRequest
from ssd_dist.cluster.rendezvous import wait_for_workers
from ssd_dist.cluster.rendezvous_messages import read_secret
from ssd_dist.cluster.strategy import START_SECONDS, WorkerRole, check_strategy, create_strategy, read_worker_role
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import flatten_config
from ssd_dist.core.folder_names import CONFIG_NAME
from ssd_dist.core.manifest import TRAIN_SPLIT, Manifest
from ssd_dist.core.stage_line import SILENT, StageLine
from ssd_dist.data.corrupt_records import explain_failure, verify_plan
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.pipeline import plan_training
from ssd_dist.data.shard_files import hold_dataset
from ssd_dist.runs.environment import describe_environment, write_environment
from ssd_dist.runs.gfile_storage import explain_write_errors
from ssd_dist.runs.run_folder import SKIPPED_NAME, open_run_folder, write_skipped_records
from ssd_dist.training.assembly import assemble_run, load_checked_manifest
from ssd_dist.training.loop import run_loop
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.run_checks import choose_evaluated_split, describe_worker, explain_bad_record
from ssd_dist.training.source_weights import check_source_exists
from ssd_dist.training.state import TrainState


def run_training(
    config: Config,
    model_dir: str,
    stop: StopRequest,
    write_report: Callable[[], None] | None = None,
    allow_new_data: bool = False,
    stages: StageLine = SILENT,
) -> dict[str, Any] | None:
    """Trains a detector, or resumes the run in `model_dir`.

    Args:
      config: the experiment.
      model_dir: the run folder.
      stop: whether a signal asked this process to stop.
      write_report: called on the chief at the end of the run, while the other workers wait.
      allow_new_data: whether a run may be resumed on other data than it was trained on so far.
      stages: the live line of the command.

    Returns:
      The content of best.json; None without evaluation, and on workers other than the chief.

    Raises:
      UsageError, DataError, CheckpointError: for errors that the user can fix.
      RestartError: if the run was asked to stop or lost a worker; it resumes when started again.
    """
    role = read_worker_role()
    check_strategy(config.cluster, role)
    stages.show("check the data")
    manifest = load_checked_manifest(config)
    with hold_dataset(config.data, manifest):
        return _train(config, model_dir, role, manifest, stop, write_report, allow_new_data, stages)


def _train(
    config: Config,
    model_dir: str,
    role: WorkerRole,
    manifest: Manifest,
    stop: StopRequest,
    write_report: Callable[[], None] | None,
    allow_new_data: bool,
    stages: StageLine,
) -> dict[str, Any] | None:
    split = manifest.split(TRAIN_SPLIT, config.data.dir)
    plan = plan_training(config.data, config.train, split, role.index, role.count)
    total_steps = config.train.steps or config.train.epochs * plan.steps_per_epoch
    if role.is_chief and not (Path(model_dir) / CONFIG_NAME).exists():
        # Checked before the folder exists, so that the corrected command can use it.
        check_source_exists(config.model.init_from)
    lock = open_run_folder(model_dir, config, manifest, allow_new_data) if role.is_chief else None
    check_folder = lock.check if lock else (lambda: None)
    name = choose_evaluated_split(manifest, config)
    evaluated = None if name is None else manifest.splits[name]
    plan, replaced = verify_plan(plan, split, config.model.input_size, config.data, evaluated)
    if role.is_chief:
        write_skipped_records(model_dir, replaced)
    find_bad_record = partial(explain_failure, plan, split, config.model.input_size, config.data)
    explain_reading = explain_bad_record(plan.find_change, find_bad_record, config.data)
    own = describe_worker(role, flatten_config(config), manifest, replaced)
    with explain_out_of_memory(), restart_on_lost_peer(role), explain_reading:
        wait_for_workers(own, START_SECONDS, read_secret())
        with stop.block_signals():
            strategy = create_strategy(config.cluster, role, divide_threads=config.train.reduction == "fast")
        if role.is_chief:
            with explain_write_errors(model_dir):
                write_environment(model_dir, describe_environment(strategy, role.count))
        make_reproducible(config)
        stages.show("build the model")
        run = assemble_run(config, model_dir, role, strategy, manifest, plan, total_steps, stop, check_folder, stages)
        run.output.progress.print_line(describe_run(config, manifest, strategy, plan, run.state, total_steps))
        if replaced:
            run.output.progress.print_line(
                f"{len(replaced)} corrupt records were replaced by valid ones; they are listed in {SKIPPED_NAME}"
            )
        stop.enable_grace_time(config.preemption.grace_seconds)
        run_loop(run)
        stop.disable_grace_time()
        if write_report is not None and role.is_chief:
            check_folder()
            stages.show("write the report")
            write_report()
        run.workers.wait_for_all()
        stop.ignore_signals()
    return run.evaluation.best.best if run.evaluation and role.is_chief else None


def make_reproducible(config: Config) -> None:
    """Sets the Keras policy, the seeds and, with `train.deterministic`, deterministic kernels; all are global state."""
    AMPContext(config.amp).setup_policy()
    # NumPy's seed has 32 bits. Image augmentation and record order use the whole seed.
    tf_keras.utils.set_random_seed(config.train.seed % 2**32)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()


def describe_run(
    config: Config,
    manifest: Manifest,
    strategy: tf.distribute.Strategy,
    plan: EpochPlan,
    state: TrainState,
    total_steps: int,
) -> str:
    """Returns the first line that a run prints: model, data, replicas and steps."""
    parameters = sum(variable.shape.num_elements() for variable in state.model.trainable_variables)
    start = state.current_step
    devices = "GPU" if tf.config.list_physical_devices("GPU") else "CPU, no GPU found"
    return (
        f"{parameters / 1e6:.1f} M parameters, {len(manifest.classes)} classes, "
        f"{manifest.splits[TRAIN_SPLIT].images} images; {strategy.num_replicas_in_sync} replicas ({devices}), "
        f"global batch {config.train.global_batch_size}, {plan.steps_per_epoch} steps per epoch; "
        + (f"resumes at step {start} of {total_steps}" if start else f"{total_steps} steps")
    )
