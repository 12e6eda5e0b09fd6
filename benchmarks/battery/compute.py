"""Lengths of training that need equal computation, for screening: they do not depend on the load of the machine."""

from pathlib import Path

from ssd_dist.core.config import BackboneConfig, Config
from ssd_dist.core.config_files import flatten_config, load_config
from ssd_dist.fitting.choices import Settings, choose_network, raise_input_size
from ssd_dist.fitting.facts import DatasetFacts, MachineFacts
from ssd_dist.model.cost import Cost, count_cost
from ssd_dist.model.detector import build_detector


def plan_equal_work(steps: int, survey: Path, config: str | None, overrides: list[str]) -> list[str]:
    """Returns overrides with which `ssd-fit` computes as much as `steps` steps of the default network and batch.

    They are `train.steps`, and `model.input_size` if `ssd-fit` raises it when it has so much time.

    Args:
      steps: steps of the default config.
      survey: the file of `ssd-prepare --survey`.
      config: the config file of the run; its keys are not chosen.
      overrides: `a.b=c` overrides of the run.
    """
    settings = Settings(flatten_config(load_config(config, overrides), only_set=True))
    dataset = DatasetFacts.read(survey)
    choose_network(settings, dataset, MachineFacts(gpus=0, memory=2**34))
    budget = steps * estimate_work(Config(), dataset.classes)

    def build_network() -> Config:
        chosen = [f"{choice.key}={choice.value!r}".replace("'", '"') for choice in settings.choices]
        return load_config(config, [*chosen, *overrides])

    network = build_network()
    work = estimate_work(network, dataset.classes)
    size = []
    if raise_input_size(settings, dataset, work / network.train.global_batch_size, budget):
        network = build_network()
        work = estimate_work(network, dataset.classes)
        size = [f"model.input_size={network.model.input_size}"]
    return [*size, f"train.steps={round(budget / work)}"]


def count_multiply_adds(run: str, classes: int) -> int:
    """Returns the multiply-adds of a forward pass of the network of a run, for one image."""
    config = load_config(f"{run}/config.yaml", [])
    backbone = config.backbone.model_copy(update={"weights": "none"})
    model = build_detector(config.model, backbone, config.anchors, classes)
    return sum(count_cost(model).values(), Cost()).multiply_adds


def estimate_work(config: Config, classes: int) -> float:
    """Returns a number to which the time of a step on a CPU is roughly proportional.

    The forward pass of a layer takes a third of the time, and the backward pass, which frozen layers do not need, two.
    Both are limited by the memory, so by the number of activations.
    """
    unfrozen = config.backbone.model_copy(update={"frozen_blocks": 0, "lr_scale": 1.0})
    forward, backward = (count_activations(config, part, classes) for part in (unfrozen, config.backbone))
    return config.train.global_batch_size * (forward + 2 * backward) / 3


def count_activations(config: Config, backbone: BackboneConfig, classes: int) -> int:
    """Returns the activations of an image that the backward pass needs."""
    model = build_detector(config.model, backbone.model_copy(update={"weights": "none"}), config.anchors, classes)
    return sum(count_cost(model).values(), Cost()).activations
