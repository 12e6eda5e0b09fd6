"""The input pipelines, from shards to the batches of one replica.

training:   read in order -> batch -> parse, decode, flip, draw color maps; infinite, resumable at any step
evaluation: read every record of a split -> decode -> batch, padded with images of index -1; repeated endlessly
"""

import math
import os
from collections.abc import Sequence

import tensorflow as tf

from ssd_dist.core.config import AnchorConfig, DataConfig, MatchingConfig, TrainConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import Split
from ssd_dist.data.augmentation import Augmenter
from ssd_dist.data.batch import PADDING, EvalBatch, SparseTargets, TrainBatch
from ssd_dist.data.decoding import IMAGE_FEATURES, TARGET_FEATURES, decode_jpeg, pad_targets
from ssd_dist.data.online_targets import OnlineTargets
from ssd_dist.data.order import EpochPlan, read_in_order
from ssd_dist.data.repeat_factors import compute_repeat_factors
from ssd_dist.data.shard_files import locate_shards
from ssd_dist.data.shard_guard import ShardGuard


def plan_training(data: DataConfig, train: TrainConfig, split: Split, worker: int = 0, workers: int = 1) -> EpochPlan:
    """Plans which shards this worker reads and how many steps an epoch has.

    Raises:
      DataError: if augmented copies, shards or the counts for `data.repeat_threshold` are missing.
      UsageError: if the shards or the global batch are not divisible by the number of workers.
    """
    # Online targets are computed from the whole image, which is copy 0.
    required = 1 if data.targets == "online" else data.views
    views = split.views[:required]
    if len(views) < required:
        raise DataError(
            f"data.views: {data.views}, but {data.dir} was prepared with {len(split.views)}; "
            "prepare again with this config into another --output, or lower data.views"
        )
    if required > 1:
        split.check_crop_settings(data.augmentation, data.dir)
    counts = split.count_images_per_class(data.dir) if data.repeat_threshold else {}
    return EpochPlan(
        files=tuple(tuple(locate_shards(view.shards, data, data.on_corrupt == "skip")) for view in views),
        shard_records=min(shard.examples for view in views for shard in view.shards),
        largest_shard=max(shard.examples for view in views for shard in view.shards),
        global_batch_size=train.global_batch_size,
        seed=train.seed,
        worker=worker,
        workers=workers,
        repeat_factors=compute_repeat_factors(counts, split.views[0].examples, data.repeat_threshold),
    )


def training_batches(
    data: DataConfig,
    anchors: AnchorConfig,
    matching: MatchingConfig,
    input_size: int,
    plan: EpochPlan,
    batch_size: int,
    start_step: int,
    order: Sequence[int] = (),
) -> tf.data.Dataset:
    """Returns this worker's infinite dataset of training batches.

    Args:
      data: where targets come from, and the augmentation.
      anchors: the anchors, which flips permute.
      matching: the matching of `data.targets: online`; not used with precomputed targets.
      input_size: side of the images in pixels.
      plan: the shards to read, their order and the seed of all draws.
      batch_size: images per `TrainBatch` of one replica.
      start_step: global step of the first batch; earlier records are skipped.
      order: a permutation of the worker's records of a step, for its replicas in turn; empty keeps their order.
    """
    augment = Augmenter(data.augmentation, anchors, input_size, plan.seed)
    records = read_in_order(plan, start_step)
    if list(order) != sorted(order):
        records = _reorder_each(records, order)

    def load(records: tf.Tensor, epochs: tf.Tensor, positions: tf.Tensor) -> TrainBatch:
        features = tf.io.parse_example(records, IMAGE_FEATURES | TARGET_FEATURES)
        images = [decode_jpeg(encoded, input_size) for encoded in tf.unstack(features["image/encoded"])]
        return augment(images, pad_targets(features), features["image/source_id"], epochs, positions)

    def finish(
        images: tf.Tensor, targets: SparseTargets, source_ids: tf.Tensor, epochs: tf.Tensor, positions: tf.Tensor
    ) -> TrainBatch:
        return augment(tf.unstack(images), targets, source_ids, epochs, positions)

    # One call decodes its images in parallel, which AUTOTUNE does not model: with it, decoding was a fifth slower.
    calls = max(2, math.ceil(2 * len(os.sched_getaffinity(0)) / batch_size))
    if data.targets == "precomputed":
        dataset = records.batch(batch_size, drop_remainder=True)
        dataset = dataset.map(load, num_parallel_calls=calls, deterministic=True)
    else:
        online = OnlineTargets(data.augmentation, anchors, matching, input_size, plan.seed)
        dataset = _batch_online(online, input_size, records, batch_size)
        dataset = dataset.map(finish, num_parallel_calls=calls, deterministic=True)
    # Otherwise the workers would sum, before each batch, how many of them have one.
    return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)).prefetch(4)


