"""Gradient accumulation: the gradients of the parts of a batch sum to the gradient of the batch."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from multihost.curve_worker import build_tiny_detector, create_trainer, flatten
from support.replicas import mirrored
from support.synthetic import write_dataset

from ssd_dist.core.config_files import load_config
from ssd_dist.training import assembly

pytestmark = pytest.mark.usefixtures("four_cpus")

# Batch norm is frozen, because with accumulation its statistics are those of a part. SGD's first velocity is the
# gradient itself.
SMALL = ["model.input_size=64", "backbone.weights=none", "backbone.freeze_batch_norm=true", "optimizer.name=sgd",
         "optimizer.clip_norm=0", "train.global_batch_size=8", "train.log_every=1", "model.batch_norm_group=1",
         "mining.min_negatives_per_image=2"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes eight images, three with objects: most parts have no objects and must not divide by their own count."""
    folder = tmp_path_factory.mktemp("accumulation")
    (folder / "small.yaml").write_text("{}")
    config = load_config(folder / "small.yaml", SMALL)
    write_dataset(folder / "data", config, {"train": 8}, shards=4, objects=[2, 0, 0, 1, 0, 0, 3, 0])
    return folder


@pytest.fixture(autouse=True)
def _tiny_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "build_detector", build_tiny_detector)


def train_one_step(folder: Path, replicas: int, parts: int, *overrides: str) -> tuple[np.ndarray, dict[str, float]]:
    """Returns the applied gradient as one vector, and the report of the step."""
    data = f"data.dir={folder / 'data'}"
    config = load_config(folder / "small.yaml", [*SMALL, data, f"train.accumulate_steps={parts}", *overrides])
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.OneDeviceStrategy("CPU:0")
    state, trainer = create_trainer(config, strategy, 1)
    row = trainer.train(tf.constant(1))
    return flatten([slot for slots in state.optimizer.inner_optimizer.slots.values() for slot in slots]), row


@pytest.mark.parametrize(("normalizer", "normalize_per"), [("positives", "batch"), ("classified", "image")])
def test_four_parts_on_two_replicas_sum_to_the_batch(folder: Path, normalizer: str, normalize_per: str) -> None:
    counted = [f"loss.normalizer={normalizer}", f"loss.normalize_per={normalize_per}"]
    whole, expected = train_one_step(folder, 1, 1, *counted)
    gradient, row = train_one_step(folder, 2, 4, *counted)
    assert np.linalg.norm(whole) > 0
    # Float32 sums of eight images in a different order.
    assert np.linalg.norm(gradient - whole) <= 1e-6 * np.linalg.norm(whole)
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert (row["positives"], row["negatives"]) == (expected["positives"], expected["negatives"])
