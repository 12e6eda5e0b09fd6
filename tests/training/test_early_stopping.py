"""Early stopping: the run ends after the same evaluation wherever it was interrupted, and the best model is kept."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf
from support.fake_run import OneWorkerCollectives, RecordedProgress, create_run, create_workers

from ssd_dist.core.config import CheckpointConfig, Config
from ssd_dist.core.errors import UsageError
from ssd_dist.runs.checkpoints import BestModel, CheckpointStore
from ssd_dist.runs.metrics_log import MetricsLog
from ssd_dist.training import loop, periodic_evaluation
from ssd_dist.training.intervals import StepIntervals
from ssd_dist.training.periodic_evaluation import PeriodicEvaluation
from ssd_dist.training.run_checks import choose_evaluated_split
from ssd_dist.training.run_parts import RunOutput
from ssd_dist.training.state import TrainState

METRIC = "coco/AP"
# The metric of each evaluation, every 4 steps. Equal values are no improvement, a missing one is none either.
VALUES = {4: 0.1, 8: 0.3, 12: 0.3, 16: None, 20: 0.4, 24: 0.4, 28: 0.1, 32: 0.3, 36: 0.5}


class Killed(BaseException):
    """Ends a run as SIGKILL would: no handler may catch it."""


class SmallState(TrainState):
    """A state whose checkpoint holds a weight and the counters."""

    def checkpoint(self) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(model=self.model, step=self.step, evaluated=self.evaluated)


def train(monkeypatch, folder: Path, patience: int, kill_at: int | None = None, values=VALUES, every=4) -> int:
    """Trains a run of 40 steps in a folder, or resumes it; the weight equals the step.

    Args:
      monkeypatch: replaces the model and the metrics.
      folder: the run folder.
      patience: `train.early_stopping`.
      kill_at: the number of file or training operations after which the run is killed.
      values: the metric at each step that is evaluated.
      every: steps between checkpoints.

    Returns:
      The last step.
    """
    model = tf.Module()
    model.weight = tf.Variable(0.0)
    counters = [tf.Variable(0, dtype=tf.int64) for _ in range(3)]
    optimizer = SimpleNamespace(loss_scale=SimpleNamespace(skipped_steps=tf.Variable(0)))
    state = SmallState(model, optimizer, None, *counters, None)
    operations = iter(range(10**9))

    def kill_if_due(function):
        def run(*args, **options):
            if next(operations) == kill_at:
                raise Killed
            result = function(*args, **options)
            if next(operations) == kill_at:
                raise Killed
            return result

        return run

    def advance(upto: int, **_) -> None:
        state.step.assign(upto)
        model.weight.assign(float(upto))

    controller = SimpleNamespace(train=kill_if_due(advance), evaluate=lambda steps: None)
    metrics = SimpleNamespace(as_dict=lambda: dict.fromkeys(periodic_evaluation._PRINTED_METRICS, step_value()))

    def step_value() -> float | None:
        return values[state.current_step]

    monkeypatch.setattr(loop.orbit, "Controller", lambda **_: controller)
    monkeypatch.setattr(periodic_evaluation, "evaluate_detections", lambda *_: metrics)
    checkpoints = CheckpointStore(
        state.checkpoint(), str(folder), CheckpointConfig(every_steps=every, keep=2, async_save=False), True
    )
    checkpoints.restore_latest()
    log = MetricsLog(str(folder), state.current_step, state.evaluated_step)
    best = BestModel(model, str(folder), METRIC, 1)
    evaluator = SimpleNamespace(steps=1, detections=[])
    evaluation = PeriodicEvaluation(evaluator, state, best, [], ("cat",), METRIC, use_ema=True)
    for part, name in ((checkpoints, "save"), (log, "write"), (best, "save_if_best")):
        setattr(part, name, kill_if_due(getattr(part, name)))
    run = create_run(
        state,
        StepIntervals(total=40, report=40, evaluation=4, checkpoint=every, loop=3),
        trainer=SimpleNamespace(find_divergence=lambda: None),
        evaluation=evaluation,
        checkpoints=checkpoints,
        output=RunOutput(str(folder), log, RecordedProgress()),
        early_stopping=patience,
    )
    loop.run_loop(run)
    return state.current_step


def read_end(folder: Path) -> tuple:
    """Returns what a run has written: evaluations, best model, its weight, and the weight of the last checkpoint."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = json.loads((folder / "best" / "best.json").read_text())
    paths = (str(folder / "best" / best["checkpoint"]), tf.train.latest_checkpoint(str(folder / "checkpoints")))
    weights = [tf.train.load_variable(path, "model/weight/.ATTRIBUTES/VARIABLE_VALUE") for path in paths]
    return rows, best, *weights


