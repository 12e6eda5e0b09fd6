"""Handles a loss or gradient that is NaN or infinite: reports the images, then stops the run or recovers.

float32, bfloat16   the step with such a gradient is skipped (loss_scale.py), but the run is unhealthy: a divergence
float16             overflows are expected, a dynamic loss scale causes them; warns when the scale is at its minimum

Recovery restores the weights of the last checkpoint and resumes with the batch after the divergence. The batches
between the checkpoint and the divergence are skipped too, because the steps before a divergence often caused it. The
number of recoveries is part of the checkpoint, and a checkpoint is saved at once, so a run that is restarted afterwards
continues from the recovered state.
"""

import json
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NoReturn

import tensorflow as tf

from ssd_dist.core.errors import NumericsError, RestartError
from ssd_dist.core.storage import write_text
from ssd_dist.data.decoding import IMAGE_FEATURES
from ssd_dist.data.order import EpochPlan, read_in_order
from ssd_dist.runs.console_progress import TrainingProgress
from ssd_dist.runs.gfile_storage import explain_write_errors, retry
from ssd_dist.runs.run_folder import DIVERGENCES_NAME
from ssd_dist.training.loss_scale import LossScale
from ssd_dist.training.run_parts import Run

# How many images the error message lists.
_LISTED_IMAGES = 4


@dataclass(frozen=True)
class Divergence:
    """One divergence, a line of RUN/blowups.jsonl.

    Attributes:
      step: the step whose loss or gradient was not finite.
      reason: which of the two was not finite.
      source_ids: the images of the step's global batch, in order.
      checkpoint: the last checkpoint before the step; None if there is none.
      skipped: the first and the last step that recovery skipped; None if the run stopped.
    """

    step: int
    reason: str
    source_ids: tuple[str, ...]
    checkpoint: str | None
    skipped: tuple[int, int] | None = None

    def error(self, recoveries: int) -> NumericsError:
        """Returns the error that ends the run after `recoveries` recoveries."""
        images = ", ".join(self.source_ids[:_LISTED_IMAGES])
        if len(self.source_ids) > _LISTED_IMAGES:
            images += f" and {len(self.source_ids) - _LISTED_IMAGES} more"
        before = f", after {recoveries} recoveries" if recoveries else ""
        fix = "check these images, or lower optimizer.lr"
        if self.checkpoint is not None:
            fix += f", or set train.recover_from_blowup: {recoveries + 1} to resume from the checkpoint without them"
        return NumericsError(
            f"step {self.step}: {self.reason}{before}; images: {images} (all are listed in {DIVERGENCES_NAME}); last "
            f"checkpoint: {self.checkpoint or 'none'}; {fix}"
        )


def write_divergence(model_dir: str, divergence: Divergence) -> None:
    """Appends a divergence to RUN/blowups.jsonl; skips one already listed, as a restarted run may diverge again.

    Raises:
      CheckpointError: if the file cannot be written.
    """
    path = Path(model_dir) / DIVERGENCES_NAME
    line = json.dumps(vars(divergence)) + "\n"
    with explain_write_errors(str(path)):
        before = retry(lambda: path.read_text() if path.exists() else "", str(path))
        if line not in before:
            retry(lambda: write_text(str(path), before + line), str(path))


def read_source_ids(plan: EpochPlan, step: int) -> tuple[str, ...]:
    """Reads the ids of all images in the global batch of `step` (counted from 1), of all workers."""
    all_workers = replace(plan, worker=0, workers=1)
    with tf.device("/CPU:0"):
        records = islice(read_in_order(all_workers, step - 1), plan.global_batch_size)
        features = {"image/source_id": IMAGE_FEATURES["image/source_id"]}
        parsed = [tf.io.parse_single_example(record, features)["image/source_id"] for record, _, _ in records]
    return tuple(source_id.numpy().decode(errors="replace") for source_id in parsed)


