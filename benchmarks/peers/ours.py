"""Our training step on a constant batch, as `benchmarks.step` measures it: with augmented colors, mining and EMA."""

import sys
from pathlib import Path

import tensorflow as tf

from benchmarks.peers.requests import answer_requests
from benchmarks.shards import BATCH, prepare_shards
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.training.assembly import create_state, create_trainer
from ssd_dist.training.run import make_reproducible

STEPS = 100_000


def train(replies: int, folder: Path) -> None:
    """Trains on the COCO dataset in `folder/raw` on request."""
    config = prepare_shards(folder)
    make_reproducible(config)
    manifest = load_manifest(config.data)
    plan = plan_training(config.data, config.train, manifest.split("train", config.data.dir))
    batches = training_batches(config.data, config.anchors, config.matching, config.model.input_size, plan, BATCH, 0)
    batch = next(iter(batches))
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        state = create_state(config, len(manifest.classes), STEPS)
        dataset = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch).repeat())
        trainer = create_trainer(config, strategy, state, dataset, STEPS)
    parameters = sum(variable.shape.num_elements() for variable in state.model.trainable_variables)
    anchors = len(generate_anchors(config.anchors, config.model.input_size))
    for steps in answer_requests(replies, parameters, anchors):
        trainer.train(tf.constant(steps))


if __name__ == "__main__":
    train(int(sys.argv[1]), Path(sys.argv[2]))
