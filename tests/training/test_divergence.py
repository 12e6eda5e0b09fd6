"""Recovery from a divergence: evaluations that remain valid are kept, and a diverged state is not saved."""

from types import SimpleNamespace

import pytest
from support.fake_run import OneWorkerCollectives, RecordedProgress, create_run, create_state, create_workers

from ssd_dist.core.errors import CheckpointError, NumericsError, RestartError
from ssd_dist.training import divergence, loop
from ssd_dist.training.divergence import Divergence
from ssd_dist.training.intervals import StepIntervals
from ssd_dist.training.run_parts import RunOutput


@pytest.mark.parametrize(
    ("saved", "evaluated", "after"),
    [
        # The checkpoint of step 10 was saved before its evaluation, which was interrupted and done after a restart.
        (0, 10, 10),
        # An evaluation after the checkpoint is repeated, as the steps before it are.
        (0, 20, 0),
        (10, 10, 10),
    ],
)
def test_an_evaluation_up_to_the_checkpoint_is_kept(tmp_path, monkeypatch, saved, evaluated, after):
    monkeypatch.setattr(divergence, "read_source_ids", lambda *_: ("a",))
    state = create_state(23, evaluated)
    dropped, saves, progress = [], [], RecordedProgress()

    def restore() -> str:
        state.step.assign(10)
        state.evaluated.assign(saved)
        return "ckpt-10"

    run = create_run(
        state,
        checkpoints=SimpleNamespace(wait=lambda: None, restore_latest=restore, save=saves.append),
        output=RunOutput(
            str(tmp_path),
            SimpleNamespace(drop_rows_after=lambda *steps: dropped.append(steps), check_folder=lambda: None),
            progress,
        ),
    )
    divergence.recover(run, 23, "the loss is NaN or infinite")
    assert int(state.evaluated.numpy()) == after
    assert dropped == [(10, after)]
    assert (state.current_step, int(state.recoveries.numpy()), saves) == (23, 1, [23])
    assert progress.lines == [
        "step 23  the loss is NaN or infinite: restored the weights of step 10, skipped steps 11 to 23 "
        "(recovery 1 of train.recover_from_blowup: 1)"
    ]


def test_without_a_checkpoint_the_run_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "read_source_ids", lambda *_: ("a",))
    saves = []
    run = create_run(
        create_state(23, 10),
        checkpoints=SimpleNamespace(wait=lambda: None, restore_latest=lambda: None, save=saves.append),
        output=RunOutput(str(tmp_path), SimpleNamespace(check_folder=lambda: None), RecordedProgress()),
    )
    with pytest.raises(NumericsError, match="last checkpoint: none"):
        divergence.recover(run, 23, "the loss is NaN or infinite")
    assert saves == []


def test_nothing_is_written_into_the_folder_of_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "read_source_ids", lambda *_: ("a",))

    def check_folder():
        raise CheckpointError("another run")

    run = create_run(
        create_state(23, 10),
        checkpoints=SimpleNamespace(wait=lambda: None, restore_latest=lambda: None, latest=lambda: None),
        output=RunOutput(str(tmp_path), SimpleNamespace(check_folder=check_folder), RecordedProgress()),
    )
    with pytest.raises(CheckpointError, match="another run"):
        divergence.recover(run, 23, "the loss is NaN or infinite")
    assert list(tmp_path.iterdir()) == []


def test_a_run_stopped_between_a_divergence_and_its_interval_saves_nothing(monkeypatch):
    state = create_state()
    controller = SimpleNamespace(train=lambda upto, **_: state.step.assign(upto))
    monkeypatch.setattr(loop.orbit, "Controller", lambda **_: controller)
    monkeypatch.setattr(loop, "count_steps_to_pause", lambda *_: 3)
    saved, paused, timed = [], [], []

    def stop_at_step_6(_: bool) -> bool:
        if state.current_step in paused:
            return False  # the second question is whether a shard has changed
        paused.append(state.current_step)
        return paused[-1] == 6

    collectives = OneWorkerCollectives()
    collectives.any = stop_at_step_6
    workers = create_workers(collectives)
    workers.watchdog.start = lambda: timed.append(state.current_step)
    run = create_run(
        state,
        StepIntervals(total=40, report=10, evaluation=0, checkpoint=0, loop=10),
        trainer=SimpleNamespace(
            find_divergence=lambda: (5, "the gradient is not finite") if state.current_step > 4 else None
        ),
        checkpoints=SimpleNamespace(save=saved.append),
        workers=workers,
    )
    # Found at the pause after step 6, which is no interval: where a run recovers must not depend on the clock.
    with pytest.raises(RestartError, match=r"stopped after step 6 of 40, not saved"):
        loop.run_loop(run)
    assert paused == [0, 3, 6]
    assert timed == [3, 6]  # the watchdog's time starts with the first finished step
    assert saved == [0]  # from here the run could recover before its first checkpoint


def test_the_error_lists_images_checkpoint_and_fix():
    images = tuple(f"image{number}" for number in range(6))
    text = str(Divergence(7, "the loss is NaN or infinite", images, None).error(recoveries=0))
    assert text == (
        "step 7: the loss is NaN or infinite; images: image0, image1, image2, image3 and 2 more (all are listed in "
        "blowups.jsonl); last checkpoint: none; check these images, or lower optimizer.lr"
    )
    text = str(Divergence(7, "the gradient is not finite", ("a",), "RUN/ckpt-5").error(recoveries=2))
    assert "after 2 recoveries; images: a (all" in text
    assert "last checkpoint: RUN/ckpt-5" in text
    assert "train.recover_from_blowup: 3" in text
