"""A run that was hurt ends as one that was not: a short plan; `make chaos` has a long one."""

from pathlib import Path

import pytest
from chaos.faults import FAULTS
from chaos.harness import find_differences, run_undisturbed, run_with_faults, write_data
from chaos.hurt_run import GRACE_SECONDS, HEALTH_SECONDS


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_a_killed_a_frozen_and_a_stopped_worker_change_nothing(tmp_path: Path) -> None:
    faults = {fault.name: fault for fault in FAULTS}
    names = {13: "SIGKILL of a worker", 50: "SIGSTOP of a worker", 90: "SIGTERM of a worker in an evaluation"}
    plan = [(step, faults[name]) for step, name in names.items()]
    data = write_data(tmp_path)
    run_undisturbed(data, tmp_path / "undisturbed")
    killed, frozen, stopped = run_with_faults(data, tmp_path / "hurt", plan, ["checkpoint.async_save=true"])
    for outcome in (killed, frozen, stopped):
        assert outcome.struck, outcome
        assert outcome.noticed is not None
        assert outcome.training_again is not None
    # One that is frozen is missed by its peer, and does not stop when it is told to: the launcher kills it after its
    # grace. Beyond that: what a machine that does other things as well may add.
    assert frozen.noticed < HEALTH_SECONDS + GRACE_SECONDS + 20
    # A checkpoint every four steps, which may just be on its way to the disk.
    assert killed.steps_repeated <= 8
    assert find_differences(tmp_path / "undisturbed", tmp_path / "hurt") == []
