"""The result of training does not depend on the number of replicas, with batch norm in groups of images."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from multihost.curve_worker import build_tiny_detector, train_variant
from support.replicas import mirrored
from support.synthetic import write_dataset

from ssd_dist.core.config_files import load_config
from ssd_dist.training import assembly

pytestmark = pytest.mark.usefixtures("four_cpus")

STEPS = 4
SMALL = ["model.input_size=64", "backbone.weights=none", "train.global_batch_size=8", "train.log_every=1",
         "schedule.warmup_steps=0", "optimizer.lr=0.01"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "small.yaml").write_text("{}")
    write_dataset(folder / "data", load_config(folder / "small.yaml", SMALL), {"train": 16}, shards=4)
    return folder


@pytest.fixture(autouse=True)
def _tiny_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "build_detector", build_tiny_detector)


def train(folder: Path, replicas: int, *overrides: str) -> dict[str, np.ndarray]:
    config = load_config(folder / "small.yaml", [*SMALL, f"data.dir={folder / 'data'}", *overrides])
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.OneDeviceStrategy("CPU:0")
    return train_variant(config, strategy, STEPS)


@pytest.mark.parametrize(
    "overrides",
    [
        # One group on both replicas together, and one group in each part of a replica.
        ("model.batch_norm_group=8",),
        ("model.batch_norm_group=2", "train.accumulate_steps=2"),
    ],
)
def test_groups_give_two_replicas_the_result_of_one(folder: Path, overrides: tuple[str, ...]) -> None:
    one, two = (train(folder, replicas, *overrides) for replicas in (1, 2))
    assert one["loss"][0] != one["loss"][-1]
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    for vector in ("weights", "statistics", "ema"):
        # Float32 sums in another order.
        assert np.linalg.norm(two[vector] - one[vector]) <= 1e-5 * np.linalg.norm(one[vector]), vector


@pytest.mark.parametrize(
    ("replicas", "overrides"),
    [
        (4, ("model.batch_norm_group=2",)),
        # Rounding turns a difference of one bit into a difference of one level.
        pytest.param(
            2,
            ("model.batch_norm_group=2", "quantization.aware=true", "model.init_from=unused"),
            marks=pytest.mark.long,
        ),
        (2, ("model.batch_norm_group=2", "train.accumulate_steps=2", "mining.scope=global")),
    ],
)
def test_exact_reduction_gives_several_replicas_the_bits_of_one(
    folder: Path, replicas: int, overrides: tuple[str, ...]
) -> None:
    exact = ("train.reduction=exact", *overrides)
    one, several = (train(folder, count, *exact) for count in (1, replicas))
    for vector in ("loss", "loss/cls", "loss/loc", "weights", "statistics", "ema"):
        np.testing.assert_array_equal(several[vector], one[vector], err_msg=vector)
    # It is the same computation as `fast`, apart from the order of float32 sums.
    fast = train(folder, 1, *overrides)
    assert np.linalg.norm(one["weights"] - fast["weights"]) <= 1e-5 * np.linalg.norm(fast["weights"])
    assert np.linalg.norm(one["statistics"] - fast["statistics"]) <= 1e-5 * np.linalg.norm(fast["statistics"])
