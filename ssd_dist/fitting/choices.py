"""Chooses the settings that a person would have to guess; each choice has a reason that is printed.

facts of the dataset and the machine -> network: weights, width, input size, anchors
cost of a step of this network       -> training: batch, length, augmented copies, learning rate, intervals

The rules are few and simple, and follow docs/recipe.md. A key that the user sets is never chosen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssd_dist.core.config import TrainConfig
from ssd_dist.core.errors import UsageError
from ssd_dist.fitting.facts import DatasetFacts, MachineFacts, TimeLimit, TrainingCost

INPUT_SIZES = (224, 300, 400, 512)
LARGEST_ON_CPU = 400
# Up to stride 4, where a third of the time of a step goes. docs/recipe.md has the effect on two datasets.
FROZEN_ON_CPU = 3
# The smallest tenth of the objects should have this many pixels at the input of the network.
WANTED_PIXELS = 20
# The first anchor sizes of Liu et al. 2016 for small objects; each list is used if a tenth of the objects is smaller
# than the bound before it.
SMALL_ANCHORS = (
    (0.055, (0.04, 0.1, 0.26, 0.42, 0.62, 0.82, 1.0)),
    (0.085, (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)),
)
MATCHING_OF_SMALL_OBJECTS = {"matching.positive_iou": 0.4, "matching.negative_iou": 0.3}
BATCH_SIZE = 16
LARGEST_GROUP = 16
# On GPUs, for datasets that are large enough for it.
GPU_BATCH_SIZE = 32
# Without a time limit; with one, the input is as large as the time allows for so many epochs. Trainings of at least so
# many have more weight decay. docs/recipe.md has the effect of both on two datasets.
EPOCHS = 64
WEIGHT_DECAY_OF_MANY_EPOCHS = 0.05
FEWEST_STEPS, MOST_STEPS = 1200, 20_000
# Starting, reporting and exporting, relative to the time of the stage that makes the choices, which also imports
# TensorFlow and builds the network: 3.4 on one core of a slow machine.
OTHER_WORK = 3.5
# Preparing and evaluating an image, relative to training on it. They took 0.03 and 0.44 there. Augmented copies are few
# compared with the steps that use them.
PREPARATION_COST = 0.05
EVALUATION_COST = 0.5
# The share of the remaining time that is not planned.
RESERVE = 0.1
# With a very short limit, training gets this share of the time, and the limit is exceeded.
LEAST_SHARE = 0.2
MOST_VIEWS = 16
MOST_COPIES = 40_000
# Limits of crops for small datasets; docs/recipe.md has their effect on datasets of 100 to 235 images. SSD's limits, 4
# and 0.3, show objects at sizes that the other images of such a dataset do not have.
FEW_IMAGES = 5000
CROPS_OF_FEW_IMAGES = {"data.augmentation.largest_expansion": 1.5, "data.augmentation.smallest_crop": 0.6}
# Classes in a smaller share of the images are rare; docs/recipe.md has the effect of repeating their images.
RARE_SHARE = 0.3
EVALUATIONS = 5
# Share of the memory that activations may use.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Choice:
    """A config key, its value, and why it was chosen."""

    key: str
    value: Any
    reason: str


@dataclass
class Settings:
    """The values that the user fixed, by key, and the choices of the other keys in the order they are made."""

    fixed: Mapping[str, Any]
    choices: list[Choice] = field(default_factory=list)

    def choose(self, key: str, value: Any, reason: str) -> Any:
        """Adds a choice unless the user fixed the key; returns the value in force."""
        if key in self.fixed:
            return self.fixed[key]
        self.choices.append(Choice(key, value, reason))
        return value

    def replace(self, key: str, value: Any, reason: str) -> None:
        """Replaces a choice in its place."""
        index = [choice.key for choice in self.choices].index(key)
        self.choices[index] = Choice(key, value, reason)

    def value(self, key: str) -> Any:
        """Returns the value of a key that is fixed or was chosen."""
        chosen = {choice.key: choice.value for choice in self.choices}
        return self.fixed[key] if key in self.fixed else chosen[key]


def choose_network(
    settings: Settings, dataset: DatasetFacts, machine: MachineFacts, source_width: float | None = None
) -> None:
    """Chooses initial weights, width, input size and anchors.

    Args:
      settings: the values that the user fixed; receives the choices.
      dataset: the survey of the dataset.
      machine: the machine.
      source_width: the width of the detector that `model.init_from` names; None without one, or if it is unknown.
    """
    choose_weights(settings, machine, source_width)
    if has_trained_weights(settings) and not machine.gpus:
        settings.choose("backbone.frozen_blocks", FROZEN_ON_CPU, "more steps in the same time on a CPU")
    if machine.gpus:
        settings.choose("amp.enabled", True, "a GPU computes faster with mixed precision")
    small = dataset.small_side
    objects = f"a tenth of the objects has sides below {small:.1%} of the image"
    settings.choose("model.input_size", *choose_input_size(small, dataset.image_side, machine.gpus))
    for bound, sizes in SMALL_ANCHORS:
        if small < bound:
            settings.choose("anchors.sizes", list(sizes), f"{objects}, smaller than the default anchors")
            choose_matching(settings)
            break


def choose_weights(settings: Settings, machine: MachineFacts, source_width: float | None) -> None:
    """Chooses the initial weights and the width."""
    if settings.fixed.get("model.init_from"):
        settings.choose("backbone.weights", "none", "the weights of model.init_from are used")
        if source_width is not None:
            settings.choose("model.width", source_width, "the width of model.init_from")
        return
    if machine.missing_weights:
        weights, reason = "none", (
            f"the ImageNet weights are not available ({machine.missing_weights}); random weights need many more images "
            "and steps for the same accuracy; --set backbone.weights=FILE uses a weight file"
        )  # fmt: skip
    else:
        weights, reason = "imagenet", "pretrained features need fewer images and steps"
    if settings.choose("backbone.weights", weights, reason) == "none":
        settings.choose("model.width", 0.35, "without pretrained weights, a small network learns more in the same time")
    else:
        settings.choose("model.width", 1.0, "the width whose pretrained weights are the usual choice")


def has_trained_weights(settings: Settings) -> bool:
    """Returns whether training starts from trained weights, of ImageNet or of a detector."""
    return bool(settings.fixed.get("model.init_from")) or settings.value("backbone.weights") != "none"


def choose_matching(settings: Settings) -> None:
    """Lowers the bounds of matching for small objects, unless the user fixed one of them."""
    if not MATCHING_OF_SMALL_OBJECTS.keys() & settings.fixed.keys():
        for key, bound in MATCHING_OF_SMALL_OBJECTS.items():
            settings.choose(key, bound, "small objects overlap few anchors by more than half")


def choose_input_size(small_side: float, image_side: int, gpus: int) -> tuple[int, str]:
    """Returns the input size in pixels and the reason.

    >>> choose_input_size(0.12, 640, gpus=0)
    (224, 'a tenth of the objects has sides below 12.0% of the image: 27 pixels at this size; 20 are enough')
    """
    sizes = [size for size in INPUT_SIZES if size <= max(image_side, INPUT_SIZES[0])]
    limit = f"; the images have only {image_side} pixels" if len(sizes) < len(INPUT_SIZES) else ""
    if not gpus and sizes[-1] > LARGEST_ON_CPU:
        sizes, limit = [size for size in sizes if size <= LARGEST_ON_CPU], "; a larger input is slow without a GPU"
    size = next((size for size in sizes if small_side * size >= WANTED_PIXELS), sizes[-1])
    reason = f"a tenth of the objects has sides below {small_side:.1%} of the image: {small_side * size:.0f} pixels"
    is_limited = small_side * size < WANTED_PIXELS
    return size, f"{reason} at this size{limit if is_limited else f'; {WANTED_PIXELS} are enough'}"


def raise_input_size(
    settings: Settings, dataset: DatasetFacts, seconds_per_image: float, training_seconds: float
) -> bool:
    """Raises a chosen input size if the time for training allows `EPOCHS` epochs at a larger one.

    Args:
      settings: the values that the user fixed and the choices of the network.
      dataset: the survey of the dataset.
      seconds_per_image: the cost at the chosen size; that of other sizes follows from their number of pixels.
      training_seconds: the time for training, in the same unit.

    Returns:
      Whether the size was raised; the cost has to be measured again.
    """
    if settings.fixed.keys() & {"model.input_size", "train.steps", "train.epochs"}:
        return False
    size = settings.value("model.input_size")
    for larger in reversed(INPUT_SIZES):
        epochs = training_seconds / seconds_per_image / (larger / size) ** 2 / dataset.train_images
        if size < larger <= dataset.image_side and epochs >= EPOCHS:
            reason = f"the time allows about {epochs:.0f} epochs at this size; from {EPOCHS} on, more pixels are better"
            settings.replace("model.input_size", larger, reason)
            return True
    return False


def choose_batch(settings: Settings, dataset: DatasetFacts, machine: MachineFacts, replicas: int) -> None:
    """Chooses the global batch size; the time of a step is measured with it."""
    settings.choose("train.global_batch_size", *choose_batch_size(dataset.train_images, machine.gpus, replicas))


def choose_training(
    settings: Settings,
    dataset: DatasetFacts,
    machine: MachineFacts,
    cost: TrainingCost,
    replicas: int,
    limit: TimeLimit | None = None,
) -> None:
    """Chooses length, augmented copies, learning rate and intervals, and how a batch is divided.

    Args:
      settings: the values that the user fixed, and the choices of network and batch; receives the choices.
      dataset: the survey of the dataset.
      machine: the machine.
      cost: the cost of the network.
      replicas: number of replicas.
      limit: the limit of the whole command, if there is one.

    Raises:
      UsageError: if the batch has fewer images than there are replicas and parts.
    """
    batch = settings.value("train.global_batch_size")
    parts = choose_accumulation(settings, batch // replicas, machine, cost.bytes_per_image)
    if batch < replicas * parts:
        raise UsageError(
            f"train.global_batch_size: {batch} is too small for {replicas} x {parts} parts (replicas x "
            f"train.accumulate_steps); use at least {replicas * parts}, or lower train.accumulate_steps"
        )
    group = find_largest_divisor(batch // replicas // parts, LARGEST_GROUP)
    together = "the images that a replica processes at once, so that replicas do not communicate for batch norm"
    settings.choose("model.batch_norm_group", group, "all images of a batch" if group == batch else together)
    steps = choose_steps(settings, dataset, batch, cost.seconds_per_image, limit)
    epochs = steps * batch / dataset.train_images
    views = min(MOST_VIEWS, max(1, int(epochs // 4)), max(1, MOST_COPIES // dataset.train_images))
    # As training counts them, without the images that fill no batch.
    full = steps / max(dataset.train_images // batch, 1)
    settings.choose("data.views", views, f"each augmented copy is used {full / views:.0f} times in {full:.0f} epochs")
    if dataset.train_images < FEW_IMAGES:
        for key, bound in CROPS_OF_FEW_IMAGES.items():
            settings.choose(key, bound, f"milder crops than SSD's suit {dataset.train_images} images better")
        if rare := dataset.count_rare_classes(RARE_SHARE):
            reason = f"repeats images of rare classes: {rare} of {dataset.classes} occur in less than {RARE_SHARE:.0%}"
            settings.choose("data.repeat_threshold", RARE_SHARE, f"{reason} of the images")
    if not has_trained_weights(settings):
        settings.choose("optimizer.lr", 4e-3, "the weights start at random values")
    else:
        settings.choose("optimizer.lr", 2e-3, "the best of the rates in docs/recipe.md")
    if epochs >= EPOCHS:
        reason = f"{epochs:.0f} epochs; from {EPOCHS} on, more decay than the default is better"
        settings.choose("optimizer.weight_decay", WEIGHT_DECAY_OF_MANY_EPOCHS, reason)
    warmup = min(max(steps // 20, 1), 500)
    settings.choose("schedule.warmup_steps", warmup, f"a twentieth of {steps} steps, at most 500")
    if "eval.every_epochs" not in settings.fixed:
        every = -(-steps // EVALUATIONS)
        settings.choose(
            "eval.every_steps", every, f"{EVALUATIONS} evaluations in {steps} steps; the best model is kept"
        )
    every = max(min(steps // 10, 500), 1)
    settings.choose("checkpoint.every_steps", every, f"a crash loses at most {every} steps")


def choose_batch_size(images: int, gpus: int, replicas: int) -> tuple[int, str]:
    """Returns the global batch size, a multiple of the number of replicas, and the reason.

    >>> choose_batch_size(images=20, gpus=0, replicas=1)
    (8, 'an epoch of 20 images needs at least two batches')
    >>> choose_batch_size(images=200, gpus=0, replicas=1), choose_batch_size(images=200, gpus=2, replicas=2)
    ((16, '16 images on one replica'), (32, '16 images on each of 2 replicas'))
    """
    per_replica = GPU_BATCH_SIZE if gpus and images >= 1000 * gpus else BATCH_SIZE
    per_replica = per_replica if gpus else max(per_replica // replicas, 1)
    wanted = per_replica
    while per_replica > 1 and 2 * per_replica * replicas > images:
        per_replica //= 2
    if per_replica < wanted:
        return per_replica * replicas, f"an epoch of {images} images needs at least two batches"
    devices = "one replica" if replicas == 1 else f"each of {replicas} replicas"
    return per_replica * replicas, f"{per_replica} images on {devices}"


def find_largest_divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of a number up to a limit.

    >>> find_largest_divisor(20, 16), find_largest_divisor(15, 16)
    (10, 15)
    """
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def choose_accumulation(settings: Settings, images: int, machine: MachineFacts, bytes_per_image: int) -> int:
    """Splits the batch of a replica into parts whose activations fit into the main memory; returns their number.

    The memory of GPUs is not measured.
    """
    key, parts = "train.accumulate_steps", 1
    budget = math.inf if machine.gpus else MEMORY_SHARE * machine.memory
    while images % (2 * parts) == 0 and images // parts * bytes_per_image > budget:
        parts *= 2
    if parts > 1:
        needed, memory = images * bytes_per_image / 2**30, machine.memory / 2**30
        reason = f"a batch of {images} images would need {needed:.1f} of {memory:.1f} GiB memory"
        settings.choose(key, parts, reason)
    return int(settings.fixed.get(key, parts))


