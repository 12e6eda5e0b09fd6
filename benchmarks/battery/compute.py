"""Lengths of training that need equal computation, for screening: they do not depend on the load of the machine."""

from pathlib import Path

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import flatten_config, load_config
from ssd_dist.fitting.choices import Settings, choose_network
from ssd_dist.fitting.facts import DatasetFacts, MachineFacts
from ssd_dist.model.cost import Cost, count_cost
from ssd_dist.model.detector import build_detector


def equal_steps(steps: int, survey: Path, config: str | None, overrides: list[str]) -> int:
    """Returns the number of steps that computes as much as `steps` steps of the default network and batch.

    Args:
      steps: steps of the default config.
      survey: the file of `ssd-prepare --survey`.
      config: the config file of the run; its keys are not chosen.
      overrides: `a.b=c` overrides of the run.
    """
    settings = Settings(flatten_config(load_config(config, overrides), only_set=True))
    dataset = DatasetFacts.read(survey)
    choose_network(settings, dataset, MachineFacts(gpus=0, memory=2**34))
    chosen = [f"{choice.key}={choice.value!r}".replace("'", '"') for choice in settings.choices]
    network = load_config(config, [*chosen, *overrides])
    return round(steps * count_activations(Config(), dataset.classes) / count_activations(network, dataset.classes))


def count_activations(config: Config, classes: int) -> int:
    """Returns the activations of a batch, to which the time of a step on a CPU is roughly proportional."""
    backbone = config.backbone.model_copy(update={"weights": "none"})
    model = build_detector(config.model, backbone, config.anchors, classes)
    return config.train.global_batch_size * sum(count_cost(model).values(), Cost()).activations
