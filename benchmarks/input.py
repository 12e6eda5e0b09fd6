"""Compares the input pipeline with a bare decode loop, with online targets, and with one that does not check shards."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import tensorflow as tf

from benchmarks.rows import Row, run_benchmark, take_turns
from benchmarks.shards import BATCH, generated_shards, with_online_targets
from ssd_dist.core.config import Config
from ssd_dist.core.tfrecord_io import read_records
from ssd_dist.data.corrupt_records import verify_plan
from ssd_dist.data.order import read_in_order
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.repeat_factors import UNIT
from ssd_dist.data.shard_files import load_manifest

# With 256 images, opening the shards for an epoch took a fifth of the time.
IMAGES = 1024
# Passes over the shards per round, so that starting an iterator takes a small part of the time.
PASSES = 2


def measure_input(config: Config) -> list[Row]:
    """Compares the input pipeline with a bare decode loop of the same JPEGs, and with pipelines that do more."""
    manifest = load_manifest(config.data)
    split, size = manifest.split("train", config.data.dir), config.model.input_size
    plan = plan_training(config.data, config.train, split)
    images = []
    for file in plan.files[0]:
        with Path(file).open("rb") as stream:
            for record in read_records(stream, file):
                images.append(tf.train.Example.FromString(record).features.feature["image/encoded"].bytes_list.value[0])
    count = len(images) // BATCH * BATCH
    # The same inverse DCT as in the input pipeline.
    decode = partial(tf.io.decode_jpeg, dct_method="INTEGER_ACCURATE")
    bare = tf.data.Dataset.from_tensor_slices(images[:count]).repeat()
    bare = bare.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(4)
    read = (config.anchors, config.matching, size, plan, BATCH, 0)
    ours = training_batches(config.data, *read)
    online = training_batches(with_online_targets(config).data, *read)
    checked_plan, _ = verify_plan(plan, split, size, config.data)
    checked = training_batches(config.data, config.anchors, config.matching, size, checked_plan, BATCH, 0)

    def drain(batches: tf.data.Dataset) -> Callable[[], None]:
        """Returns a function that reads a fixed number of batches, so that prefetching stops with it."""

        def run() -> None:
            for _ in batches.take(PASSES * count // BATCH):
                pass

        return run

    fast, limit = take_turns(drain(ours), drain(bare), 6)
    # Processor time is what the pipeline takes from the network on a machine without a GPU; waiting is not in it.
    spent, spent_bare = take_turns(drain(ours), drain(bare), 3, time.process_time)
    in_order = read_in_order(plan).batch(BATCH, drop_remainder=True)
    reading, _ = take_turns(drain(in_order), drain(bare), 3, time.process_time)
    repeated_plan = replace(plan, repeat_factors=(UNIT,) * (len(manifest.classes) + 1))
    repeated = training_batches(config.data, *read[:3], repeated_plan, BATCH, 0)
    spent_repeated, spent_once = take_turns(drain(repeated), drain(ours), 3, time.process_time)
    precomputed, matched = take_turns(drain(ours), drain(online), 3)
    guarded, unguarded = take_turns(drain(checked), drain(ours), 6)
    count *= PASSES
    return [
        Row("input pipeline", "img/s", count / fast, count / limit, "bare decode loop, same number of threads"),
        Row("input pipeline", "ms CPU", 1e3 * spent / count, 1e3 * spent_bare / count, "bare decode loop, per image"),
        Row("reading in order", "ms CPU", 1e3 * reading / count, 1e3 * spent / count, "the input pipeline, per image"),
        Row("repeated images", "ms CPU", 1e3 * spent_repeated / count, 1e3 * spent_once / count, "without, per image"),
        Row("precomputed targets", "img/s", count / precomputed, count / matched, "data.targets: online"),
        Row("checks of the shards", "img/s", count / guarded, count / unguarded, "the same pipeline without them"),
    ]


def measure() -> list[Row]:
    with generated_shards(IMAGES) as (_, config):
        return measure_input(config)


if __name__ == "__main__":
    run_benchmark(measure, __doc__)
