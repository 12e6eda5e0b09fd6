"""A run that was hurt ends as one that was not: a short plan; `make chaos` has a long one."""

from pathlib import Path

import pytest
from chaos.faults import FAULTS
from chaos.harness import find_differences, run_undisturbed, run_with_faults, write_data


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_a_killed_worker_and_a_stop_in_the_last_evaluation_change_nothing(tmp_path: Path) -> None:
    faults = {fault.name: fault for fault in FAULTS}
    plan = [(13, faults["SIGKILL of a worker"]), (90, faults["SIGTERM of a worker in an evaluation"])]
    data = write_data(tmp_path)
    run_undisturbed(data, tmp_path / "undisturbed")
    killed, _ = run_with_faults(data, tmp_path / "hurt", plan, ["checkpoint.async_save=true"])
    assert killed.training_again is not None
    # A checkpoint every four steps, which may just be on its way to the disk.
    assert killed.steps_repeated <= 8
    assert find_differences(tmp_path / "undisturbed", tmp_path / "hurt") == []
