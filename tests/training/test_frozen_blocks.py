"""Training with `backbone.frozen_blocks`: the first blocks keep their bits, the rest trains alike in every layout."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from multihost.curve_worker import create_trainer
from support.replicas import mirrored
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config

pytestmark = pytest.mark.usefixtures("four_cpus")

SETTINGS = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=4",
            "train.log_every=1", "model.batch_norm_group=2", "train.reduction=exact"]  # fmt: skip
BLOCKS, STEPS = 3, 3


def train_steps(config: Config, replicas: int) -> tuple[list[float], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Returns the losses of the steps, and the values of the backbone's variables before and after them."""
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.OneDeviceStrategy("CPU:0")
    state, trainer = create_trainer(config, strategy, STEPS)
    backbone = state.model.get_layer("backbone")
    before = {variable.name: variable.numpy() for variable in backbone.variables}
    losses = [trainer.train(tf.constant(1))["loss"] for _ in range(STEPS)]
    return losses, {variable.name: (before[variable.name], variable.numpy()) for variable in backbone.variables}


def test_frozen_blocks_keep_their_bits_and_the_others_train_alike_in_every_layout(tmp_path: Path) -> None:
    config = load_config("base", [*SETTINGS, f"data.dir={tmp_path}"])
    write_dataset(tmp_path, config, {"train": 16}, shards=4)
    # The config refuses frozen blocks with random weights; here it does not matter which weights are frozen.
    backbone = config.backbone.model_copy(update={"frozen_blocks": BLOCKS})
    losses, values = train_steps(config.model_copy(update={"backbone": backbone}), replicas=1)
    same = {name for name, (before, after) in values.items() if np.array_equal(before, after)}
    first = ("Conv1", "bn_Conv1", "expanded_conv", *(f"block_{number}_" for number in range(1, BLOCKS)))
    assert same == {name for name in values if name.startswith(first)}
    assert len(set(losses)) == STEPS

    again, others = train_steps(config.model_copy(update={"backbone": backbone}), replicas=2)
    assert again == losses
    for name, (_, after) in values.items():
        np.testing.assert_array_equal(others[name][1], after, err_msg=name)
