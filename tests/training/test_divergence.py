"""Going back from a blow-up: what was judged stays judged, and what blew up is not saved."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import tensorflow as tf

from ssd_dist.core.errors import RestartError
from ssd_dist.training import divergence, run
from ssd_dist.training.intervals import StepIntervals


@pytest.mark.parametrize(
    ("saved", "evaluated", "after"),
    [
        # The evaluation of step 10 was interrupted, saved as owing, and made up for after the restart.
        (0, 10, 10),
        # What was judged beyond the checkpoint is done again with the steps that lead there.
        (0, 20, 0),
        (10, 10, 10),
    ],
)
def test_an_evaluation_up_to_the_checkpoint_stands(tmp_path, monkeypatch, saved, evaluated, after):
    monkeypatch.setattr(divergence, "read_source_ids", lambda *_: ("a",))
    state = SimpleNamespace(step=tf.Variable(23), recoveries=tf.Variable(0), evaluated=tf.Variable(evaluated))
    dropped = []

    def restore():
        state.step.assign(10)
        state.evaluated.assign(saved)
        return "ckpt-10"

    run = SimpleNamespace(
        state=state, plan=None, model_dir=str(tmp_path), wait_for_all=lambda: None, read_from=lambda: None,
        config=SimpleNamespace(train=SimpleNamespace(recover_from_blowup=1)), trainer=SimpleNamespace(),
        store=SimpleNamespace(wait=lambda: None, restore_latest=restore, save=lambda _: None),
        worker_sum=SimpleNamespace(any=bool, from_chief=lambda value, _: value),
        log=SimpleNamespace(drop_rows_after=lambda *steps: dropped.append(steps)),
        progress=SimpleNamespace(say=lambda _: None),
    )  # fmt: skip
    divergence.roll_back(run, 23, "the loss is NaN or infinite")
    assert int(state.evaluated.numpy()) == after
    assert dropped == [(10, after)]


def test_a_run_stopped_between_a_blowup_and_its_boundary_saves_nothing(monkeypatch):
    step = tf.Variable(0)
    controller = SimpleNamespace(train=lambda upto, **_: step.assign(upto))
    monkeypatch.setattr(run.orbit, "Controller", lambda **_: controller)
    saved, paused = [], []

    def requested():
        paused.append(int(step.numpy()))
        return paused[-1] == 6

    training = SimpleNamespace(
        state=SimpleNamespace(step=step, loss_scale=SimpleNamespace(skipped_steps=tf.Variable(0))),
        boundaries=StepIntervals(total=40, report=10, evaluation=0, checkpoint=0, loop=10),
        steps_to_next_pause=lambda _: 3, stop_requested=requested, overflows_are_usual=False,
        trainer=SimpleNamespace(find_divergence=lambda: (5, "the gradient is not finite") if step > 4 else None),
        config=SimpleNamespace(train=SimpleNamespace(recover_from_blowup=1)),
        store=SimpleNamespace(save=saved.append), judge=None, log=None,
        stall=nullcontext(), progress=None,
    )  # fmt: skip
    training.stall.progress = lambda: None
    # Found at the pause after step 6, which is no boundary: where the run goes back must not depend on a clock.
    with pytest.raises(RestartError, match=r"stopped after step 6 of 40, nothing saved"):
        run.run_loop(training)
    assert paused == [0, 3, 6]
    assert saved == [0]  # what a blow-up before the first checkpoint goes back to
