"""Checks before training: no image is in two splits, and all workers resume from the same checkpoint."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf
from support.synthetic import write_dataset

from ssd_dist.cluster.collectives import WorkerCollectives
from ssd_dist.cluster.rendezvous import find_disagreement
from ssd_dist.cluster.rendezvous_messages import WorkerDescription
from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.core.config import Config, DataConfig
from ssd_dist.core.config_files import flatten_config
from ssd_dist.core.errors import DataError, RestartError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, Leakage
from ssd_dist.runs.environment import write_environment
from ssd_dist.training import run_checks
from ssd_dist.training.assembly import load_checked_manifest
from ssd_dist.training.run_checks import (
    check_same_folder,
    check_same_start,
    check_same_statistics,
    describe_worker,
    explain_bad_record,
)


@pytest.fixture
def leaked(tmp_path):
    """Writes a dataset in which two splits share an image; returns its config, with leakage allowed or not."""

    def write(splits: tuple[str, str], allow: bool = False) -> Config:
        config = Config.model_validate(
            {"data": {"dir": str(tmp_path), "allow_leakage": allow}, "model": {"input_size": 64}}
        )
        manifest = write_dataset(tmp_path, config, {"train": 2, "val": 2, "test": 2}, shards=1)
        leak = Leakage(splits=splits, images=1, examples=("a",))
        (tmp_path / MANIFEST_NAME).write_text(manifest.model_copy(update={"leakage": (leak,)}).to_json())
        return config

    return write


@pytest.mark.parametrize("splits", [("train", "val"), ("test", "train")])
def test_a_split_that_leaks_into_training_is_refused(leaked, splits):
    with pytest.raises(DataError) as caught:
        load_checked_manifest(leaked(splits))
    for word in ("1 image", *splits, "(e.g. a)", "data.allow_leakage: true"):
        assert word in str(caught.value)


def test_a_leak_is_accepted_if_the_config_allows_it(leaked):
    assert load_checked_manifest(leaked(("train", "val"), allow=True)).leakage


def test_a_leak_between_splits_other_than_train_is_accepted(leaked):
    assert load_checked_manifest(leaked(("val", "test"))).leakage


class ThreadCollectives(WorkerCollectives):
    """The collectives of workers that are threads; a call returns when all workers have called it."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=60)
        self._values: list[float] = []

    def sum(self, value: float) -> float:
        self._values.append(value)
        self._barrier.wait()
        total = sum(self._values)
        if self._barrier.wait() == 0:
            self._values.clear()
        self._barrier.wait()
        return total


def start_at(steps: list[int]) -> list[str]:
    """Returns the exit code and error of each worker, which restored one of `steps`; an empty text without an error."""
    together = ThreadCollectives(len(steps))

    def start(index: int) -> str:
        try:
            check_same_start(steps[index], together, WorkerRole(index, ("a:1",) * len(steps)), f"/disk{index}")
        except (UsageError, RestartError) as error:
            return f"{error.exit_code}: {error}"
        return ""

    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(start, range(len(steps))))


def look_for_chief(folders: list[Path]) -> list[str]:
    """Returns the error of each worker, which sees one of `folders`; an empty text without an error."""
    together = ThreadCollectives(len(folders))

    def look(index: int) -> str:
        try:
            check_same_folder(together, WorkerRole(index, ("a:1",) * len(folders)), str(folders[index]))
        except UsageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(look, range(len(folders))))


def test_a_worker_that_does_not_see_the_folder_of_the_chief_stops_all_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(run_checks, "_VISIBLE_SECONDS", 0.0)
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    write_environment(str(shared), {"host": "a"})
    assert look_for_chief([shared] * 3) == [""] * 3
    # No folder, then one of another run.
    for _ in range(2):
        errors = look_for_chief([shared, shared, other])
        assert "another worker does not see" in errors[1]
        assert f"--model_dir={other}: this worker (2) does not see" in errors[2]
        assert all(error.endswith("use one folder that all workers share") for error in errors)
        other.mkdir(exist_ok=True)
        write_environment(str(other), {"host": "b"})


def test_a_worker_waits_until_its_network_file_system_shows_the_folder(tmp_path, monkeypatch):
    shared, late = tmp_path / "shared", tmp_path / "late"
    shared.mkdir()
    write_environment(str(shared), {"host": "a"})
    monkeypatch.setattr(run_checks.time, "sleep", lambda _: late.exists() or late.symlink_to(shared))
    assert look_for_chief([shared, late]) == [""] * 2


