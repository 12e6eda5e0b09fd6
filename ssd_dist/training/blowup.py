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

from ssd_dist.core.errors import NumericsError
from ssd_dist.data.decoding import IMAGE_FEATURES
from ssd_dist.data.order import EpochPlan, read_in_order
from ssd_dist.training.durable import write_errors

BLOWUPS_NAME = "blowups.jsonl"
_NAMED = 4


@dataclass(frozen=True)
class Blowup:
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
            f"{self.reason} at step {self.step}{before}, with the images {images} ({BLOWUPS_NAME} has all); the last "
            f"good checkpoint is {self.checkpoint or 'none'}; look at these images, lower optimizer.lr, or set "
            f"train.recover_from_blowup: {recoveries + 1} to go back and leave them out"
        )


def write_blowup(model_dir: str, blowup: Blowup) -> None:
    """Adds it to RUN/blowups.jsonl, once: a run that was restarted comes by the same place again.

    Raises:
      CheckpointError: if it cannot be written.
    """
    path = Path(model_dir) / BLOWUPS_NAME
    line = json.dumps(vars(blowup)) + "\n"
    with write_errors(str(path)):
        before = path.read_text() if path.exists() else ""
        if line not in before:
            path.write_text(before + line)


def read_source_ids(plan: EpochPlan, step: int) -> tuple[str, ...]:
    """The images of the global batch of `step` (counted from 1), whoever of the workers read them."""
    whole = replace(plan, worker=0, workers=1)
    with tf.device("/CPU:0"):
        records = islice(read_in_order(whole, step - 1), plan.global_batch_size)
        wanted = {"image/source_id": IMAGE_FEATURES["image/source_id"]}
        parsed = [tf.io.parse_single_example(record, wanted)["image/source_id"] for record, _, _ in records]
    return tuple(source_id.numpy().decode(errors="replace") for source_id in parsed)
