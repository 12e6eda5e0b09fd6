"""Compares the training step with a bare forward and backward pass, and measures its parts.

Width 1.0, 300 x 300 pixels, 16 images per step, float32, one replica on all cores.
"""

import os
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
import tf_keras

from benchmarks.rows import Row, run_benchmark, take_turns
from benchmarks.shards import BATCH, generated_shards, with_online_targets
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import Config
from ssd_dist.data.augmentation import apply_color_map
from ssd_dist.data.batch import TrainBatch
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.model.detector import build_detector, normalize_image
from ssd_dist.runs.checkpoint_writer import CheckpointWriter
from ssd_dist.training.assembly import create_state, create_trainer, distribute_training
from ssd_dist.training.losses import multibox_losses
from ssd_dist.training.mining import mine_per_image
from ssd_dist.training.run import make_reproducible
from ssd_dist.training.targets import count_targets


def measure_step(config: Config, folder: Path) -> list[Row]:
    """Compares the step with forward and backward pass, and measures the parts that it adds."""
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    manifest = load_manifest(config.data)
    plan = plan_training(config.data, config.train, manifest.split("train", config.data.dir))
    with strategy.scope():
        state = create_state(config, len(manifest.classes), 100000)
        dataset = distribute_training(config, strategy, plan, state)
        trainer = create_trainer(config, strategy, state, dataset, 100000)
    batches = training_batches(config.data, config.anchors, config.matching, config.model.input_size, plan, BATCH, 0)
    batch = next(iter(batches))
    model = state.model
    pixels = normalize_image(batch.images)

    bare = compile_passes(model, pixels)
    ours, reference = take_turns(lambda: trainer.train(tf.constant(4)), lambda: [bare() for _ in range(4)], 6)
    rows = [Row("training step", "img/s", 4 * BATCH / ours, 4 * BATCH / reference, "bare forward + backward")]
    step = ours / 4
    constant = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch).repeat())
    online = distribute_training(with_online_targets(config), strategy, plan, state)

    def compare_input(dataset: tf.distribute.DistributedDataset, what: str) -> Row:
        with strategy.scope():
            other = create_trainer(config, strategy, state, dataset, 100000)
        ours, reference = take_turns(lambda: trainer.train(tf.constant(4)), lambda: other.train(tf.constant(4)), 4)
        return Row("training from TFRecords", "img/s", 4 * BATCH / ours, 4 * BATCH / reference, what)

    rows += [compare_input(constant, "a constant batch"), compare_input(online, "data.targets: online")]
    gradients = [tf.fill(variable.shape, 1e-6) for variable in state.optimizer.variables_to_train]
    parts = {
        "loss, mining, dense targets": measure_loss(config, batch, model(pixels, training=False)),
        "pixels to float32, colors": measure_alone(
            lambda: apply_color_map(normalize_image(batch.images), batch.color_maps)
        ),
        "optimizer with EMA": measure_alone(lambda: strategy.run(state.optimizer.apply, args=(gradients,))),
    }
    if state.ema is not None:
        weights = [tf.identity(average) for average in state.ema.averages.values()]
        parts["EMA"] = measure_alone(lambda: state.ema.update(tf.constant(1, tf.int64), weights))
    rows += [Row(name, "ms per step", 1e3 * seconds, 1e3 * step, "the step") for name, seconds in parts.items()]
    checkpoint = state.checkpoint()
    saved = folder / "checkpoint"
    writer = CheckpointWriter(checkpoint, str(saved))
    writer.write("ckpt-1")
    data = os.urandom(sum(file.stat().st_size for file in saved.iterdir()))
    size = len(data)
    save, plain = take_turns(lambda: writer.write("ckpt-1"), lambda: write_through(folder / "plain", data), 5)
    rows.append(
        Row("checkpoint save", "MB/s", size / save / 1e6, size / plain / 1e6, "writing and flushing the same bytes")
    )
    return rows


def measure_freezing(config: Config, frozen_blocks: int = 3) -> list[Row]:
    """Compares forward and backward pass with and without frozen blocks of the backbone."""
    pixels = tf.random.stateless_uniform([BATCH, config.model.input_size, config.model.input_size, 3], [0, 1], -1.0)

    def compile_with(blocks: int) -> Callable[[], tf.Tensor]:
        backbone = config.backbone.model_copy(update={"frozen_blocks": blocks})
        return compile_passes(build_detector(config.model, backbone, config.anchors, class_count=3), pixels)

    ours, reference = take_turns(compile_with(frozen_blocks), compile_with(0), 6)
    name = f"forward + backward, {frozen_blocks} frozen blocks"
    return [Row(name, "img/s", BATCH / ours, BATCH / reference, "none frozen")]


def compile_passes(model: tf_keras.Model, pixels: tf.Tensor) -> Callable[[], tf.Tensor]:
    """Returns a function that computes a forward and a backward pass for a batch of pixels."""

    @tf.function(autograph=False)
    def compute_passes() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = model(pixels, training=True)
            loss = tf.reduce_sum(outputs["logits"]) + tf.reduce_sum(outputs["offsets"])
        return tf.add_n([tf.reduce_sum(g) for g in tape.gradient(loss, model.trainable_variables)])

    return compute_passes


def write_through(path: Path, data: bytes) -> None:
    """Writes a file and flushes it to the disk, as a checkpoint writer does."""
    with path.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())


def measure_alone(work: Callable[[], object]) -> float:
    """Measures the median seconds of a part of the step on its own."""
    compiled = tf.function(work, autograph=False)

    def run() -> None:
        compiled()
        # A call returns as soon as its kernels are queued.
        tf.test.experimental.sync_devices()

    return take_turns(run, lambda: None, 20)[0]


def measure_loss(config: Config, batch: TrainBatch, outputs: dict[str, tf.Tensor]) -> float:
    """Measures the seconds of targets, mining, loss and gradient for constant outputs."""
    anchors = len(generate_anchors(config.anchors, config.model.input_size))

    def run() -> list[tf.Tensor]:
        counts = count_targets(batch.targets, anchors, config.mining)
        with tf.GradientTape() as tape:
            tape.watch([outputs["logits"], outputs["offsets"]])
            losses = multibox_losses(
                outputs["logits"], outputs["offsets"], batch.targets, config.loss,
                lambda values, candidates: mine_per_image(values, candidates, counts.quota),
            )  # fmt: skip
            loss = tf.reduce_sum(losses.classification) + tf.reduce_sum(losses.localization)
        return tape.gradient(loss, [outputs["logits"], outputs["offsets"]])

    return measure_alone(run)


def measure() -> list[Row]:
    with generated_shards() as (folder, config):
        make_reproducible(config)
        return measure_step(config, folder) + measure_freezing(config)


if __name__ == "__main__":
    run_benchmark(measure, __doc__)
