"""The inner loop is traced once and then calls Python only to read the clock."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from multihost.curve_worker import build_tiny_detector, create_trainer
from support.replicas import mirrored
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.training import assembly
from ssd_dist.training.trainer import DetectorTrainer

pytestmark = pytest.mark.usefixtures("four_cpus")

SMALL = ["model.input_size=64", "backbone.weights=none", "train.global_batch_size=4", "train.log_every=1",
         "model.batch_norm_group=2"]  # fmt: skip


@pytest.fixture
def make_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DetectorTrainer]:
    monkeypatch.setattr(assembly, "build_detector", build_tiny_detector)
    (tmp_path / "small.yaml").write_text("{}")

    def load(*overrides: str) -> Config:
        return load_config(tmp_path / "small.yaml", [*SMALL, f"data.dir={tmp_path / 'data'}", *overrides])

    write_dataset(tmp_path / "data", load(), {"train": 16}, shards=4)
    return lambda *overrides: create_trainer(load(*overrides), mirrored(2), 100)[1]


def loop_nodes(trainer: DetectorTrainer) -> list[Any]:
    """Returns all nodes of the traced loop, including those inside functions."""
    (loop,) = trainer._train_loop_fn._list_all_concrete_functions()
    graph = loop.graph.as_graph_def()
    return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]


def has_xla(trainer: DetectorTrainer) -> bool:
    return any(node.attr["_XlaMustCompile"].b for node in loop_nodes(trainer) if "_XlaMustCompile" in node.attr)


def test_a_compiled_network_has_the_same_loss_curve(make_trainer: Callable[..., DetectorTrainer]) -> None:
    trainers = make_trainer(), make_trainer("train.jit_compile=true")
    plain, compiled = ([trainer.train(tf.constant(1))["loss"] for _ in range(5)] for trainer in trainers)
    assert [has_xla(trainer) for trainer in trainers] == [False, True]
    assert plain[-1] != plain[0]
    # XLA sums in a different order.
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_the_loop_calls_python_only_to_read_the_clock(
    make_trainer: Callable[..., DetectorTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    # Python code in a step would stall a GPU.
    calls = []
    step = trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda iterator: calls.append(1) or step(iterator))
    trainer.train(tf.constant(1))
    traced = len(calls)
    assert traced > 0
    for steps in (1, 7, 3):
        trainer.train(tf.constant(steps))
    assert len(calls) == traced

    operations = [node.op for node in loop_nodes(trainer)]
    assert any(name in operations for name in ("While", "StatelessWhile"))
    # Before and after the batch arrives.
    assert sum("PyFunc" in name for name in operations) == 2


@pytest.mark.parametrize("on_gpus", [False, True])
def test_the_share_of_time_that_devices_wait_for_input_is_reported(
    on_gpus: bool, make_trainer: Callable[..., DetectorTrainer]
) -> None:
    shares = []
    for seconds in (0.0, 1.0):
        trainer = make_trainer()
        # The GPU's form of the measurement also works on a CPU, where the last step is always computed.
        trainer._on_gpus = on_gpus
        batches = repeat_slowly(trainer, seconds)
        trainer.train_dataset = trainer._strategy.distribute_datasets_from_function(lambda _, data=batches: data)
        # The first steps use batches that are already in buffers.
        trainer.train(tf.constant(4))
        shares.append(trainer.train(tf.constant(4))["data_wait"])
        # One clock waits for a result of each of the two replicas, but only where the host does not compute them.
        inputs = [len(node.attr["Tin"].list.type) for node in loop_nodes(trainer) if "PyFunc" in node.op]
        assert sorted(inputs) == [0, 2 if on_gpus else 0]
    fast, slow = shares
    assert 0 <= fast < slow < 1
    assert slow > 0.3


def repeat_slowly(trainer: DetectorTrainer, seconds: float) -> tf.data.Dataset:
    """Returns a dataset that repeats a batch of one replica and takes `seconds` for each."""
    (batch, *_) = trainer._strategy.experimental_local_results(next(iter(trainer.train_dataset)))

    def delay(index: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return index

    delays = tf.data.Dataset.range(1000).map(lambda index: tf.numpy_function(delay, [index], tf.int64))
    return tf.data.Dataset.zip(tf.data.Dataset.from_tensors(batch).repeat(), delays).map(lambda batch, _: batch)
