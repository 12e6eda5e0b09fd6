"""Measures what only a GPU can show, block by block; `--tiny` runs the same code on a CPU, to find mistakes early.

    python -m benchmarks.gpu BLOCK --data=SHARDS --output=DIR [--seconds=120] [--tiny]

    probe      does it run: steps in float32, float16 and bfloat16, each twice; are the bits equal?
    placement  the operations of the step that run on the CPU
    speed      steps against bare forward and backward passes: batch sizes, precisions, XLA
    parts      loss and mining, and the optimizer with EMA, as shares of the step
    input      images per second of the input pipeline, and what the step loses by it
    layouts    one loss curve on 1, 2 and 4 logical devices of one GPU
    overflow   an infinite gradient on one of two logical devices: both skip the step
    accuracy   complete trainings of CONFIG in float32 and float16, two seeds each: AP and minutes

Use `python -m benchmarks.torchvision_ssd` for other SSD trainers on the same GPU.

Each block is a process of its own and writes DIR/BLOCK.json after each row, so that an error or a time limit loses only
the rows that would follow.
"""

import argparse
import collections
import hashlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf
import tf_keras

from benchmarks.step import measure_loss
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.data.batch import TrainBatch
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.model.detector import normalize_image
from ssd_dist.training.assembly import create_state, create_trainer, distribute_training
from ssd_dist.training.loss_scale import LossScale
from ssd_dist.training.run import make_reproducible
from ssd_dist.training.state import TrainState
from ssd_dist.training.trainer import DetectorTrainer

Row = dict[str, object]
STEPS = 100_000
STRATEGIES = itertools.count(1)
POLICIES = {
    "float32": ["amp.enabled=false"],
    "float16": ["amp.enabled=true", "amp.policy=mixed_float16"],
    "bfloat16": ["amp.enabled=true", "amp.policy=mixed_bfloat16"],
}
# Targets of ratios of the blocks `speed`, `parts` and `input`.
BARE_TARGET, AMP_TARGET, PARTS_TARGET, INPUT_TARGET = 0.9, 1.6, 0.08, 0.05
MODES = [("float32", False), ("float16", False), ("float16", True), ("bfloat16", False), ("float32", True)]
# A line of TensorFlow's log of placements: "name: (Op): /job:.../device:GPU:0".
PLACEMENT = re.compile(r": \((\w+)\): \S*device:(CPU|GPU):\d+")


@dataclass(frozen=True)
class Setup:
    """The choices of the command line.

    Attributes:
      data: folder of the shards.
      config: path or name of the config.
      tiny: small batches and few steps.
      deadline: time (`time.monotonic`) after which no further row is measured.
    """

    data: str
    config: str
    tiny: bool
    deadline: float

    @property
    def device(self) -> str:
        return "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"

    @property
    def batches(self) -> Sequence[int]:
        return (8,) if self.tiny else (128, 32, 256, 64)

    @property
    def steps(self) -> int:
        return 2 if self.tiny else 20

    def is_over(self) -> bool:
        return time.monotonic() > self.deadline

    def load(self, batch: int, policy: str = "float32", *overrides: str) -> Config:
        """Returns the config for a batch size and a precision."""
        small = ["model.width=0.35"] if self.tiny else []
        fixed = ["backbone.weights=none", f"train.steps={STEPS}", f"train.global_batch_size={batch}"]
        return load_config(self.config, [*fixed, f"data.dir={self.data}", *small, *POLICIES[policy], *overrides])


@dataclass(frozen=True)
class Built:
    """A trainer with its state and one batch of its data."""

    trainer: DetectorTrainer
    state: TrainState
    batch: TrainBatch


def build(
    setup: Setup, config: Config, constant: bool = False, strategy: tf.distribute.Strategy | None = None
) -> Built:
    """Creates a trainer; with `constant`, it trains on one batch again and again, without an input pipeline."""
    tf_keras.backend.clear_session()
    make_reproducible(config)
    strategy = strategy or tf.distribute.OneDeviceStrategy(setup.device)
    manifest = load_manifest(config.data)
    plan = plan_training(config.data, config.train, manifest.split("train", config.data.dir))
    size = config.train.global_batch_size
    read = (config.anchors, config.matching, config.model.input_size, plan, size, 0)
    batch = next(iter(training_batches(config.data, *read)))
    with strategy.scope():
        state = create_state(config, len(manifest.classes), STEPS)
        dataset = distribute_training(config, strategy, plan, state)
        if constant:
            dataset = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch).repeat())
        return Built(create_trainer(config, strategy, state, dataset, STEPS), state, batch)


