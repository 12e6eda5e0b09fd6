"""A training run, assembled: `run_training` reads top to bottom as the way from a config to a best model."""

import contextlib
import io
import math
import time
from collections.abc import Callable
from typing import Any

import orbit
import tensorflow as tf
import tf_keras

from ssd_dist.cluster.failures import explain_out_of_memory, restart_on_lost_peer
from ssd_dist.cluster.preemption import StopRequest
from ssd_dist.cluster.rendezvous import wait_for_workers
from ssd_dist.cluster.strategy import START_SECONDS, check_strategy, create_strategy, read_worker_role
from ssd_dist.core.config import Config
from ssd_dist.core.errors import RestartError
from ssd_dist.core.manifest import TRAIN_SPLIT, Manifest
from ssd_dist.data.corrupt_records import verify_plan
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.pipeline import plan_training
from ssd_dist.evaluation.evaluator import Interrupted
from ssd_dist.runs.environment import describe_environment, write_environment
from ssd_dist.runs.gfile_storage import explain_write_errors
from ssd_dist.runs.run_folder import SKIPPED_NAME, open_run_folder, write_skipped_records
from ssd_dist.training.assembly import Run, assemble_run
from ssd_dist.training.divergence import OverflowReport, find_divergence, roll_back
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.run_checks import check_data, describe_worker, explain_bad_record
from ssd_dist.training.state import TrainState


def run_training(
    config: Config, model_dir: str, stop: StopRequest, report: Callable[[], None] | None = None
) -> dict[str, Any] | None:
    """Trains, or goes on with the run in `model_dir`; at its end the chief calls `report`, while the others wait.

    Returns:
      The content of best.json; None without evaluation, and on workers other than the chief.

    Raises:
      UsageError, DataError, CheckpointError: for what the user can mend.
      RestartError: if the run was stopped, or lost a worker; it goes on when started again.
    """
    role = read_worker_role()
    check_strategy(config.cluster, role)
    manifest = check_data(config)
    plan = plan_training(config, manifest.split(TRAIN_SPLIT, config.data.dir), role.index, role.count)
    total_steps = config.train.steps or config.train.epochs * plan.steps_per_epoch
    if role.is_chief:
        open_run_folder(model_dir, config, manifest)
    plan, replaced = verify_plan(plan, manifest.splits[TRAIN_SPLIT], config)
    if role.is_chief:
        write_skipped_records(model_dir, replaced)
    with explain_out_of_memory(), restart_on_lost_peer(role), explain_bad_record(config, manifest, plan):
        wait_for_workers(describe_worker(role, config, manifest, replaced), START_SECONDS)
        with stop.held_back():
            strategy = create_strategy(config.cluster, role)
        if role.is_chief:
            with explain_write_errors(model_dir):
                write_environment(model_dir, describe_environment(strategy, role.count))
        make_reproducible(config)
        run = assemble_run(config, model_dir, role, strategy, manifest, plan, total_steps, stop)
        with run.progress:
            run.progress.say(describe_run(config, manifest, strategy, plan, run.state, total_steps))
            if replaced:
                run.progress.say(f"{len(replaced)} corrupt records are left out, others stand in: {SKIPPED_NAME}")
            stop.allow_saving(config.preemption.grace_seconds)
            run_loop(run)
            if report is not None and role.is_chief:
                report()
            # The launcher takes the end of one worker for that of all.
            run.wait_for_all()
            stop.finish()
    return run.judge.best.best if run.judge and role.is_chief else None


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
        # Until a step was timed, one at a time; the first one is traced as well.
        seconds_a_step = math.inf
        while True:
            step = int(state.step.numpy())
            run.stall.progress()
            # A run stopped between a step and its evaluation makes up for it here.
            if run.judge is not None and boundaries.evaluation_due(step) and step > int(state.evaluated.numpy()):
                with contextlib.suppress(Interrupted):
                    run.judge.judge(controller, step, run.log, run.progress)
                    state.evaluated.assign(step)
                    run.store.outdate(step)
            if boundaries.checkpoint_due(step):
                run.store.save(step)
            if run.stop_requested():
                if find_divergence(run) is not None:
                    raise RestartError(
                        f"stopped after step {step} of {boundaries.total}, nothing saved: a loss or gradient since the "
                        "last checkpoint was not finite; start again to go on"
                    )
                run.store.save(step)
                run.store.wait()
                run.wait_for_all()
                raise RestartError(f"stopped and saved after step {step} of {boundaries.total}; start again to go on")
            if step == boundaries.total:
                run.store.wait()
                return
            steps, started = run.steps_to_next_pause(seconds_a_step), time.perf_counter()
            controller.train(step + steps, checkpoint_at_completion=False)
            seconds_a_step = (time.perf_counter() - started) / steps
            # Looked for at boundaries alone: where a run goes back must not depend on the clock that made it pause.
            if steps == boundaries.steps_to_next(step) and (blowup := find_divergence(run)) is not None:
                roll_back(run, *blowup)


def make_reproducible(config: Config) -> None:
    """Sets the Keras policy, the seeds and, if asked, deterministic kernels: all the global state there is."""
    AMPContext(config.amp).install()
    # NumPy takes 32 bits. All that is drawn of images and of their order takes the whole seed.
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
    """The first line a user sees: what is trained on what."""
    parameters = sum(variable.shape.num_elements() for variable in state.model.trainable_variables)
    start = int(state.step.numpy())
    devices = "GPU" if tf.config.list_physical_devices("GPU") else "CPU, no GPU found"
    return (
        f"{parameters / 1e6:.1f} M parameters, {len(manifest.classes)} classes, "
        f"{manifest.splits[TRAIN_SPLIT].images} images; {strategy.num_replicas_in_sync} replicas ({devices}), "
        f"global batch {config.train.global_batch_size}, {plan.steps_per_epoch} steps an epoch; "
        + (f"goes on from step {start} to {total_steps}" if start else f"{total_steps} steps")
    )
