"""Blocks that measure time: the step, its parts, and the input pipeline, each beside a reference."""

import os
import time
from collections.abc import Iterator

import tensorflow as tf

from benchmarks.gpu.setup import Built, Row, Setup, build, time_steps, time_trainer
from benchmarks.step import measure_loss
from ssd_dist.core.config import Config
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.model.detector import normalize_image

# Of ratios of the blocks `speed`, `parts` and `input`.
BARE_TARGET, AMP_TARGET, PARTS_TARGET, INPUT_TARGET = 0.9, 1.6, 0.08, 0.05
MODES = [("float32", False), ("float16", False), ("float16", True), ("bfloat16", False), ("float32", True)]


def speed(setup: Setup) -> Iterator[Row]:
    """Compares steps on a constant batch with bare forward and backward passes of the same network."""
    for batch in setup.batches:
        rates: dict[tuple[str, bool], float] = {}
        for policy, xla in MODES[:2] if setup.tiny else MODES:
            if setup.is_over():
                return
            built = build(setup, setup.load(batch, policy, f"train.jit_compile={str(xla).lower()}"), constant=True)
            if setup.device == "GPU:0":
                tf.config.experimental.reset_memory_stats("GPU:0")
            started = time.perf_counter()
            built.trainer.train(tf.constant(2))
            first = time.perf_counter() - started
            ours = time_trainer(setup, built)
            peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30 if setup.device == "GPU:0" else None
            reference = time_bare_steps(setup, built, xla)
            rates[policy, xla] = batch / ours
            yield {
                "batch": batch, "policy": policy, "xla": xla, "images_per_second": batch / ours,
                "bare_images_per_second": batch / reference, "ratio": reference / ours, "target": BARE_TARGET,
                "first_two_steps_s": first, "peak_gib": peak,
            }  # fmt: skip
        yield {
            "batch": batch, "float16_to_float32_ratio": rates["float16", False] / rates["float32", False],
            "target": AMP_TARGET,
        }  # fmt: skip


def time_bare_steps(setup: Setup, built: Built, xla: bool) -> float:
    """Returns the seconds of a forward and backward pass of the network, which a step cannot be faster than."""
    model = built.state.model
    with tf.device(setup.device):
        pixels = normalize_image(tf.identity(built.batch.images))

    @tf.function(autograph=False, jit_compile=xla)
    def pass_once() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = model(pixels, training=True)
            loss = tf.reduce_sum(outputs["logits"]) + tf.reduce_sum(outputs["offsets"])
        return tf.add_n([tf.reduce_sum(gradient) for gradient in tape.gradient(loss, model.trainable_variables)])

    return time_steps(lambda: [pass_once() for _ in range(setup.steps)][-1].numpy(), setup.steps)


def parts(setup: Setup) -> Iterator[Row]:
    """Measures loss with mining, and the optimizer with EMA, as shares of the step."""
    for policy in ("float32", "float16"):
        config = setup.load(setup.batches[0], policy)
        built = build(setup, config, constant=True)
        step = time_trainer(setup, built)
        with tf.device(setup.device):
            loss = measure_loss(config, built.batch, built.state.model(normalize_image(built.batch.images)))
        update = time_optimizer(setup, built)
        yield {
            "batch": setup.batches[0], "policy": policy, "step_ms": 1e3 * step, "loss_ms": 1e3 * loss,
            "optimizer_ms": 1e3 * update, "share": (loss + update) / step,
            "target": PARTS_TARGET,
        }  # fmt: skip


def time_optimizer(setup: Setup, built: Built) -> float:
    """Returns the seconds of an update of weights and averages, without the reduction of gradients."""
    optimizer, strategy = built.state.optimizer, tf.distribute.OneDeviceStrategy(setup.device)
    gradients = [tf.fill(variable.shape, 1e-6) for variable in optimizer.variables_to_train]

    @tf.function(autograph=False)
    def update() -> None:
        strategy.run(optimizer.apply, args=(gradients,))

    return time_steps(lambda: (update(), optimizer.variables_to_train[-1].numpy()), 1, rounds=10)


def feed(setup: Setup) -> Iterator[Row]:
    """Compares training from files with training on a constant batch, beside the pipeline alone."""
    for batch in setup.batches[:2]:
        for targets in ("precomputed", "online"):
            if setup.is_over():
                return
            config = setup.load(batch, "float16", f"data.targets={targets}", f"train.log_every={setup.steps}")
            alone = measure_pipeline(config, seconds=1 if setup.tiny else 8)
            built = build(setup, config)
            from_files = time_trainer(setup, built)
            report = built.trainer.train(tf.constant(setup.steps)) or {}
            constant = time_trainer(setup, build(setup, config, constant=True))
            yield {
                "batch": batch, "targets": targets, "cores": len(os.sched_getaffinity(0)),
                "pipeline_images_per_second": alone, "images_per_second": batch / from_files,
                "constant_images_per_second": batch / constant, "lost": 1 - constant / from_files,
                "target": INPUT_TARGET, "data_wait": report.get("data_wait"),
            }  # fmt: skip


def measure_pipeline(config: Config, seconds: float) -> float:
    """Returns the images per second of the input pipeline alone."""
    manifest = load_manifest(config.data)
    plan = plan_training(config.data, config.train, manifest.split("train", config.data.dir))
    size = config.train.global_batch_size
    batches = iter(
        training_batches(config.data, config.anchors, config.matching, config.model.input_size, plan, size, 0)
    )
    for _ in range(3):
        next(batches)
    started, images = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        next(batches)
        images += size
    return images / (time.perf_counter() - started)