def plan_training_seconds(limit: TimeLimit, dataset: DatasetFacts, seconds_per_image: float) -> float:
    """Returns how many of the seconds that are left training may take, without its evaluations."""
    val, test = (dataset.images.get(name, 0) for name in ("val", "test"))
    evaluated = EVALUATIONS * (val or test) + (test or val)
    prepared = sum(dataset.images.values())
    images = EVALUATION_COST * evaluated + PREPARATION_COST * prepared
    planned = OTHER_WORK * limit.spent + images * seconds_per_image
    return max((1 - RESERVE) * (limit.left - planned), LEAST_SHARE * limit.left)


def choose_steps(
    settings: Settings, dataset: DatasetFacts, batch: int, seconds_per_image: float | None, limit: TimeLimit | None
) -> int:
    """Chooses the number of steps unless the user fixed the length of training; returns the number of steps."""
    images = dataset.train_images
    if not settings.fixed.get("train.steps") and settings.fixed.keys() & {"train.steps", "train.epochs"}:
        # Without steps, or with 0 steps, the number of epochs counts.
        epochs = settings.fixed.get("train.epochs", TrainConfig().epochs)
        return max(int(epochs * (images // batch)), 1)
    if limit is not None and seconds_per_image:
        seconds_per_step = seconds_per_image * batch
        seconds = plan_training_seconds(limit, dataset, seconds_per_image)
        steps = min(max(int(seconds / seconds_per_step), 1), MOST_STEPS)
        reason = (
            f"{limit.left / 60:.1f} minutes are left, and a step takes {seconds_per_step:.2f} s (measured); "
            f"{1 - seconds / limit.left:.0%} of the time is for shards, evaluation and exports"
        )
    else:
        steps = min(max(EPOCHS * images // batch, FEWEST_STEPS), MOST_STEPS)
        reason = f"{EPOCHS} epochs of {images} images, but at least {FEWEST_STEPS} and at most {MOST_STEPS} steps"
    return int(settings.choose("train.steps", steps, reason))
