"""Divides the global batch between parts, replicas and batch-norm groups, in the same way for every layout.

    positions of the global batch:   0 1 2 3 ... B - 1
    part      position // (B / A)    A = train.accumulate_steps
    group     position mod G         G groups in each part of B / A = G g images, g = model.batch_norm_group
    replica   position mod R         R replicas on W workers; a group lies on one replica, because R divides G

Worker w reads the positions congruent to w mod W (data/order.py), so the positions of a replica and of a group are
spread over the batch in the same way. If g is B / A, one group lies on all replicas.

A replica processes its images of one part at once, or one group at once with `train.reduction: exact`.
"""

from dataclasses import dataclass

from ssd_dist.core.config import Config
from ssd_dist.core.errors import UsageError


@dataclass(frozen=True)
class BatchDivision:
    """The division of the global batch in one layout.

    Attributes:
      images: images of the global batch.
      replicas: replicas of all workers.
      parts: parts that are processed one after another (`train.accumulate_steps`).
      group: images that share batch-norm statistics (`model.batch_norm_group`).
      is_exact: whether a replica processes one group at once (`train.reduction: exact`).
    """

    images: int
    replicas: int
    parts: int
    group: int
    is_exact: bool = False

    @property
    def images_at_once(self) -> int:
        """Images that a replica processes at once."""
        return self.group if self.is_exact else self.images // self.replicas // self.parts

    @property
    def passes(self) -> int:
        """Forward and backward passes of each replica in one step."""
        return self.images // self.replicas // self.images_at_once

    @property
    def is_in_parts(self) -> bool:
        """Whether the gradients of passes are stored and added before the update."""
        return self.is_exact or self.passes > 1

    @property
    def is_synchronized(self) -> bool:
        """Whether a group lies on several replicas."""
        return self.group > self.images // self.replicas // self.parts

    def order_records(self, workers: int) -> list[int]:
        """Returns the order in which a worker gives the records of a step to its replicas, one replica after another.

        A replica receives its parts one after another, and in each part its groups one after another.

        Args:
          workers: number of workers.

        Returns:
          A permutation of the indices of the worker's records, B / W of them; equal on all workers.
        """
        part = self.images // self.parts // workers
        groups = 1 if self.is_synchronized else part // self.group
        replicas = self.replicas // workers
        indices = range(self.images // workers)
        return sorted(indices, key=lambda index: (index % replicas, index // part, index % groups, index))


def divide_batch(config: Config, replicas: int) -> BatchDivision:
    """Divides the global batch of a config between the replicas of all workers.

    Raises:
      UsageError: if the batch cannot be divided equally between replicas and parts, or the batch-norm group fits
        neither a replica nor the batch, or lies on several replicas although the config excludes it.
    """
    train, group = config.train, config.model.batch_norm_group
    pieces = replicas * train.accumulate_steps
    at_once, rest = divmod(train.global_batch_size, pieces)
    layout = f"{replicas} replicas"
    if train.accumulate_steps > 1:
        layout += f" in {train.accumulate_steps} parts (train.accumulate_steps)"
    if rest:
        raise UsageError(
            f"train.global_batch_size: {train.global_batch_size} cannot be divided equally between {layout}; "
            f"use {max(at_once, 1) * pieces} or {(at_once + 1) * pieces}"
        )
    whole = train.global_batch_size // train.accumulate_steps
    is_exact = train.reduction == "exact"
    if at_once % group and (is_exact or group != whole):
        valid = [str(size) for size in range(1, at_once + 1) if at_once % size == 0]
        valid += [f"{whole} (synchronized between the replicas)"] if replicas > 1 and not is_exact else []
        if is_exact and group == whole:
            layout += " with train.reduction: exact"
        raise UsageError(
            f"model.batch_norm_group: {group} does not fit train.global_batch_size: {train.global_batch_size} on "
            f"{layout}, which process {at_once} images each at once; use {', '.join(valid)}, or another number of "
            "images or replicas"
        )
    if train.jit_compile and group > at_once:
        raise UsageError(
            f"train.jit_compile: XLA cannot compile the communication of model.batch_norm_group: {group} on {layout}; "
            f"set train.jit_compile: false, or model.batch_norm_group to at most {at_once}"
        )
    if config.quantization.aware and group > at_once:
        raise UsageError(
            "quantization.aware: ranges of activations are not synchronized between replicas; with "
            f"model.batch_norm_group: {group}, {layout} share a group; set model.batch_norm_group to at most {at_once}"
        )
    return BatchDivision(train.global_batch_size, replicas, train.accumulate_steps, group, is_exact)
