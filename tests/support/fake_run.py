"""Runs without a model, for tests of the training loop."""

from contextlib import nullcontext
from types import SimpleNamespace

import tensorflow as tf

from ssd_dist.runs.console_progress import TrainingProgress
from ssd_dist.training.intervals import StepIntervals
from ssd_dist.training.run_parts import DivergencePolicy, Run, RunOutput, TrainingData, WorkerGroup
from ssd_dist.training.state import TrainState


class RecordedProgress(TrainingProgress):
    """Collects the lines that would be printed, and shows nothing."""

    def __init__(self) -> None:
        super().__init__(start_step=0, total_steps=1, is_chief=False)
        self.lines: list[str] = []

    def print_line(self, line: str) -> None:
        self.lines.append(line)


class OneWorkerCollectives:
    """The collectives of a single worker."""

    def sum(self, value: float) -> float:
        return value

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast_from_chief(self, value: float, is_chief: bool) -> float:
        return value


def create_workers(collectives: OneWorkerCollectives) -> WorkerGroup:
    watchdog = nullcontext()
    watchdog.start = watchdog.reset = lambda: None
    return WorkerGroup(collectives, True, SimpleNamespace(requested=False), watchdog)


def create_run(state: TrainState, intervals: StepIntervals | None = None, **parts) -> Run:
    """Creates a run of one worker that may recover once."""
    defaults = {
        "state": state, "trainer": SimpleNamespace(), "evaluation": None,
        "data": TrainingData(SimpleNamespace(find_change=lambda: None, steps_per_epoch=1000), lambda: None),
        "checkpoints": None, "intervals": intervals, "grace_seconds": 30.0,
        "workers": create_workers(OneWorkerCollectives()), "output": RunOutput("", None, RecordedProgress()),
        "divergence": DivergencePolicy(max_recoveries=1, overflow_is_expected=False), "early_stopping": 0,
    }  # fmt: skip
    return Run(**{**defaults, **parts})


def create_state(step: int = 0, evaluated: int = 0) -> TrainState:
    optimizer = SimpleNamespace(loss_scale=SimpleNamespace(skipped_steps=tf.Variable(0)))
    return TrainState(None, optimizer, None, tf.Variable(step), tf.Variable(evaluated), tf.Variable(0), None)
