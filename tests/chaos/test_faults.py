"""A run that was hurt ends as one that was not: a short plan; `make chaos` has a long one."""

from pathlib import Path

import pytest
from chaos.harness import differences, run_undisturbed, run_with_faults, write_data


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_a_killed_and_a_terminated_worker_change_nothing(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    run_undisturbed(data, tmp_path / "undisturbed")
    outcomes = run_with_faults(data, tmp_path / "hurt", [(8, "SIGKILL worker"), (14, "SIGTERM worker")])
    assert [one.fault for one in outcomes] == ["SIGKILL worker", "SIGTERM worker"]
    assert all(one.training_again is not None for one in outcomes)
    # A checkpoint every three steps: no more than those are repeated, and none after a SIGTERM.
    assert outcomes[0].steps_repeated <= 3
    assert outcomes[1].steps_repeated == 0
    assert differences(tmp_path / "undisturbed", tmp_path / "hurt") == []
