"""`ssd-train --preflight` reports what would stop a run, and how to fix it, before the run starts."""

import json
import subprocess
from pathlib import Path

import pytest
from multihost.processes import read_logs, start_workers, wait_for_exit
from support.small_network import small_command
from support.synthetic import write_dataset

from ssd_dist.checks import preflight
from ssd_dist.checks.findings import Findings, compare_reports
from ssd_dist.checks.preflight import check_memory, check_worker
from ssd_dist.cluster.rendezvous_messages import WorkerDescription
from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import CheckpointError, UsageError

SMALL = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight")
    (folder / "small.yaml").write_text("{}")
    write_dataset(folder / "data", load_config(folder / "small.yaml", SMALL), {"train": 32}, shards=4)
    return folder


def check_one_worker(
    folder: Path, *overrides: str, workers: int = 1, model_dir: Path | None = None
) -> dict[str, tuple[int, str]]:
    """Returns the exit code and detail of each check that needs no other worker."""
    run = model_dir or folder / "run"
    found = Findings(0)
    config = load_config(folder / "small.yaml", [*SMALL, f"data.dir={folder / 'data'}", *overrides])
    addresses = tuple(f"host:{port}" for port in range(1, workers + 1))
    check_worker(found, config, WorkerRole(0, addresses), str(run), run / ".preflight-0", "token")
    return {finding.check: (finding.exit_code, finding.detail) for finding in found}


def test_a_valid_setup_passes_all_checks(folder: Path) -> None:
    found = check_one_worker(folder, workers=2)
    assert list(found) == ["cluster", "data", "shards", "classes", "run", "weights", "folder"]
    assert {code for code, _ in found.values()} == {0}
    assert "32 images" in found["data"][1]
    assert "2 for each of 2 workers" in found["shards"][1]
    assert found["classes"][1].startswith("3, ")


@pytest.mark.parametrize(
    ("overrides", "workers", "check", "code", "words"),
    [
        (["backbone.weights=nowhere.h5"], 1, "weights", 4, ["nowhere.h5", "imagenet"]),
        (["data.dir=nowhere"], 1, "data", 3, ["nowhere", "prepare"]),
        (["matching.positive_iou=0.6"], 1, "data", 3, ["positive_iou", "prepare again"]),
        ([], 3, "shards", 2, ["4", "3"]),
        (["cluster.strategy=mirrored"], 2, "cluster", 2, ["mirrored", "2 workers", "multi_worker"]),
        (["cluster.strategy=one_device", "cluster.logical_cpus=2"], 1, "cluster", 2, ["logical_cpus: 2", "one_device"]),
    ],
)
def test_a_problem_is_reported_with_its_fix(folder, overrides, workers, check, code, words) -> None:
    found = check_one_worker(folder, *overrides, workers=workers)
    assert found[check][0] == code
    assert all(word in found[check][1] for word in words), found[check]
    # The checks after a failure still run.
    assert found["folder"][0] == 0


def test_a_run_that_the_config_cannot_resume_is_reported(folder, monkeypatch) -> None:
    def refuse(model_dir, config, manifest, allow_new_data):
        assert not allow_new_data
        raise UsageError("has a run with optimizer.lr: 0.1")

    monkeypatch.setattr(preflight, "check_same_run", refuse)
    assert check_one_worker(folder)["run"] == (2, "has a run with optimizer.lr: 0.1")


def test_an_error_while_the_model_is_built_is_part_of_the_table(folder, tmp_path, monkeypatch, capsys) -> None:
    def fail(*_):
        raise CheckpointError("the ImageNet weights cannot be loaded")

    monkeypatch.setattr(preflight, "check_cluster", fail)
    monkeypatch.setattr(preflight, "gather_findings", lambda found, table, *_: table.extend(found) or True)
    config = load_config(folder / "small.yaml", [*SMALL, f"data.dir={folder / 'data'}"])
    assert preflight.run_preflight(config, str(tmp_path / "run")) == 4
    printed = " ".join(capsys.readouterr().out.split())
    assert "the ImageNet weights cannot be loaded" in printed
    assert "32 images" in printed


