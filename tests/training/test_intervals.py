"""Training pauses at fixed steps, and often enough to save within the grace time."""

import math
from types import SimpleNamespace

import pytest

from ssd_dist.core.config import CheckpointConfig, EvalConfig, TrainConfig
from ssd_dist.training.intervals import StepIntervals
from ssd_dist.training.loop import count_steps_to_pause


def test_intervals_do_not_depend_on_where_a_run_pauses():
    intervals = StepIntervals(total=95, report=30, evaluation=40, checkpoint=0, loop=25)
    expected = {25, 30, 40, 50, 60, 75, 80, 90, 95}
    for step in range(95):
        assert step + intervals.steps_to_next(step) == min(pause for pause in expected if pause > step)


def test_the_last_step_is_evaluated_and_saved():
    intervals = StepIntervals(total=10, report=0, evaluation=4, checkpoint=3, loop=0)
    assert [step for step in range(11) if intervals.evaluation_due(step)] == [0, 4, 8, 10]
    assert [step for step in range(11) if intervals.checkpoint_due(step)] == [3, 6, 9, 10]
    never = StepIntervals(total=10, report=0, evaluation=0, checkpoint=0, loop=0)
    assert not any(never.evaluation_due(step) for step in range(11))
    assert [step for step in range(11) if never.checkpoint_due(step)] == [10]


@pytest.mark.parametrize(("every_steps", "every_epochs", "expected"), [(0, 2, 14), (5, 2, 5), (0, 0, 0)])
def test_every_steps_overrides_every_epochs(every_steps, every_epochs, expected):
    evaluation = EvalConfig(every_steps=every_steps, every_epochs=every_epochs)
    intervals = StepIntervals.from_config(
        TrainConfig(log_every=3, steps_per_loop=4), evaluation, CheckpointConfig(every_steps=6), 7, 70
    )
    assert intervals == StepIntervals(total=70, report=3, evaluation=expected, checkpoint=6, loop=4)


@pytest.mark.parametrize(
    ("seconds_per_step", "steps"),
    # A quarter of 30 s, and never beyond the next interval.
    [(math.inf, 1), (100.0, 1), (2.0, 3), (0.8, 9), (0.1, 10)],
)
def test_training_pauses_before_the_grace_time_is_over(seconds_per_step, steps):
    assert count_steps_to_pause(create_run(steps_per_epoch=40), 20, seconds_per_step) == steps


def test_training_pauses_at_the_end_of_every_epoch():
    run = create_run(steps_per_epoch=7)
    assert [count_steps_to_pause(run, step, 0.1) for step in (20, 21, 26, 27, 29, 30)] == [1, 7, 2, 1, 1, 5]


def create_run(steps_per_epoch: int) -> SimpleNamespace:
    return SimpleNamespace(
        intervals=StepIntervals(total=100, report=10, evaluation=0, checkpoint=0, loop=50),
        data=SimpleNamespace(plan=SimpleNamespace(steps_per_epoch=steps_per_epoch)),
        grace_seconds=30.0,
        workers=SimpleNamespace(broadcast_from_chief=lambda value: value),
    )
