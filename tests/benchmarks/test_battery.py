"""The battery: the reference does not depend on what ssd-fit chooses; recorded results belong to one set of choices."""

import numpy as np
import pytest

from benchmarks.battery.__main__ import RESULTS, Run
from benchmarks.battery.variants import AFTER, BEFORE, VARIANTS
from benchmarks.run_queue import read_results
from ssd_dist.core.config_files import flatten_config, load_config
from ssd_dist.fitting.choices import Settings, choose_network, choose_training
from ssd_dist.fitting.facts import DatasetFacts, MachineFacts, TrainingCost

TINY_OBJECTS = DatasetFacts(3, 1000, 1100, np.full((50, 2), 640), np.full((200, 2), 0.02))
CPU = MachineFacts(gpus=0, memory=2**34)


def choose(run):
    """Returns the choices of ssd-fit for a run, by key."""
    settings = Settings(flatten_config(load_config(run.config, run.overrides), only_set=True))
    choose_network(settings, TINY_OBJECTS, CPU)
    choose_training(settings, TINY_OBJECTS, CPU, TrainingCost(2**20, 2**24), replicas=1)
    return {choice.key: choice.value for choice in settings.choices}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_is_a_valid_config_and_its_values_are_not_chosen(variant):
    run = Run(variant, "bccd", 0, "dev", "steps=10")
    assert not {override.partition("=")[0] for override in variant.overrides} & choose(run).keys()


def test_only_the_length_of_the_reference_is_chosen():
    assert choose(Run(BEFORE, "bccd", 0, "dev", "steps=10")).keys() == {"train.steps", "eval.every_steps"}


def test_results_of_ssd_fit_were_recorded_with_its_choices_of_today():
    results = read_results(RESULTS)
    assert len({result["key"] for result in results}) == len(results) > 0
    frozen = choose(Run(AFTER, "bccd", 0, "dev", "steps=10"))["backbone.frozen_blocks"]
    for result in results:
        if result["variant"] == AFTER.name:
            assert result["choices"].get("backbone.frozen_blocks") == frozen
