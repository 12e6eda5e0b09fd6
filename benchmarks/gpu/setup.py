"""The choices of the command line, and trainers to measure."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf
import tf_keras

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.data.batch import TrainBatch
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.training.assembly import create_state, create_trainer, distribute_training
from ssd_dist.training.run import make_reproducible
from ssd_dist.training.state import TrainState
from ssd_dist.training.trainer import DetectorTrainer

Row = dict[str, object]
STEPS = 100_000
POLICIES = {
    "float32": ["amp.enabled=false"],
    "float16": ["amp.enabled=true", "amp.policy=mixed_float16"],
    "bfloat16": ["amp.enabled=true", "amp.policy=mixed_bfloat16"],
}


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
