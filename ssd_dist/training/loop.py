"""The outer training loop: trains to the next pause, then evaluates, saves or stops if due.

repeat
  evaluate_if_due -> save_if_due -> stop_if_necessary -> advance
until the last step, or until early stopping
"""

import contextlib
import io
import math
import time
from pathlib import Path

import orbit

from ssd_dist.core.errors import DataError, RestartError
from ssd_dist.evaluation.evaluator import Interrupted
from ssd_dist.runs.run_folder import OTHER_BEST_NAME
from ssd_dist.training.divergence import OverflowMonitor, find_divergence, recover
from ssd_dist.training.run_parts import Run


def run_loop(run: Run) -> None:
    """Trains a run to its last step or to early stopping, with reports, evaluations and checkpoints.

    Raises:
      RestartError: if the run was asked to stop; its state is saved.
      DataError: if a shard has changed since the run started; the state of the run is saved.
      NumericsError: if a loss or gradient is not finite and the run may not recover.
    """
    controller = create_controller(run)
    # Orbit prints a line per inner loop; `run.output.progress` reports the same.
    with contextlib.redirect_stdout(io.StringIO()), run.workers.watchdog:
        save_initial_state(run)
        run.output.progress.show_stage("first step: TensorFlow traces the graph")
        # One step per pause until a step was timed; the first step also includes tracing.
        seconds_per_step = math.inf
        while True:
            step = run.state.current_step
            evaluate_if_due(run, controller, step)
            finished = step == run.intervals.total or stops_early(run, step)
            save_if_due(run, step, finished)
            stop_if_necessary(run, step)
            if finished:
                break
            seconds_per_step = advance(run, controller, step, seconds_per_step)
            run.output.progress.show_step(run.state.current_step)
            run.workers.watchdog.start()
        run.output.progress.show_stage("save the checkpoint")
        run.checkpoints.wait()


def create_controller(run: Run) -> orbit.Controller:
    """Creates orbit's controller, which runs inner loops and reports after each."""
    overflow = OverflowMonitor(run.state.loss_scale, run.output.progress)

    def report(values: dict[str, float]) -> None:
        if not values:
            return
        step = run.state.current_step
        run.output.report_training(step, values)
        if run.divergence.overflow_is_expected:
            overflow.check(step)

    return orbit.Controller(
        global_step=run.state.step,
        trainer=run.trainer,
        evaluator=run.evaluation.evaluator if run.evaluation else None,
        steps_per_loop=run.intervals.steps_to_next,
        train_actions=[report],
    )


def save_initial_state(run: Run) -> None:
    """Saves the state of a new run that may recover, so that it can recover before its first checkpoint."""
    if run.divergence.max_recoveries and not run.state.current_step:
        run.checkpoints.save(0)


def evaluate_if_due(run: Run, controller: orbit.Controller, step: int) -> None:
    """Evaluates the model if an evaluation is due at `step` and was not done before.

    A run that was stopped between a step and its evaluation evaluates here after it resumes. If the run is asked to
    stop during the evaluation, the evaluation is abandoned.
    """
    if run.evaluation is None or not run.intervals.evaluation_due(step) or step <= run.state.evaluated_step:
        return
    with contextlib.suppress(Interrupted):
        run.evaluation.evaluate(controller, step, run.output.log, run.output.progress)
        run.output.progress.show_step(step)
        run.state.evaluated.assign(step)
        run.checkpoints.mark_outdated(step)


def stops_early(run: Run, step: int) -> bool:
    """Returns whether the evaluation at `step` was the last of `train.early_stopping` without a better model.

    A collective: the chief counts, and all workers follow its decision. The count is derived from metrics.jsonl and
    best.json, so a run that was interrupted at any point stops after the same step, and a run that stopped early does
    not train when it is started again.
    """
    if not run.early_stopping or run.evaluation is None or step != run.state.evaluated_step:
        return False
    best_step = run.evaluation.best_step
    # Evaluations on data that was replaced do not count.
    is_set_aside = best_step == 0 and (Path(run.output.model_dir) / OTHER_BEST_NAME).exists()
    count = 0 if run.output.log is None or is_set_aside else run.output.log.count_evaluations_after(best_step)
    if run.workers.broadcast_from_chief(count) < run.early_stopping:
        return False
    run.output.progress.print_line(
        f"step {step}  training ends early: {count} evaluations in a row were not better than that of step {best_step} "
        f"(train.early_stopping: {run.early_stopping})"
    )
    return True


def save_if_due(run: Run, step: int, finished: bool) -> None:
    """Saves a checkpoint if one is due at `step`, or if the run is finished."""
    if finished or run.intervals.checkpoint_due(step):
        run.checkpoints.save(step)


def stop_if_necessary(run: Run, step: int) -> None:
    """Saves the state and ends the run if a signal asked any worker to stop, or if a shard has changed.

    Raises:
      DataError: if the run ends because a shard has changed.
      RestartError: if the run ends because of a signal.
    """
    change = run.data.plan.find_change()
    if not run.workers.any(run.workers.stop.requested or change is not None):
        return
    changed = run.workers.any(change is not None)
    stopped = f"stopped after step {step} of {run.intervals.total}"
    if find_divergence(run) is not None:
        stopped += ", not saved: a loss or gradient since the last checkpoint was not finite"
    else:
        run.checkpoints.save(step)
        run.checkpoints.wait()
        run.workers.wait_for_all()
        stopped += ", saved"
    if changed:
        raise DataError(f"{change or 'a shard changed; the message of another worker names it'} ({stopped})")
    raise RestartError(f"{stopped}; start again to resume")


def advance(run: Run, controller: orbit.Controller, step: int, seconds_per_step: float) -> float:
    """Trains to the next pause and recovers if the run diverged.

    Args:
      run: the run.
      controller: orbit's controller.
      step: the current step.
      seconds_per_step: the time per step so far; infinity if unknown.

    Returns:
      The measured seconds per step.

    Raises:
      NumericsError: if the run diverged and may not recover.
    """
    steps, started = count_steps_to_pause(run, step, seconds_per_step), time.perf_counter()
    controller.train(step + steps, checkpoint_at_completion=False)
    seconds_per_step = (time.perf_counter() - started) / steps
    # Checked only at the fixed intervals: where a run recovers must not depend on the clock that made it pause.
    at_interval = steps == run.intervals.steps_to_next(step)
    if at_interval and (divergence := find_divergence(run)) is not None:
        recover(run, *divergence)
    return seconds_per_step


def count_steps_to_pause(run: Run, step: int, seconds_per_step: float) -> int:
    """Returns how many steps to train until the next check for a stop request; a collective over workers.

    Training pauses at every interval, at the end of every epoch, and at least every quarter of the grace time: the rest
    must suffice for saving after a signal. At the end of an epoch, shards are checked before a record of the next epoch
    is used. Results do not depend on where training pauses, so they do not depend on this clock.
    """
    most = max(int(run.grace_seconds / 4 / seconds_per_step), 1)
    steps_per_epoch = run.data.plan.steps_per_epoch
    to_next = min(run.intervals.steps_to_next(step), steps_per_epoch - step % steps_per_epoch)
    return min(to_next, int(run.workers.broadcast_from_chief(most)))
