"""Makes the choices of `ssd-fit` and returns the config of the run.

survey, machine -> choices of the network -> cost and speed of it -> choices of the training -> RUN/config.yaml
"""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import flatten_config, format_override, load_config
from ssd_dist.core.errors import CheckpointError, DataError
from ssd_dist.core.storage import write_text
from ssd_dist.fitting.choices import (
    Settings,
    choose_batch,
    choose_network,
    choose_training,
    plan_training_seconds,
    raise_input_size,
)
from ssd_dist.fitting.facts import DatasetFacts, MachineFacts, TimeLimit, TrainingCost
from ssd_dist.fitting.run_files import FitFiles, FitRequest
from ssd_dist.model.backbone import build_backbone, check_weights_file
from ssd_dist.model.cost import Cost, count_cost
from ssd_dist.model.detector import build_detector
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.source_weights import read_source_weights

# Bytes per pixel of a JPEG of quality 95 in a shard.
BYTES_PER_PIXEL = 0.45
# Copies of the weights in a checkpoint: weights, EMA and two slots of the optimizer.
COPIES_PER_CHECKPOINT = 4
# The loss, the optimizer and the input pipeline, relative to the forward and backward pass that is measured.
STEP_OVERHEAD = 1.1
TIMED_STEPS = 3


def choose_config(request: FitRequest, files: FitFiles, started: float | None = None) -> Config:
    """Makes the choices, writes them with their reasons, and returns the config of the run.

    Args:
      request: what the user asked for.
      files: the files of the run.
      started: when this stage began, in seconds since 1970; by default now.

    Raises:
      CheckpointError: if `model.init_from` cannot be read, or the file of `backbone.weights` does not exist.
      DataError: if the dataset cannot be trained on, or the disk is too small.
      UsageError: if the config or an override of the user is not valid.
    """
    started = time.time() if started is None else started
    asked = load_config(request.config, request.overrides)
    check_weights_file(asked.backbone)
    dataset = DatasetFacts.read(files.survey)
    settings = Settings(flatten_config(asked, only_set=True))
    machine = inspect_machine(asked)
    source_width = read_source_weights(asked.model.init_from).width if asked.model.init_from else None
    replicas = machine.gpus or max(asked.cluster.logical_cpus, 1)
    choose_network(settings, dataset, machine, source_width)
    choose_batch(settings, dataset, machine, replicas)
    network = apply_choices(request, settings, files)
    devices = max(machine.gpus, 1)
    cost = measure_cost(network, dataset.classes, devices, is_timed=request.minutes is not None)
    limit = read_limit(request, started)
    if (
        limit is not None
        and cost.seconds_per_image is not None
        and raise_input_size(
            settings, dataset, cost.seconds_per_image, plan_training_seconds(limit, dataset, cost.seconds_per_image)
        )
    ):
        network = apply_choices(request, settings, files)
        cost = measure_cost(network, dataset.classes, devices, is_timed=True)
    choose_training(settings, dataset, machine, cost, replicas, read_limit(request, started))
    config = apply_choices(request, settings, files)
    check_disk(config, dataset, cost, files.folder)
    write_text(files.choices, json.dumps([dataclasses.asdict(choice) for choice in settings.choices], indent=1) + "\n")
    return config


def read_limit(request: FitRequest, started: float) -> TimeLimit | None:
    """Returns the time limit, with at least a second left; None without one. `started`: when this stage began."""
    if request.minutes is None:
        return None
    now = time.time()
    return TimeLimit(now - started, max(60 * request.minutes - (now - request.started), 1.0))


def apply_choices(request: FitRequest, settings: Settings, files: FitFiles) -> Config:
    """Returns the config with the choices made so far; what the user gave wins over them, except `data.dir`."""
    chosen = [format_override(choice.key, choice.value) for choice in settings.choices]
    data = format_override("data.dir", files.manifest.parent.absolute())
    return load_config(request.config, [*chosen, *request.overrides, data])


def inspect_machine(asked: Config) -> MachineFacts:
    """Counts GPUs, reads the memory, and loads the ImageNet weights to find out whether they are available."""
    model = asked.model if asked.backbone.weights == "imagenet" else asked.model.model_copy(update={"width": 1.0})
    missing = ""
    if "weights" not in asked.backbone.model_fields_set and not asked.model.init_from:
        try:
            build_backbone(asked.backbone, model)
        except CheckpointError as error:
            missing = str(error).removeprefix("backbone.weights: ").partition(";")[0]
    return MachineFacts(len(tf.config.list_physical_devices("GPU")), read_memory(), missing)


def read_memory() -> int:
    """Returns the bytes of main memory that this process may use, as limited by its control group."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(memory, int(text)) if text.isdigit() else memory


def measure_cost(config: Config, class_count: int, devices: int, is_timed: bool) -> TrainingCost:
    """Measures the memory of the network and, if `is_timed`, the time per image.

    Args:
      config: the config with the choices of network and batch.
      class_count: number of classes.
      devices: devices that share a batch.
      is_timed: whether to measure the time, on one device.
    """
    AMPContext(config.amp).setup_policy()
    # The time does not depend on the weights.
    backbone = config.backbone.model_copy(update={"weights": "none"})
    model = build_detector(config.model, backbone, config.anchors, class_count, config.quantization)
    total = sum(count_cost(model).values(), Cost())
    images = max(config.train.global_batch_size // devices, 1)
    seconds = time_training(model, config.model.input_size, images) / devices if is_timed else None
    return TrainingCost(4 * total.activations, 4 * total.parameters, seconds)


def time_training(model: Any, size: int, batch: int) -> float:
    """Returns the seconds per image of forward and backward passes on a batch, with an allowance for the other work."""
    compute = build_gradient_computation(model, size, batch)
    compute()
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        compute()
    return STEP_OVERHEAD * (time.perf_counter() - started) / TIMED_STEPS / batch


def build_gradient_computation(model: Any, size: int, batch: int) -> Callable[[], object]:
    """Returns a function that runs a forward and backward pass on a batch, and waits for its end."""
    images = tf.random.uniform([batch, size, size, 3], -1.0, 1.0)

    @tf.function
    def compute_gradients() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_mean(tf.square(output)) for output in tf.nest.flatten(model(images, True))])
        return [tf.reduce_sum(gradient) for gradient in tape.gradient(loss, model.trainable_variables)]

    return lambda: [gradient.numpy() for gradient in compute_gradients()]


def check_disk(config: Config, dataset: DatasetFacts, cost: TrainingCost, folder: Path) -> None:
    """Checks that shards, checkpoints and exports fit on the disk.

    Raises:
      DataError: if they do not.
    """
    copies = sum(dataset.images.values()) + dataset.train_images * (config.data.views - 1)
    shards = copies * BYTES_PER_PIXEL * config.model.input_size**2
    checkpoints = (config.checkpoint.keep + config.checkpoint.keep_best) * COPIES_PER_CHECKPOINT * cost.model_bytes
    needed, free = shards + checkpoints + 4 * cost.model_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: the run needs about {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; free disk "
            "space, use another --output, or lower data.views"
        )
