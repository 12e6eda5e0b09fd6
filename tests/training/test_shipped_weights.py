"""Which weights are evaluated, kept as best and loaded: the averages, or the trained weights if so configured."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.fake_run import RecordedProgress
from support.small_network import small_program
from support.synthetic import CLASSES, write_dataset

from ssd_dist.core.config_files import load_config
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.inference.trained_model import evaluate_split, load_trained_model
from ssd_dist.training.assembly import create_state
from ssd_dist.training.parameter_groups import group_parameters
from ssd_dist.training.periodic_evaluation import PeriodicEvaluation

# The tests train; the machine may be busy.
pytestmark = [pytest.mark.usefixtures("small_backbone"), pytest.mark.timeout(1800)]

SMALL = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8",
         "eval.every_steps=3", "checkpoint.every_steps=3"]  # fmt: skip
RUN_ALL = """
import json, sys
from ssd_dist.core.config_files import load_config
from ssd_dist.cluster.preemption import StopRequest
from ssd_dist.training.run import run_training
for folder, overrides in json.load(sys.stdin):
    run_training(load_config(sys.argv[1], overrides), folder, StopRequest())
"""


def values_of(variables) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, other)


def read_model(model: tf_keras.Model, path: Path) -> list[np.ndarray]:
    """Restores the weights that a file holds under `model` and returns them."""
    tf.train.Checkpoint(model=model).read(str(path)).expect_partial().assert_existing_objects_matched()
    return values_of(model.variables)


@pytest.mark.parametrize("use_ema", [True, False])
def test_the_chosen_weights_are_evaluated_shown_and_kept_and_the_trained_ones_restored(
    tmp_path: Path, use_ema: bool
) -> None:
    (tmp_path / "small.yaml").touch()
    state = create_state(load_config(tmp_path / "small.yaml", SMALL), len(CLASSES), total_steps=1)
    for average in state.ema.averages.values():
        average.assign_add(tf.ones_like(average))
    before = values_of(state.model.trainable_variables)
    seen = []

    def record_weights(*_) -> None:
        seen.append(values_of(state.model.trainable_variables))

    best = SimpleNamespace(save_if_best=lambda step, value: record_weights() or True)
    evaluator = SimpleNamespace(steps=1, detections=[])
    evaluation = PeriodicEvaluation(evaluator, state, best, [], CLASSES, "metric", use_ema, record_weights)
    with pytest.MonkeyPatch.context() as patch:
        metrics = SimpleNamespace(as_dict=lambda: dict.fromkeys(("metric", "coco/AP", "coco/AP50", "voc/mAP"), 0.5))
        patch.setattr("ssd_dist.training.periodic_evaluation.evaluate_detections", lambda *_: metrics)
        log = SimpleNamespace(write=lambda *_: None)
        evaluation.evaluate(SimpleNamespace(evaluate=record_weights), 3, log, RecordedProgress())
    assert len(seen) == 3, "evaluated, shown, kept"
    for weights in seen:
        assert_equal(weights, [value + np.float32(1) for value in before] if use_ema else before)
    assert_equal(values_of(state.model.trainable_variables), before)


def test_without_ema_the_trained_weights_are_evaluated(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").touch()
    config = load_config(tmp_path / "small.yaml", [*SMALL, "ema.enabled=false"])
    state = create_state(config, len(CLASSES), total_steps=1)
    before = values_of(state.model.variables)
    with state.eval_context(use_ema=True):
        assert_equal(values_of(state.model.variables), before)


def train(folder: Path, *starts: list[str]) -> Path:
    """Starts a run once per list of overrides, all in one new process, and returns its folder."""
    (folder / "small.yaml").touch()
    small = [*SMALL, f"data.dir={folder / 'data'}"]
    write_dataset(folder / "data", load_config(folder / "small.yaml", small), {"train": 16, "val": 6})
    jobs = [(str(folder / "run"), [*small, *overrides]) for overrides in starts]
    subprocess.run(
        small_program(RUN_ALL, str(folder / "small.yaml")),
        input=json.dumps(jobs), text=True, timeout=900, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    return folder / "run"


@pytest.mark.slow
def test_a_run_keeps_and_loads_the_averages(tmp_path: Path) -> None:
    run = train(tmp_path, ["train.steps=3"])
    config = load_config(run / "config.yaml")
    model = load_trained_model(str(run), "last", config, len(CLASSES))
    groups = group_parameters(model, config.optimizer, config.backbone)
    loaded, best = values_of(model.variables), read_model(model, run / "best" / "ckpt-3")
    assert_equal(loaded, best)
    kept = {group.name: group.pack().numpy() for group in groups}
    statistics = values_of(model.non_trainable_variables)
    weights = read_model(model, run / "checkpoints" / "ckpt-3")
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / "ckpt-3"))
    for group in groups:
        average = reader.get_tensor(f"ema/averages/{group.name}/.ATTRIBUTES/VARIABLE_VALUE")
        np.testing.assert_array_equal(kept[group.name], average)
        # Adam changes every weight that has a gradient; after three steps the average differs from the weight.
        assert (kept[group.name] != group.pack().numpy()).mean() > 0.5
    # Every trained variable is in a group, and batch-norm statistics are not averaged twice.
    assert sum(group.size for group in groups) + sum(value.size for value in statistics) == sum(
        value.size for value in weights
    )
    assert_equal(statistics, values_of(model.non_trainable_variables))


@pytest.mark.slow
@pytest.mark.parametrize("override", ["ema.enabled=false", "eval.use_ema=false"])
def test_a_run_resumes_and_the_trained_weights_are_evaluated_kept_and_loaded(tmp_path: Path, override: str) -> None:
    run = train(tmp_path, [override, "train.steps=3"], [override, "train.steps=6"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = {row["step"]: row for row in rows if row["kind"] == "eval"}
    assert sorted(evaluations) == [3, 6]
    path = run / "checkpoints" / "ckpt-6"
    averages = [name for name, _ in tf.train.list_variables(str(path)) if name.startswith("ema/averages")]
    assert bool(averages) == (override != "ema.enabled=false")
    config, manifest, ground_truth, detections = evaluate_split(str(run), "last", "val", [])
    metrics = evaluate_detections(ground_truth, detections, manifest.classes).as_dict()
    assert metrics == {name: evaluations[6][name] for name in metrics}
    model = load_trained_model(str(run), "last", config, len(CLASSES))
    loaded, trained = values_of(model.variables), read_model(model, path)
    assert_equal(loaded, trained)
    best = json.loads((run / "best" / "best.json").read_text())
    best_path = run / "checkpoints" / best["checkpoint"]
    assert_equal(read_model(model, run / "best" / best["checkpoint"]), read_model(model, best_path))
    if averages:
        # The averages of the same checkpoint are other weights.
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"use_ema": True})})
        averaged = load_trained_model(str(run), "last", config, len(CLASSES))
        assert any((a != b).any() for a, b in zip(values_of(averaged.trainable_variables), trained, strict=False))
