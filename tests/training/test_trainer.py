"""The inner loop: traced once, then TensorFlow's alone."""

from pathlib import Path

import pytest
import tensorflow as tf
from multihost.curve_worker import build_tiny_detector, create_trainer
from replicas import mirrored
from synthetic import write_dataset

from ssd_dist.core.config_files import load_config
from ssd_dist.training import state as state_module
from ssd_dist.training.trainer import DetectorTrainer

pytestmark = pytest.mark.usefixtures("four_cpus")

SMALL = ["model.input_size=64", "backbone.weights=none", "train.global_batch_size=4", "train.log_every=1"]


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DetectorTrainer:
    monkeypatch.setattr(state_module, "build_detector", build_tiny_detector)
    (tmp_path / "small.yaml").write_text("{}")
    config = load_config(tmp_path / "small.yaml", [*SMALL, f"data.dir={tmp_path / 'data'}"])
    write_dataset(tmp_path / "data", config, {"train": 16}, shards=4)
    return create_trainer(config, mirrored(2), 100)[1]


def test_no_python_runs_inside_the_loop(trainer: DetectorTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    # A step that asks Python would halt a GPU each time.
    calls = []
    step = trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda iterator: calls.append(1) or step(iterator))
    trainer.train(tf.constant(1))
    traced = len(calls)
    assert traced > 0
    for steps in (1, 7, 3):
        trainer.train(tf.constant(steps))
    assert len(calls) == traced

    (loop,) = trainer._train_loop_fn._list_all_concrete_functions()
    graph = loop.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    operations = {node.op for node in nodes}
    assert any(name in operations for name in ("While", "StatelessWhile"))
    assert not [name for name in operations if "PyFunc" in name]
