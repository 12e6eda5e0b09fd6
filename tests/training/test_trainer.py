"""The inner loop is traced once and then calls Python only to read the clock."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
