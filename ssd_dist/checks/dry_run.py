"""Implements `ssd-train --dry_run`: describes model, memory, data, steps and devices of a run; writes nothing.

config -> check the data -> create strategy, model and optimizer -> read the first batches -> print the sections
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.cluster.strategy import (
    WorkerRole,
    check_strategy,
    count_replicas_per_worker,
    create_strategy,
    read_worker_role,
)
from ssd_dist.core.anchors import anchors_per_cell, feature_sizes, generate_anchors
from ssd_dist.core.config import Config
from ssd_dist.core.manifest import TRAIN_SPLIT, Manifest, Split
from ssd_dist.core.printable import join_names, make_printable
from ssd_dist.data.corrupt_records import CorruptRecord, verify_plan
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.repeat_factors import UNIT
from ssd_dist.data.shard_files import locate_shards
from ssd_dist.model.cost import Cost, count_cost
from ssd_dist.runs.checkpoints import latest_checkpoint
from ssd_dist.runs.run_folder import check_same_run
from ssd_dist.training.assembly import create_state, load_checked_manifest
from ssd_dist.training.batch_division import BatchDivision, divide_batch
from ssd_dist.training.run import make_reproducible
from ssd_dist.training.run_checks import check_steps_left, choose_evaluated_split
from ssd_dist.training.state import TrainState

# The speed of the input pipeline is measured over this many batches after the first, or over this many seconds.
TIMED_BATCHES = 16
TIMED_SECONDS = 10.0
MEBI = 2.0**20

Section = list[tuple[str, str]]


@explain_out_of_memory()
def describe_dry_run(config: Config, model_dir: str | None, allow_new_data: bool = False) -> dict[str, Section]:
    """Describes what `run_training` would do with a config.

    Args:
      config: the config of the run.
      model_dir: the run folder, to check whether a run in it can be resumed; None to skip that check.
      allow_new_data: whether a run may be resumed on other data than it was trained on so far.

    Returns:
      Sections by name, each with its (name, value) pairs.

    Raises:
      UsageError, DataError, CheckpointError: the errors that would stop the run.
    """
    role = read_worker_role()
    check_strategy(config.cluster, role)
    manifest = load_checked_manifest(config)
    if model_dir:
        check_same_run(model_dir, config, manifest, allow_new_data)
    split = manifest.split(TRAIN_SPLIT, config.data.dir)
    plan = plan_training(config.data, config.train, split, role.index, role.count)
    plan, replaced = verify_plan(plan, split, config.model.input_size, config.data)
    total_steps = config.train.steps or config.train.epochs * plan.steps_per_epoch
    # The strategy of several workers waits for all of them, so it is not created here.
    strategy = create_strategy(config.cluster, role) if role.count == 1 else tf.distribute.get_strategy()
    replicas = role.count * count_replicas_per_worker(config.cluster)
    division = divide_batch(config, replicas)
    make_reproducible(config)
    with strategy.scope():
        state = create_state(config, len(manifest.classes), total_steps)
    costs = count_cost(state.model)
    return {
        "Model": _describe_model(config, manifest, costs),
        "Memory per replica": _describe_memory(config, state, costs, division),
        "Data": _describe_data(config, manifest, split, plan, replaced),
        "Training": _describe_steps(config, manifest, plan, total_steps, model_dir),
        "Cluster": _describe_cluster(config, role, replicas),
    }


def print_dry_run(sections: dict[str, Section]) -> None:
    """Prints the sections of `describe_dry_run`."""
    console = Console(highlight=False, soft_wrap=True)
    for title, pairs in sections.items():
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(min_width=16)
        table.add_column(overflow="fold")
        for name, value in pairs:
            table.add_row(Text(make_printable(name)), Text(make_printable(value)))
        console.print(table)


def _describe_model(config: Config, manifest: Manifest, costs: dict[str, Cost]) -> Section:
    model, size = config.model, config.model.input_size
    levels = zip(feature_sizes(size), anchors_per_cell(config.anchors), strict=True)
    total = sum(costs.values(), Cost())
    return [
        ("network", f"MobileNetV2 {model.width}, {model.head} head, {size} x {size}"),
        ("initial weights", model.init_from or config.backbone.weights),
        ("classes", f"{len(manifest.classes)}, without background"),
        ("anchors", f"{len(generate_anchors(config.anchors, size)):,}: "
                    + " + ".join(f"{cells}²·{shapes}" for cells, shapes in levels)),
        *((name, f"{cost.parameters / 1e6:6.2f} M parameters  {cost.multiply_adds / 1e9:6.3f} G multiply-adds")
          for name, cost in costs.items()),
        ("total", f"{total.parameters / 1e6:6.2f} M parameters  {total.multiply_adds / 1e9:6.3f} G multiply-adds, "
                  f"{2 * total.multiply_adds / 1e9:.2f} GFLOP per image; a training step takes about three times that"),
    ]  # fmt: skip


def estimate_memory(
    state: TrainState, costs: dict[str, Cost], division: BatchDivision, mixed_precision: bool
) -> list[tuple[str, int]]:
    """Estimates the memory of a replica during a training step.

    Args:
      state: the state of the run.
      costs: the cost of each part of the model.
      division: the division of the global batch.
      mixed_precision: whether a 16-bit policy is set.

    Returns:
      (name, bytes) of each use of memory.
    """
    # Under a 16-bit policy the layers' outputs have 16 bits; the weights have 32.
    value_bytes = 2 if mixed_precision else 4
    averages = list(state.ema.averages.values()) if state.ema else []
    slots = [slot for slots in state.optimizer.inner_optimizer.slots.values() for slot in slots]
    # Gradients exist twice: as computed by the layers, and packed for the all-reduce. Those of parts are kept, too.
    stored = division.passes if division.is_exact else int(division.is_in_parts)
    images = division.images_at_once
    return [
        ("weights", _count_bytes(state.model.variables)),
        ("EMA of the weights", _count_bytes(averages)),
        ("optimizer state", _count_bytes(slots)),
        ("gradients", (2 + stored) * _count_bytes(state.model.trainable_variables)),
        (f"activations of {images} images", value_bytes * images * sum(costs.values(), Cost()).activations),
    ]


def _describe_memory(config: Config, state: TrainState, costs: dict[str, Cost], division: BatchDivision) -> Section:
    pairs = estimate_memory(state, costs, division, config.amp.enabled)
    return [
        *((name, f"{size / MEBI:8,.0f} MiB") for name, size in pairs),
        ("total", f"{sum(size for _, size in pairs) / MEBI:8,.0f} MiB, plus TensorFlow's own memory"),
    ]


def _describe_data(
    config: Config, manifest: Manifest, split: Split, plan: EpochPlan, replaced: Sequence[CorruptRecord]
) -> Section:
    pairs = []
    for name, part in manifest.splits.items():
        # Checks that the shards exist and, where training requires it, have the lengths stated in the manifest.
        any_size = name == TRAIN_SPLIT and config.data.on_corrupt == "skip"
        for view in part.views:
            locate_shards(view.shards, config.data, any_size)
        rejected = sum(part.rejected_images.values())
        size = sum(shard.bytes for view in part.views for shard in view.shards)
        pairs.append((
            name,
            f"{part.images:,} images, {part.boxes:,} objects, {len(part.views)} augmented copies in "
            f"{len(part.views[0].shards)} shards, {size / MEBI:,.0f} MiB; {rejected} images rejected",
        ))  # fmt: skip
    counts = split.views[0].objects_per_class
    if never := [name for name in manifest.classes if not counts.get(name)]:
        names = f"{join_names(never[:8])}{' ...' if len(never) > 8 else ''}"
        pairs.append(("no objects", f"of {names} in split train; these classes cannot be learned"))
    if config.data.repeat_threshold:
        pairs.append(("repeated", _describe_repeat_factors(manifest.classes, plan.repeat_factors)))
    if replaced:
        pairs.append(("corrupt", f"{len(replaced)} records, replaced by valid ones; the first: {replaced[0]}"))
    batch_size = min(config.train.global_batch_size, 64)
    batches = iter(
        training_batches(config.data, config.anchors, config.matching, config.model.input_size, plan, batch_size, 0)
    )
    first = next(batches)
    positives = (first.targets.anchors.numpy() >= 0).sum(axis=1)
    pairs.append((
        "first batch",
        f"{positives.mean():.1f} positive anchors per image; {int((positives == 0).sum())} of {batch_size} have none",
    ))  # fmt: skip
    started, batches_read = time.perf_counter(), 0
    while batches_read < TIMED_BATCHES and time.perf_counter() - started < TIMED_SECONDS:
        next(batches)
        batches_read += 1
    speed = batches_read * batch_size / max(time.perf_counter() - started, 1e-9)
    return [*pairs, ("input pipeline", f"{speed:,.0f} images per second on this machine, without training")]


def _describe_repeat_factors(classes: Sequence[str], factors: Sequence[int]) -> str:
    """Describes the classes whose images appear more often, the most repeated first."""
    repeated = sorted(zip(factors[1:], classes, strict=False), key=lambda each: -each[0])
    names = [f"{name} ({factor / UNIT:.1f} times)" for factor, name in repeated if factor > UNIT]
    if not names:
        return "no images, because no class that occurs is rarer than data.repeat_threshold"
    return f"images of {join_names(names[:8])}{' ...' if len(names) > 8 else ''}, relative to images of other classes"


def _describe_steps(
    config: Config, manifest: Manifest, plan: EpochPlan, total_steps: int, model_dir: str | None
) -> Section:
    split = choose_evaluated_split(manifest, config)
    steps, epochs = config.eval.every_steps, config.eval.every_epochs
    every = f"{steps} steps" if steps else f"{epochs} epochs"
    pairs = [
        (
            "steps",
            f"{total_steps:,}, {plan.steps_per_epoch:,} per epoch; warm-up over {config.schedule.warmup_steps:,}",
        ),
        (
            "batch",
            f"{config.train.global_batch_size} images on all replicas together, batch norm in groups of "
            f"{config.model.batch_norm_group}",
        ),
        ("optimizer", f"{config.optimizer.name}, learning rate {config.optimizer.lr:g} to {config.schedule.min_lr:g}"),
        ("precision", config.amp.policy if config.amp.enabled else "float32"),
        ("evaluation", f"on {split} every {every}" if split else "none"),
    ]
    if config.schedule.warmup_steps >= total_steps:
        pairs.append(("warning", "the run ends before the warm-up; lower schedule.warmup_steps or train longer"))
    if model_dir is not None:
        newest = latest_checkpoint(str(Path(model_dir) / "checkpoints"))
        if newest:
            check_steps_left(int(newest.rsplit("-", 1)[1]), total_steps, model_dir)
        pairs.append((model_dir, f"resumes from {Path(newest).name}" if newest else "a new run"))
    return pairs


def _describe_cluster(config: Config, role: WorkerRole, replicas: int) -> Section:
    devices = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in _gpus()]
    pairs = [
        ("devices", ", ".join(devices) or f"no GPU; the CPU as {max(config.cluster.logical_cpus, 1)} devices"),
        ("replicas", f"{replicas}, {config.train.global_batch_size // replicas} images each"),
    ]
    if role.count > 1:
        pairs.insert(0, ("workers", f"{role.count}, this is worker {role.index}: {', '.join(role.addresses)}"))
        pairs.append(("not checked", "whether the workers reach each other; use --preflight on all workers"))
    return pairs


def _gpus() -> list[Any]:
    return tf.config.list_physical_devices("GPU")


def _count_bytes(variables: Sequence[tf.Variable]) -> int:
    return sum(int(np.prod(variable.shape)) * variable.dtype.size for variable in variables)
