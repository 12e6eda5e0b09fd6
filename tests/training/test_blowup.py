"""Going back from a blow-up: what was judged stays judged."""

from types import SimpleNamespace

import pytest
import tensorflow as tf

from ssd_dist.training import blowup


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
    monkeypatch.setattr(blowup, "read_source_ids", lambda *_: ("a",))
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
    blowup.go_back(run, 23, "the loss is NaN or infinite")
    assert int(state.evaluated.numpy()) == after
    assert dropped == [(10, after)]
