"""A run with injected faults ends in the same state as a run without faults; `make chaos` runs a longer plan."""

from pathlib import Path

import pytest
from chaos.faults import FAULTS
from chaos.harness import find_differences, run_with_faults, run_without_faults, write_data
from chaos.supervised_run import GRACE_SECONDS, HEALTH_SECONDS
from support.small_network import write_interpreter


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_worker_does_not_change_the_result(tmp_path: Path) -> None:
    """The short form of the test below: one fault, few steps, and a network of a few blocks."""
    (kill,) = (fault for fault in FAULTS if fault.name == "SIGKILL of a worker")
    data, python, flags = write_data(tmp_path), write_interpreter(tmp_path), ["train.steps=16", "eval.every_steps=16"]
    run_without_faults(data, tmp_path / "without_faults", flags, python)
    (killed,) = run_with_faults(data, tmp_path / "faulty", [(6, kill)], flags, python=python)
    assert killed.injected
    assert killed.resumed is not None
    # A checkpoint every four steps.
    assert killed.steps_repeated <= 4
    assert find_differences(tmp_path / "without_faults", tmp_path / "faulty", 16) == []


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_killed_a_frozen_and_a_stopped_worker_do_not_change_the_result(tmp_path: Path) -> None:
    faults = {fault.name: fault for fault in FAULTS}
    names = {13: "SIGKILL of a worker", 50: "SIGSTOP of a worker", 90: "SIGTERM of a worker in an evaluation"}
    plan = [(step, faults[name]) for step, name in names.items()]
    data = write_data(tmp_path)
    run_without_faults(data, tmp_path / "without_faults")
    killed, frozen, stopped = run_with_faults(data, tmp_path / "faulty", plan, ["checkpoint.async_save=true"])
    for outcome in (killed, frozen, stopped):
        assert outcome.injected, outcome
        assert outcome.detected is not None
        assert outcome.resumed is not None
    # The peer detects a frozen worker, which ignores SIGTERM, so the launcher kills it after the grace time. The rest
    # is tolerance for a busy machine.
    assert frozen.detected < HEALTH_SECONDS + GRACE_SECONDS + 13
    # A checkpoint every four steps; the last one may not be on the disk yet.
    assert killed.steps_repeated <= 8
    assert find_differences(tmp_path / "without_faults", tmp_path / "faulty") == []
