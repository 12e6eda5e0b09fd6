"""Reads training records in an order that is a function of only (seed, epoch, position).

    epoch e: permute the shards -> shuffle inside each -> take as many of each as the smallest has -> interleave
             position p comes from shard order[p mod S]

With repeat factors, the records of a shard are resampled before they are shuffled.

Worker w of W reads shards order[w], order[w + W], ..., which hold exactly the positions congruent to w mod W. The
global batch of a step therefore contains the same records for any number of workers and replicas, and a run can resume
at any step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import tensorflow as tf

from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.data.repeat_factors import resample
from ssd_dist.data.shard_guard import ShardGuard

# Records held in memory for shuffling, over all shards: about 400 MB of 300x300 JPEGs.
SHUFFLE_RECORDS = 16384
# A record that appears again in an epoch has the draws of a later epoch, which no run reaches.
_EPOCHS_BETWEEN_REPETITIONS = 2**32


@dataclass(frozen=True)
class EpochPlan:
    """The number of records and steps of an epoch, and the part that this worker reads.

    Attributes:
      files: shard files [V, S] of V augmented copies; epoch e reads copy e mod V.
      shard_records: records taken from each shard.
      global_batch_size: records per step over all workers.
      seed: `train.seed`.
      worker: index of this worker.
      workers: number of workers.
      largest_shard: records of the largest shard; 0 if all have `shard_records`.
      repeat_factors: weights of images by their labels, from `compute_repeat_factors`; empty if all are equal.
      guard: checks each shard when it is opened and at its end; None before the shards are verified.
    """

    files: tuple[tuple[str, ...], ...]
    shard_records: int
    global_batch_size: int
    seed: int
    worker: int = 0
    workers: int = 1
    largest_shard: int = 0
    repeat_factors: tuple[int, ...] = ()
    guard: ShardGuard | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raises DataError or UsageError if the shards cannot be read evenly."""
        if self.steps_per_epoch == 0:
            raise DataError(
                f"an epoch has {self.shard_records * self.shards} records ({self.shards} shards with at least "
                f"{self.shard_records} each), fewer than train.global_batch_size ({self.global_batch_size}): "
                "prepare into another --output with fewer shards (--shards), or lower the batch size"
            )
        for what, number in (("shards", self.shards), ("train.global_batch_size", self.global_batch_size)):
            if number % self.workers:
                fix = "prepare again into another --output with --shards=" if what == "shards" else "set it to "
                raise UsageError(
                    f"{number} ({what}) is not divisible by {self.workers} workers; use another number of workers, or "
                    f"{fix}a multiple of {self.workers}"
                )

    @property
    def shards(self) -> int:
        """Number of shards S."""
        return len(self.files[0])

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch: floor(smallest shard * S / global batch)."""
        return self.shard_records * self.shards // self.global_batch_size

    def find_change(self) -> str | None:
        """Returns which shard has changed since it was verified, and how to fix it; None if none has."""
        return self.guard.find_change() if self.guard else None


def read_in_order(plan: EpochPlan, start_step: int = 0) -> tf.data.Dataset:
    """Returns this worker's infinite dataset of (serialized record, epoch, position in the global batch).

    It starts at `start_step`; earlier records are skipped without decoding. Random draws depend on the epoch. A record
    that appears again in an epoch has another number there, so that its draws differ.
    """
    first_epoch, first_step = divmod(start_step, plan.steps_per_epoch)
    own_batch = plan.global_batch_size // plan.workers
    own_records = plan.steps_per_epoch * own_batch

    # Positions of this worker's records. Whole steps are skipped, so each epoch begins with the first position.
    positions = tf.data.Dataset.range(plan.worker, plan.global_batch_size, plan.workers, output_type=tf.int32).repeat()

    def read_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        skipped = tf.where(epoch == first_epoch, tf.constant(first_step * own_batch, tf.int64), 0)
        records = _interleave_shards(plan, epoch).take(own_records).skip(skipped)
        if plan.repeat_factors:
            return tf.data.Dataset.zip((records, positions)).map(lambda appearance, position: (*appearance, position))
        # Zip, not map: map would call a function per record.
        return tf.data.Dataset.zip((records, tf.data.Dataset.from_tensors(epoch).repeat(), positions))

    epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
    return epochs.flat_map(read_epoch)


def _interleave_shards(plan: EpochPlan, epoch: tf.Tensor) -> tf.data.Dataset:
    """Returns the records of this worker in an epoch; with repeat factors, pairs (record, epoch of its draws)."""
    view = epoch % len(plan.files)
    files = tf.constant(plan.files)[view]
    open_shard = _choose_reader(plan, view)
    own_shards = _permute(plan.shards, tf.stack([plan.seed, epoch]))[plan.worker :: plan.workers]
    block = max(SHUFFLE_RECORDS // plan.shards, 16)
    largest = max(plan.shard_records, plan.largest_shard)

    def read_shard(file: tf.Tensor, shard: tf.Tensor) -> tf.data.Dataset:
        # Not Dataset.shuffle: it also depends on TensorFlow's global seed. These draws depend on seed, epoch and shard.
        seed = tf.random.fold_in(tf.stack([plan.seed, epoch]), shard + 1)

        def shuffle_block(index: tf.Tensor, records: tf.Tensor) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
            block_seed = tf.random.fold_in(seed, index)
            order = _permute(tf.size(records), block_seed)
            if not plan.repeat_factors:
                return tf.gather(records, order)
            chosen = resample(records, plan.repeat_factors, tf.random.fold_in(block_seed, tf.constant(1, tf.int64)))
            epochs = epoch + _EPOCHS_BETWEEN_REPETITIONS * chosen.repetitions
            return tf.gather(records, tf.gather(chosen.indices, order)), tf.gather(epochs, order)

        records = open_shard(file, shard)
        if largest > block:
            # With more than one block, each epoch starts each shard at another record, so that other records are left
            # over and a batch mixes records from the whole listing. A shorter shard wraps around.
            start = tf.random.fold_in(seed, tf.constant(-1, tf.int64))
            first = tf.random.stateless_uniform([], start, 0, largest, tf.int64)
            records = records.skip(first).concatenate(records.take(first))
        # A single block is larger than the shard, so that the end of the shard is read and checked.
        blocks = records.batch(block if largest > block else block + 1).enumerate()
        return blocks.map(shuffle_block).unbatch().take(plan.shard_records)

    shards = tf.data.Dataset.from_tensor_slices((tf.gather(files, own_shards), tf.cast(own_shards, tf.int64)))
    own = plan.shards // plan.workers
    return shards.interleave(
        read_shard, cycle_length=own, block_length=1, num_parallel_calls=min(own, 2), deterministic=True
    )


def _choose_reader(plan: EpochPlan, view: tf.Tensor) -> Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]:
    """Returns a function that maps the file and the index of a shard of the augmented copy `view` to its records."""
    guard = plan.guard
    if guard is None:
        return lambda file, _: tf.data.TFRecordDataset(file)
    counts = tf.constant([[guard.count_examples(file) for file in files] for files in plan.files], tf.int64)[view]
    return lambda file, shard: guard.read(file, counts[shard])


def _permute(count: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns a random permutation of range(count) from a stateless seed [2]."""
    return tf.argsort(tf.random.stateless_uniform([count], seed), stable=True)