def compare_statistics(values: list[float]) -> list[str]:
    """Returns the error of each worker, whose moving statistics have one of `values`; empty without an error."""
    together = ThreadCollectives(len(values))

    def compare(index: int) -> str:
        kinds = {tf.VariableSynchronization.ON_READ: values[index], tf.VariableSynchronization.AUTO: float(index)}
        variables = [
            SimpleNamespace(synchronization=kind, values=[tf.constant([value])]) for kind, value in kinds.items()
        ]
        try:
            check_same_statistics(variables, together, WorkerRole(index, ("a:1",) * len(values)))
        except UsageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(compare, range(len(values))))


def test_workers_start_with_the_same_moving_statistics():
    assert compare_statistics([0.5, 0.5, 0.5]) == [""] * 3
    for errors in (compare_statistics([0.5, 0.5, 0.25]), compare_statistics([0.25, 0.5, 0.5])):
        assert all("the workers start from different batch-norm statistics" in error for error in errors)


@pytest.mark.parametrize("step", [0, 7])
def test_workers_that_restored_the_same_step_start(step):
    assert start_at([step] * 3) == [""] * 3


@pytest.mark.parametrize("steps", [[7, 7, 0], [0, 0, 7]])
def test_a_worker_with_its_own_folder_stops_all_workers(steps):
    errors = start_at(steps)
    for index, text in enumerate(errors):
        assert text.startswith(f"2: --model_dir=/disk{index}: the chief resumes at step {steps[0]}, but ")
        assert text.endswith("; use one folder that all workers share")
    assert "this worker (2)" in errors[2]
    # The second worker resumes at the chief's step; another worker does not.
    assert "another worker" in errors[1]


def test_workers_that_see_the_same_run_at_different_steps_start_again():
    # An NFS listing may be older than the newest checkpoint.
    assert [text[:3] for text in start_at([8, 8, 4])] == ["75:"] * 3


def test_a_host_with_fewer_gpus_is_reported(leaked, monkeypatch):
    config = leaked(("val", "test"))
    manifest = load_checked_manifest(config)

    def describe_with(index: int, gpus: int) -> WorkerDescription:
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["GPU"] * gpus)
        return describe_worker(WorkerRole(index, ("a:1", "b:1")), flatten_config(config), manifest, ())

    problem = find_disagreement(describe_with(0, 8), describe_with(1, 7))
    assert problem == "worker 1 (b:1): its number of GPUs is 7, the chief's is 8; make them equal"


@pytest.mark.parametrize(
    ("on_corrupt", "found", "error", "words"),
    [
        (
            "fail",
            "train/a.tfrecord, record 3: no JPEG",
            DataError,
            ["DATA/train/a.tfrecord, record 3", "on_corrupt: skip"],
        ),
        ("skip", "train/a.tfrecord, record 3: no JPEG", RestartError, ["train/a.tfrecord, record 3", "start again"]),
        # All records are valid: the error has another cause and stays as it is.
        ("fail", None, tf.errors.DataLossError, ["truncated"]),
    ],
)
def test_an_error_of_the_reader_is_replaced_by_one_with_shard_and_record(on_corrupt, found, error, words):
    with (
        pytest.raises(error) as caught,
        explain_bad_record(lambda: None, lambda: found, DataConfig(dir="DATA", on_corrupt=on_corrupt)),
    ):
        raise tf.errors.DataLossError(None, None, "truncated")
    for word in words:
        assert word in str(caught.value)


def test_a_changed_shard_explains_every_error_of_tensorflow():
    with (
        pytest.raises(DataError, match=r"a\.tfrecord changed.*last checkpoint"),
        explain_bad_record(lambda: "a.tfrecord changed", lambda: None, DataConfig()),
    ):
        raise tf.errors.CancelledError(None, None, "cancelled")
    # Without a change, only errors of the reader are explained.
    with (
        pytest.raises(tf.errors.FailedPreconditionError),
        explain_bad_record(lambda: None, lambda: "a.tfrecord, record 3", DataConfig()),
    ):
        raise tf.errors.FailedPreconditionError(None, None, "a peer is lost")