@pytest.mark.parametrize(("patience", "last", "best"), [(1, 12, 8), (2, 16, 8), (3, 32, 20), (0, 40, 36), (9, 40, 36)])
def test_training_ends_after_so_many_evaluations_without_a_better_model(monkeypatch, tmp_path, patience, last, best):
    values = VALUES | {40: 0.5}
    # Without checkpoints in between, so that the last one is that of the end.
    assert train(monkeypatch, tmp_path, patience, values=values, every=0) == last
    rows, kept, best_weight, last_weight = read_end(tmp_path)
    assert [row["step"] for row in rows] == list(range(4, last + 1, 4))
    assert (kept["step"], best_weight, last_weight) == (best, best, last)


# Checkpoints between the evaluations, and only at the end.
@pytest.mark.parametrize("every", [5, 0])
def test_a_run_killed_at_any_point_ends_like_one_that_was_not(monkeypatch, tmp_path, every):
    train(monkeypatch, tmp_path / "whole", 2, every=every)
    expected = read_end(tmp_path / "whole")
    kills = 0
    while True:
        folder = tmp_path / f"killed{kills}"
        try:
            train(monkeypatch, folder, 2, kill_at=kills, every=every)
            break
        except Killed:
            pass
        assert train(monkeypatch, folder, 2, every=every) == 16
        assert read_end(folder) == expected, f"killed at operation {kills}"
        kills += 1
    assert kills > 20


def test_a_run_that_stopped_early_does_not_train_again_unless_the_config_allows_more(monkeypatch, tmp_path):
    assert train(monkeypatch, tmp_path, 2) == 16
    before = read_end(tmp_path)
    assert train(monkeypatch, tmp_path, 2) == 16
    assert read_end(tmp_path) == before
    assert train(monkeypatch, tmp_path, 3) == 32


def test_evaluations_on_replaced_data_do_not_count(monkeypatch, tmp_path):
    assert train(monkeypatch, tmp_path, 2) == 16
    (tmp_path / "best").rename(tmp_path / "best_on_earlier_data")
    assert train(monkeypatch, tmp_path, 2) > 16
    assert read_end(tmp_path)[1]["step"] > 16


def test_all_workers_follow_the_decision_of_the_chief():
    barrier = threading.Barrier(2, timeout=60)
    sent = {}

    class TwoWorkers(OneWorkerCollectives):
        def broadcast_from_chief(self, value: float, is_chief: bool) -> float:
            sent[is_chief] = value
            barrier.wait()
            return sent[True]

    def decide(is_chief: bool, best_step: int) -> bool:
        state = SimpleNamespace(evaluated_step=16)
        workers = create_workers(TwoWorkers())
        object.__setattr__(workers, "is_chief", is_chief)
        log = SimpleNamespace(count_evaluations_after=lambda step: (16 - step) // 4) if is_chief else None
        run = create_run(
            state,
            workers=workers,
            # Only the chief keeps the best model.
            evaluation=SimpleNamespace(best_step=best_step if is_chief else 0),
            output=RunOutput("", log, RecordedProgress()),
            early_stopping=2,
        )
        return loop.stops_early(run, 16)

    with ThreadPoolExecutor(2) as pool:
        for best_step, stops in ((8, True), (12, False)):
            assert list(pool.map(decide, (True, False), (best_step,) * 2)) == [stops, stops]


@pytest.mark.parametrize("splits", [("val",), ()])
def test_early_stopping_without_evaluations_is_refused(splits):
    manifest = SimpleNamespace(eval_split=lambda name, path: splits[0] if splits else None)
    settings = {"train": {"early_stopping": 2}, "eval": {"every_epochs": 0 if splits else 5}}
    with pytest.raises(UsageError, match=r"train\.early_stopping: 2 needs evaluations"):
        choose_evaluated_split(manifest, Config.model_validate(settings))


def test_a_run_without_evaluation_needs_no_evaluation_split():
    config = Config.model_validate({"eval": {"every_epochs": 0, "split": "holdout"}})
    assert choose_evaluated_split(SimpleNamespace(), config) is None
