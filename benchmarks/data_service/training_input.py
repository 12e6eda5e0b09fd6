"""Makes training batches as the trainer does: whole, or the part of one of several streams of the same order."""

import tensorflow as tf

from ssd_dist.core.config import Config
from ssd_dist.data.corrupt_records import verify_plan
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.shard_files import load_manifest


def make_stream(
    config: Config, start_step: int = 0, stream: int = 0, streams: int = 1, checked: bool = False
) -> tf.data.Dataset:
    """Returns the batches of one stream from a step on: those that worker `stream` of `streams` would train on.

    Args:
      config: config of the training.
      start_step: step of the first batch.
      stream: index of the stream.
      streams: number of streams; each step has one batch per stream, which are equal parts of the global batch.
      checked: checks the shards while reading them, as the trainer does.
    """
    split = load_manifest(config.data).split("train", config.data.dir)
    plan = plan_training(config.data, config.train, split, stream, streams)
    if checked:
        plan, _ = verify_plan(plan, split, config.model.input_size, config.data)
    size, images = config.model.input_size, config.train.global_batch_size // streams
    return training_batches(config.data, config.anchors, config.matching, size, plan, images, start_step)


def make_local(config: Config, streams: int = 1) -> tf.data.Dataset:
    """Returns the batches of all streams in turns, made by one pipeline in this process."""
    split = load_manifest(config.data).split("train", config.data.dir)
    plan = plan_training(config.data, config.train, split)
    images = config.train.global_batch_size
    # The positions of stream 0, of stream 1, ...
    order = [position for stream in range(streams) for position in range(stream, images, streams)]
    return training_batches(
        config.data, config.anchors, config.matching, config.model.input_size, plan, images // streams, 0, order
    )