def _reorder_each(records: tf.data.Dataset, order: Sequence[int]) -> tf.data.Dataset:
    """Reorders every `len(order)` records: element i of the result is element `order[i]`."""
    steps = records.batch(len(order), drop_remainder=True)
    return steps.map(lambda *step: tuple(tf.gather(values, order) for values in step)).unbatch()


def _batch_online(online: OnlineTargets, input_size: int, records: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Returns batches of (images, targets, source ids, epochs, positions) before flips."""
    shapes = SparseTargets(anchors=[None], labels=[None], offsets=[None, 4], ignored=[None])
    padding = SparseTargets(PADDING, PADDING, 0.0, PADDING)
    examples = records.map(
        lambda record, epoch, position: (*online.make(record, epoch), epoch, position),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return examples.padded_batch(
        batch_size,
        padded_shapes=([input_size, input_size, 3], shapes, [], [], []),
        padding_values=(tf.constant(0, tf.uint8), padding, "", tf.constant(0, tf.int64), 0),
        drop_remainder=True,
    )


def count_eval_steps(split: Split, batch_size: int, workers: int = 1) -> int:
    """Returns the number of steps until every worker has read its shards, `batch_size` images per step."""
    counts = [sum(shard.examples for shard in split.views[0].shards[w::workers]) for w in range(workers)]
    return math.ceil(max(counts) / batch_size)


def eval_batches(
    config: DataConfig,
    input_size: int,
    split: Split,
    batch_size: int,
    images_per_worker: int,
    worker: int = 0,
    workers: int = 1,
    guard: ShardGuard | None = None,
) -> tf.data.Dataset:
    """Returns an endless dataset; each pass has every record of this worker's shards (w, w + W, ...) once, padded.

    Args:
      config: where and how to read the dataset.
      input_size: side of the images in pixels.
      split: the split; only its whole images are read, not the augmented copies.
      batch_size: images per `EvalBatch` of one replica.
      images_per_worker: images of a pass, with padding: a multiple of `batch_size`, equal on all workers.
      worker: index of this worker.
      workers: number of workers.
      guard: checks each shard when it is opened and at its end; None to read without checks.
    """
    shards = split.views[0].shards
    files = locate_shards(shards, config)
    examples = [shard.examples for shard in shards]
    counts, first_index = tf.constant(examples, tf.int64), tf.constant(_cumulate(examples), tf.int64)

    def read_shard(file: tf.Tensor, count: tf.Tensor, first: tf.Tensor) -> tf.data.Dataset:
        records = guard.read(file, count) if guard else tf.data.TFRecordDataset(file)
        return records.enumerate(first)

    def load(index: tf.Tensor, record: tf.Tensor) -> EvalBatch:
        features = tf.io.parse_single_example(record, {"image/encoded": IMAGE_FEATURES["image/encoded"]})
        return EvalBatch(decode_jpeg(features["image/encoded"], input_size), index)

    own = tf.data.Dataset.from_tensor_slices((files, counts, first_index)).shard(workers, worker)
    dataset = own.flat_map(read_shard).map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    blank = EvalBatch(tf.zeros([input_size, input_size, 3], tf.uint8), tf.constant(PADDING, tf.int64))
    dataset = dataset.concatenate(tf.data.Dataset.from_tensors(blank).repeat()).take(images_per_worker)
    return dataset.batch(batch_size, drop_remainder=True).repeat().prefetch(2)


def _cumulate(counts: Sequence[int]) -> list[int]:
    """Returns the index of the first record of each shard."""
    return [sum(counts[:index]) for index in range(len(counts))]
