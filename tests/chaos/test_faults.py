"""A run that was hurt ends as one that was not: a short plan; `make chaos` has a long one."""

from pathlib import Path

import pytest
from chaos.faults import FAULTS
from chaos.harness import find_differences, run_undisturbed, run_with_faults, write_data


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_a_killed_a_frozen_and_a_stopped_worker_change_nothing(tmp_path: Path) -> None:
    faults = {fault.name: fault for fault in FAULTS}
    names = {13: "SIGKILL of a worker", 50: "SIGSTOP of a worker", 90: "SIGTERM of a worker in an evaluation"}
    plan = [(step, faults[name]) for step, name in names.items()]
    data = write_data(tmp_path)
    run_undisturbed(data, tmp_path / "undisturbed")
    killed, *_ = run_with_faults(data, tmp_path / "hurt", plan, ["checkpoint.async_save=true"])
    assert killed.training_again is not None
    # A checkpoint every four steps, which may just be on its way to the disk.
    assert killed.steps_repeated <= 8
    assert find_differences(tmp_path / "undisturbed", tmp_path / "hurt") == []
