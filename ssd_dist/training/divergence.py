"""A loss that is NaN or infinite: the run says which images did it and stops, or goes back and leaves them out.

float32, bfloat16   a gradient that is not finite changes nothing (optimizer.py), yet the run is ill: it is a blow-up
float16             such gradients are what a dynamic loss scale looks for; worth a word when the scale can fall no more

Going back: the weights of the last checkpoint go on with the batch after the one that blew up. What lies between is
left out with it, for the steps before a blow-up have often led there. The count is part of the checkpoint, and the next
one is saved at once: a run that is restarted goes the same way.
"""

import json
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import tensorflow as tf

from ssd_dist.core.errors import NumericsError, RestartError
from ssd_dist.data.decoding import IMAGE_FEATURES
from ssd_dist.data.order import EpochPlan, read_in_order
from ssd_dist.runs.gfile_storage import explain_write_errors, retry, write_text
from ssd_dist.training.assembly import Run

DIVERGENCES_NAME = "blowups.jsonl"
_NAMED = 4


@dataclass(frozen=True)
class Divergence:
    """What went wrong where: RUN/blowups.jsonl has one of these a line.

    Attributes:
      step: the step whose loss or gradient was not finite.
      reason: which of them.
      source_ids: the images of its global batch, in order.
      checkpoint: the last good one; None if there is none.
      skipped: the steps left out by going back, [first, last]; None if the run stopped.
    """

    step: int
    reason: str
    source_ids: tuple[str, ...]
    checkpoint: str | None
    skipped: tuple[int, int] | None = None

    def error(self, recoveries: int) -> NumericsError:
        """The end of the run, told in a line; `recoveries` is how often it went back before."""
        images = ", ".join(self.source_ids[:_NAMED])
        if len(self.source_ids) > _NAMED:
            images += f" and {len(self.source_ids) - _NAMED} more"
        before = f" for the {recoveries + 1}. time" if recoveries else ""
        return NumericsError(
            f"{self.reason} at step {self.step}{before}, with the images {images} ({DIVERGENCES_NAME} has all); "
            f"the last good checkpoint is {self.checkpoint or 'none'}; look at these images, lower optimizer.lr, "
            f"or set train.recover_from_blowup: {recoveries + 1} to go back and leave them out"
        )


def write_divergence(model_dir: str, blowup: Divergence) -> None:
    """Adds it to RUN/blowups.jsonl, once: a run that was restarted comes by the same place again.

    Raises:
      CheckpointError: if it cannot be written.
    """
    path = Path(model_dir) / DIVERGENCES_NAME
    line = json.dumps(vars(blowup)) + "\n"
    with explain_write_errors(str(path)):
        before = retry(lambda: path.read_text() if path.exists() else "", str(path))
        if line not in before:
            retry(lambda: write_text(str(path), before + line), str(path))


def read_source_ids(plan: EpochPlan, step: int) -> tuple[str, ...]:
    """The images of the global batch of `step` (counted from 1), whoever of the workers read them."""
    whole = replace(plan, worker=0, workers=1)
    with tf.device("/CPU:0"):
        records = islice(read_in_order(whole, step - 1), plan.global_batch_size)
        wanted = {"image/source_id": IMAGE_FEATURES["image/source_id"]}
        parsed = [tf.io.parse_single_example(record, wanted)["image/source_id"] for record, _, _ in records]
    return tuple(source_id.numpy().decode(errors="replace") for source_id in parsed)


def find_divergence(run: Run) -> tuple[int, str] | None:
    """The step that blew up since this was last asked, and what of it; None where all is well, or as usual."""
    return None if run.overflows_are_usual else run.trainer.find_divergence()


def roll_back(run: Run, step: int, reason: str) -> None:
    """Goes on with the last checkpoint's weights after `step`, whose loss or gradient was not finite.

    Raises:
      NumericsError: if the config does not want that, or it was done as often as it wants.
    """
    state, source_ids = run.state, read_source_ids(run.plan, step)
    before = int(state.recoveries.numpy())
    stops = before >= run.config.train.recover_from_blowup
    # The others read what the chief has written.
    run.store.wait()
    run.wait_for_all()
    if stops:
        blowup = Divergence(step, reason, source_ids, run.store.latest())
    else:
        evaluated = int(state.evaluated.numpy())
        checkpoint = run.store.restore_latest()
        start = int(state.step.numpy())
        # An evaluation that was made up for may be younger than the checkpoint of its step; it stands.
        if evaluated <= start:
            state.evaluated.assign(evaluated)
        if run.worker_sum.any(start != run.worker_sum.from_chief(start, run.log is not None)):
            raise RestartError(
                f"step {step}: {reason}, and the workers went back to different checkpoints; start again"
            )
        before = int(state.recoveries.numpy())
        blowup = Divergence(step, reason, source_ids, checkpoint, (start + 1, step))
    if run.log is not None:
        write_divergence(run.model_dir, blowup)
    if stops:
        run.wait_for_all()
        raise blowup.error(before)
    state.recoveries.assign(before + 1)
    state.step.assign(step)
    run.trainer.train_dataset = run.read_from()
    if run.log is not None:
        run.log.drop_rows_after(start, int(state.evaluated.numpy()))
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