def test_a_folder_that_cannot_be_written_is_reported(folder: Path) -> None:
    code, detail = check_one_worker(folder, model_dir=folder / "small.yaml")["folder"]
    assert code == 2
    assert "cannot be written" in detail


def test_the_chief_compares_the_workers(tmp_path: Path) -> None:
    def describe_worker(index: int, facts: dict[str, str], token: str, skew: float = 0.0) -> WorkerDescription:
        report = json.dumps({"findings": [], "facts": facts, "token": token})
        return WorkerDescription(index, ("a:1", "b:1", "c:1"), {}, report, skew)

    for index, token in enumerate(("zero", "one", "another token")):
        (tmp_path / f".preflight-{index}").write_text(token)
    descriptions = [
        describe_worker(0, {"config": "x"}, "zero"),
        describe_worker(1, {"config": "x"}, "one", 1.5),
        describe_worker(2, {"config": "y"}, "two"),
    ]
    found = {(one.worker, one.check): one for one in compare_reports(descriptions, tmp_path / ".preflight-0")}
    assert {key for key, one in found.items() if one.exit_code} == {(2, "equal settings"), (2, "shared folder")}
    assert "its config is y, the chief's is x" in found[2, "equal settings"].detail
    assert "mount one folder" in found[2, "shared folder"].detail
    assert "+1.5 s" in found[1, "clock"].detail


@pytest.mark.parametrize("report", ["", "[" * 10_000, '{"findings": [], "facts": {}, "token": 1}', '{"findings": [1]}'])
def test_an_invalid_report_is_a_finding_about_its_worker(tmp_path: Path, report: str) -> None:
    valid = json.dumps({"findings": [], "facts": {"config": "x"}, "token": "zero"})
    descriptions = [WorkerDescription(index, ("a:1", "b:1"), {}, text) for index, text in enumerate((valid, report))]
    found = compare_reports(descriptions, tmp_path / ".preflight-0")
    assert [(one.worker, one.check) for one in found if one.exit_code == 2] == [(1, "report"), (1, "shared folder")]


def test_the_estimated_memory_must_fit_into_the_free_memory() -> None:
    assert check_memory(0, 10 << 20, 20 << 20).exit_code == 0
    assert check_memory(0, 10 << 20, 0.0).exit_code == 0
    short = check_memory(1, 20 << 20, 10 << 20)
    assert short.exit_code == 2
    assert all(word in short.detail for word in ("20 MiB", "only 10", "train.accumulate_steps"))


def command(folder: Path, run: Path, *overrides: str) -> list[str]:
    sets = [f"--set={item}" for item in (*SMALL, f"data.dir={folder / 'data'}", *overrides)]
    config = f"--config={folder / 'small.yaml'}"
    return small_command("ssd_dist.cli.train", "--preflight", config, f"--model_dir={run}", *sets)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_valid_workers_pass_all_checks(folder: Path, tmp_path: Path) -> None:
    flags = command(folder, tmp_path / "run", "cluster.logical_cpus=2", "model.batch_norm_group=2")
    with start_workers(flags[1:], 2, tmp_path / "logs") as workers:
        codes = wait_for_exit(workers, 900)
    output = read_logs(tmp_path / "logs")
    assert codes == [0, 0], output
    assert "2 workers are ready to train" in output
    # Seven checks of each worker, three of the second compared with the chief, batch, memory of both, all-reduce.
    assert output.count(" pass ") == 2 * 7 + 3 + 1 + 2 + 1
    for check in ("cluster", "data", "shards", "classes", "a new run", "weights", "folder", "equal settings", "clock",
                  "shared folder", "memory", "all-reduce", "GB/s per link", "8 images on 4 replicas"):  # fmt: skip
        assert check in output
    # The check leaves no files in the run folder.
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_exits_with_2(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(folder, tmp_path / "run", "cluster.logical_cpus=3"),
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "FAIL" in done.stdout
    assert "cannot be divided equally between 3 replicas" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