def find_divergence(run: Run) -> tuple[int, str] | None:
    """Returns the first step since the last call that diverged, and the reason; None if there was none.

    Overflows that mixed precision expects are not a divergence.
    """
    return None if run.divergence.overflow_is_expected else run.trainer.find_divergence()


def recover(run: Run, step: int, reason: str) -> None:
    """Restores the last checkpoint's weights and resumes after `step`; a collective, so all workers must call it.

    Args:
      run: the run.
      step: the step whose loss or gradient was not finite.
      reason: which of the two was not finite.

    Raises:
      NumericsError: if the run has used up `train.recover_from_blowup`, or has no checkpoint.
      RestartError: if the workers restored different checkpoints.
    """
    source_ids = read_source_ids(run.data.plan, step)
    # The other workers read the checkpoint that the chief has written.
    run.checkpoints.wait()
    run.workers.wait_for_all()
    recoveries = int(run.state.recoveries.numpy())
    if recoveries >= run.divergence.max_recoveries:
        stop_diverged_run(run, Divergence(step, reason, source_ids, run.checkpoints.latest()), recoveries)
    checkpoint = restore_last_checkpoint(run, step, reason)
    if checkpoint is None:
        stop_diverged_run(run, Divergence(step, reason, source_ids, None), recoveries)
    start = run.state.current_step
    if run.output.log is not None:
        run.output.log.check_folder()
        write_divergence(run.output.model_dir, Divergence(step, reason, source_ids, checkpoint, (start + 1, step)))
    # Read from the restored checkpoint, which may be older than the last recovery.
    recoveries = int(run.state.recoveries.numpy()) + 1
    run.state.recoveries.assign(recoveries)
    run.state.step.assign(step)
    run.trainer.train_dataset = run.data.create_dataset()
    if run.output.log is not None:
        run.output.log.drop_rows_after(start, run.state.evaluated_step)
    run.output.progress.print_line(
        f"step {step}  {reason}: restored the weights of step {start}, skipped steps {start + 1} to {step} "
        f"(recovery {recoveries} of train.recover_from_blowup: {run.divergence.max_recoveries})"
    )
    run.checkpoints.save(step)


def stop_diverged_run(run: Run, divergence: Divergence, recoveries: int) -> NoReturn:
    """Records the divergence and ends the run.

    Raises:
      NumericsError: always.
    """
    if run.output.log is not None:
        run.output.log.check_folder()
        write_divergence(run.output.model_dir, divergence)
    run.workers.wait_for_all()
    raise divergence.error(recoveries)


def restore_last_checkpoint(run: Run, step: int, reason: str) -> str | None:
    """Restores the newest checkpoint on all workers and returns its path.

    Raises:
      RestartError: if the workers restored different checkpoints.
    """
    evaluated = run.state.evaluated_step
    checkpoint = run.checkpoints.restore_latest()
    start = run.state.current_step
    # The checkpoint may have been saved before the evaluation of its own step; that evaluation remains valid.
    if evaluated <= start:
        run.state.evaluated.assign(evaluated)
    if not run.workers.all_equal(start):
        raise RestartError(f"step {step}: {reason}, and the workers restored different checkpoints; start again")
    return checkpoint


class OverflowMonitor:
    """Warns if float16 gradients overflow while the loss scale is at its minimum."""

    def __init__(self, loss_scale: LossScale, progress: TrainingProgress) -> None:
        self._loss_scale = loss_scale
        self._progress = progress
        self._skipped = int(loss_scale.skipped_steps.numpy())

    def check(self, step: int) -> None:
        """Checks the steps since the last call; `step` is the current step."""
        skipped, before = int(self._loss_scale.skipped_steps.numpy()), self._skipped
        self._skipped = skipped
        if skipped > before and self._loss_scale.is_minimal():
            self._progress.print_line(
                f"step {step}  warning: gradients of {skipped - before} steps overflowed although the loss scale is at "
                f"its minimum, {float(self._loss_scale.scale.numpy()):g}; lower optimizer.lr, or use "
                "amp.policy: mixed_bfloat16"
            )