def time_steps(run: Callable[[], object], steps: int, rounds: int = 3) -> float:
    """Returns the median seconds per step of a function that runs `steps` steps; its first call is a warm-up."""
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) / steps)
    return statistics.median(times)


def time_trainer(setup: Setup, built: Built) -> float:
    """Returns the seconds per step of a trainer; its report reads variables, so all kernels have finished."""
    return time_steps(lambda: built.trainer.train(tf.constant(setup.steps)), setup.steps)


def probe(setup: Setup) -> Iterator[Row]:
    """Trains twice in each precision; the weights must have the same bits."""
    for policy in POLICIES:
        hashes = []
        for _ in range(2):
            started = time.perf_counter()
            built = build(setup, setup.load(setup.batches[-1], policy, f"train.log_every={setup.steps}"))
            report = built.trainer.train(tf.constant(setup.steps))
            hashes.append(hash_weights(built.state))
            yield {"policy": policy, "weights": hashes[-1], "seconds": time.perf_counter() - started, **(report or {})}
        yield {"policy": policy, "equal_bits": hashes[0] == hashes[1]}


def hash_weights(state: TrainState) -> str:
    """Returns a short hash of all weights and moving statistics."""
    digest = hashlib.sha256()
    for variable in state.model.variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()[:16]


def placement(setup: Setup) -> Iterator[Row]:
    """Counts the operations of the step by device, from TensorFlow's log of a process that runs one step."""
    flags = [f"--data={setup.data}", f"--config={setup.config}", *["--tiny"] * setup.tiny]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_MAX_VLOG_LEVEL": "0"}
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.gpu", "log_placement", f"--output={folder}", *flags]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    counts = collections.Counter(PLACEMENT.findall(output.stderr + output.stdout))
    for device in ("GPU", "CPU"):
        yield {"device": device, "operations": sum(n for (_, where), n in counts.items() if where == device)}
    for (op, device), number in counts.most_common():
        if device == "CPU":
            yield {"device": device, "op": op, "number": number}


def log_placement(setup: Setup) -> Iterator[Row]:
    """Runs one step with the log of placements; a block of its own process, for `placement`."""
    tf.debugging.set_log_device_placement(True)
    build(setup, setup.load(setup.batches[-1], "float16")).trainer.train(tf.constant(1))
    yield {"steps": 1}


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


def layouts(setup: Setup) -> Iterator[Row]:
    """Trains on 1, 2 and 4 logical devices; `exact` must give the same bits, and all replicas the same weights."""
    devices = split_device(setup, 4)
    for policy in ("float16",) if setup.tiny else ("float32", "float16"):
        for reduction in ("fast", "exact"):
            first: list[float] = []
            for replicas in (1, 2, 4):
                if setup.is_over():
                    return
                # In float16, the first loss scales may overflow: then all replicas skip the step.
                config = setup.load(8, policy, "model.batch_norm_group=2", f"train.reduction={reduction}",
                                    "train.log_every=1", "train.steps_per_loop=1")  # fmt: skip
                strategy = create_strategy(devices[:replicas])
                built = build(setup, config, strategy=strategy)
                losses = [float(built.trainer.train(tf.constant(1))["loss"]) for _ in range(setup.steps)]
                first = first or losses
                copies = [
                    {copy.numpy().tobytes() for copy in strategy.experimental_local_results(variable)}
                    for variable in built.state.model.trainable_variables
                ]
                yield {
                    "policy": policy, "reduction": reduction, "replicas": replicas, "last_loss": losses[-1],
                    "largest_difference": float(np.max(np.abs(np.divide(losses, first) - 1))),
                    "replicas_equal": all(len(each) == 1 for each in copies),
                    "skipped_steps": int(built.state.loss_scale.skipped_steps.numpy()),
                }  # fmt: skip


def split_device(setup: Setup, parts: int) -> list[str]:
    """Divides the GPU, or the CPU, into logical devices and returns their names; call before TensorFlow uses it."""
    kind = setup.device.partition(":")[0]
    limits = {"memory_limit": 8000} if kind == "GPU" else {}
    devices = [tf.config.LogicalDeviceConfiguration(**limits)] * parts
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices(kind)[0], devices)
    return [f"{kind}:{index}" for index in range(parts)]


