"""Measures what it costs that results do not depend on the layout: exact reduction, and small batch-norm groups.

Width 1.0, 300 x 300 pixels, 16 images per step: on one replica, on two replicas of one process and, for the reduction,
on two workers with one core each. The reduction is `train.reduction: exact` instead of `fast`, in groups of four; the
groups of four are compared with one group per replica.
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
        layouts = {
            "one replica": (tf.distribute.OneDeviceStrategy("CPU:0"), BATCH),
            "two replicas of one process": (tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), BATCH // 2),
        }
        rows = []
        for layout, (strategy, images) in layouts.items():
            exact, whole = change(config, "train", reduction="exact"), change(config, "model", batch_norm_group=images)
            rows += [
                compare(f"train.reduction: exact, {layout}", exact, "train.reduction: fast", config, strategy),
                compare(f"model.batch_norm_group: {config.model.batch_norm_group}, {layout}", config,
                        f"groups of {images} images", whole, strategy),
            ]  # fmt: skip
        return [*rows, compare_workers(folder)]


def change(config: Config, section: str, **values: object) -> Config:
    """Returns the config with other values in one section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def compare(what: str, ours: Config, beside: str, reference: Config, strategy: tf.distribute.Strategy) -> Row:
    """Compares the steps of two trainers, which take turns in this process."""
    first, second = create(ours, strategy), create(reference, strategy)
    seconds = take_turns(lambda: first.train(tf.constant(STEPS)), lambda: second.train(tf.constant(STEPS)), ROUNDS)
    return Row(what, "img/s", STEPS * BATCH / seconds[0], STEPS * BATCH / seconds[1], beside)


def create(config: Config, strategy: tf.distribute.Strategy) -> DetectorTrainer:
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
    exact, fast = median(rates["exact"]), median(rates["fast"])
    return Row("train.reduction: exact, two workers", "img/s", exact, fast, "train.reduction: fast")


if __name__ == "__main__":
    run_benchmark(measure, __doc__)
