"""Compares `train.reduction: exact`, which gives the same bits in every layout, with `fast`.

Width 1.0, 300 x 300 pixels, 16 images per step in batch-norm groups of four: on one replica, on two replicas of one
process, and on two workers with one core each.
"""

from pathlib import Path
from statistics import median

import tensorflow as tf

from benchmarks.rows import Row, run_benchmark, take_turns
from benchmarks.shards import BATCH, generated_shards
from benchmarks.workers import measure_rates
from ssd_dist.core.config import Config
from ssd_dist.data.pipeline import plan_training
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.training.assembly import create_state, create_trainer, distribute_training
from ssd_dist.training.run import make_reproducible
from ssd_dist.training.trainer import DetectorTrainer

STEPS, ROUNDS, WORKER_ROUNDS = 4, 6, 3


def measure() -> list[Row]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    with generated_shards() as (folder, config):
        make_reproducible(config)
        two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        return [
            compare("one replica", config, tf.distribute.OneDeviceStrategy("CPU:0")),
            compare("two replicas of one process", config, two),
            compare_workers(folder),
        ]


def compare(layout: str, config: Config, strategy: tf.distribute.Strategy) -> Row:
    """Compares the steps of two trainers, which take turns in this process."""
    exact, fast = (create(config, strategy, reduction) for reduction in ("exact", "fast"))
    ours, reference = take_turns(
        lambda: exact.train(tf.constant(STEPS)), lambda: fast.train(tf.constant(STEPS)), ROUNDS
    )
    return describe(layout, STEPS * BATCH / ours, STEPS * BATCH / reference)


def create(config: Config, strategy: tf.distribute.Strategy, reduction: str) -> DetectorTrainer:
    config = config.model_copy(update={"train": config.train.model_copy(update={"reduction": reduction})})
    manifest = load_manifest(config.data)
    plan = plan_training(config.data, config.train, manifest.split("train", config.data.dir))
    with strategy.scope():
        state = create_state(config, len(manifest.classes), config.train.steps)
        dataset = distribute_training(config, strategy, plan, state)
        return create_trainer(config, strategy, state, dataset, config.train.steps)


def compare_workers(folder: Path) -> Row:
    """Compares runs of two workers, which take turns because the speed differs between processes."""
    rates: dict[str, list[float]] = {"exact": [], "fast": []}
    for number in range(WORKER_ROUNDS):
        for reduction, found in rates.items():
            found += measure_rates(folder, f"{reduction}{number}", True, f"train.reduction={reduction}")
    return describe("two workers", median(rates["exact"]), median(rates["fast"]))


def describe(layout: str, exact: float, fast: float) -> Row:
    return Row(f"train.reduction: exact, {layout}", "img/s", exact, fast, "train.reduction: fast")


if __name__ == "__main__":
    run_benchmark(measure, __doc__)