def overflow(setup: Setup) -> Iterator[Row]:
    """Gives replica 1 of two an infinite gradient; both must keep their weights, halve the scale and stay equal."""
    strategy = create_strategy(split_device(setup, 2))
    built = build(setup, setup.load(8, "float16", "model.batch_norm_group=2"), constant=True, strategy=strategy)
    built.trainer.train(tf.constant(setup.steps))
    optimizer, loss_scale = built.state.optimizer, built.state.loss_scale

    @tf.function(autograph=False)
    def apply(value_of_replica_1: tf.Tensor) -> None:
        def run() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            value = tf.where(tf.equal(replica, 1), value_of_replica_1, 1e-6)
            optimizer.apply([tf.fill(variable.shape, value) for variable in optimizer.variables_to_train])

        strategy.run(run)

    for name, value in (("finite", 1e-6), ("infinite", float("inf")), ("finite again", 1e-6)):
        before, scale, skipped = copy_state(strategy, built.state), *read_loss_scale(loss_scale)
        apply(tf.constant(value))
        after, new_scale, now_skipped = copy_state(strategy, built.state), *read_loss_scale(loss_scale)
        yield {
            "gradient_of_replica_1": name, "weights_changed": not np.array_equal(before[0], after[0]),
            "replicas_equal": np.array_equal(after[0], after[1]), "finite": bool(np.isfinite(after).all()),
            "scale_factor": new_scale / scale, "skipped_steps": now_skipped - skipped,
        }  # fmt: skip


def copy_state(strategy: tf.distribute.Strategy, state: TrainState) -> list[np.ndarray]:
    """Returns weights, optimizer slots and averages of each replica as one vector."""
    inner = state.optimizer.inner_optimizer
    variables = [*state.optimizer.variables_to_train, *itertools.chain(*inner.slots.values())]
    variables += state.ema.averages.values() if state.ema else []
    copies = [strategy.experimental_local_results(variable) for variable in variables]
    return [np.concatenate([copy.numpy().ravel() for copy in replica]) for replica in zip(*copies, strict=True)]


def read_loss_scale(loss_scale: LossScale) -> tuple[float, int]:
    """Returns the scale and the number of skipped steps."""
    return float(loss_scale.scale.numpy()), int(loss_scale.skipped_steps.numpy())


def accuracy(setup: Setup) -> Iterator[Row]:
    """Trains CONFIG to its end; the AP of float16 should differ from that of float32 by no more than the seeds do."""
    small = ["model.width=0.35", "backbone.weights=none", "train.steps=2"] if setup.tiny else []
    results: dict[str, list[float]] = {"float32": [], "float16": []}
    # All four trainings are needed, however long they take.
    for seed, policy in itertools.product((0, 1), results):
        overrides = [f"data.dir={setup.data}", f"train.seed={seed}", *small, *POLICIES[policy]]
        with TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "ssd_dist.cli.train", f"--config={setup.config}", f"--model_dir={folder}"]
            command += [f"--set={override}" for override in overrides]
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            minutes = (time.perf_counter() - started) / 60
            rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        last = next(row for row in reversed(rows) if row["kind"] == "eval")
        steps = [row for row in rows if row["kind"] == "train"]
        results[policy].append(last["coco/AP"])
        yield {
            "policy": policy, "seed": seed, "minutes": minutes, "steps": last["step"], "AP": last["coco/AP"],
            "AP50": last["coco/AP50"], "skipped_steps": steps[-1]["skipped_steps"],
        }  # fmt: skip
    means = {policy: statistics.mean(values) for policy, values in results.items()}
    yield {
        "float16_minus_float32": means["float16"] - means["float32"],
        "difference_of_seeds": max(abs(first - second) for first, second in results.values()),
    }


def create_strategy(devices: Sequence[str]) -> tf.distribute.MirroredStrategy:
    """Creates a strategy whose collectives have keys of their own, as those of all strategies of a process must."""
    keys = {"_collective_key_base": 100_000 * next(STRATEGIES)}
    return type("MirroredStrategy", (tf.distribute.MirroredStrategy,), keys)(devices)


BLOCKS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "probe": probe, "placement": placement, "log_placement": log_placement, "speed": speed, "parts": parts,
    "input": feed, "layouts": layouts, "overflow": overflow, "accuracy": accuracy,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("block", choices=BLOCKS)
    parser.add_argument("--data", required=True, help="folder of prepared shards")
    parser.add_argument("--config", default="base")
    parser.add_argument("--output", default=os.environ.get("OUT", "."), type=Path)
    parser.add_argument("--seconds", type=float, default=120, help="no row begins later; accuracy ignores it")
    parser.add_argument("--tiny", action="store_true", help="few steps of a small network")
    arguments = parser.parse_args()
    setup = Setup(arguments.data, arguments.config, arguments.tiny, time.monotonic() + arguments.seconds)
    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name") if gpus else "CPU"
    rows: list[Row] = []
    for row in BLOCKS[arguments.block](setup):
        rows.append(row)
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
        document = {"block": arguments.block, "device": name, "tiny": arguments.tiny, "rows": rows}
        (arguments.output / f"{arguments.block}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
