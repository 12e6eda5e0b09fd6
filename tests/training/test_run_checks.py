"""What must hold before training: no leaked images, and one checkpoint from which all workers go on."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf
from support.synthetic import write_dataset

from ssd_dist.cluster.collectives import WorkerSum
from ssd_dist.cluster.rendezvous import WorkerDescription, find_disagreement
from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError, RestartError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, Leakage
from ssd_dist.training.run_checks import check_data, check_same_start, describe_worker


@pytest.fixture
def leaked(tmp_path):
    """Writes a data set in which two splits share an image; returns its config, with the leak allowed or not."""

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
        check_data(leaked(splits))
    for word in ("1 image", *splits, "(e.g. a)", "data.allow_leakage: true"):
        assert word in str(caught.value)


def test_a_leak_is_trained_on_where_the_config_says_so(leaked):
    assert check_data(leaked(("train", "val"), allow=True)).leakage


def test_a_leak_between_splits_that_are_not_trained_on_does_no_harm(leaked):
    assert check_data(leaked(("val", "test"))).leakage


class ThreadSum(WorkerSum):
    """The sum over workers that are threads; as a collective, it returns when all have called."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=60)
        self._values: list[float] = []

    def __call__(self, value: float) -> float:
        self._values.append(value)
        self._barrier.wait()
        total = sum(self._values)
        if self._barrier.wait() == 0:
            self._values.clear()
        self._barrier.wait()
        return total


def start_at(steps: list[int]) -> list[str]:
    """What each worker that restored one of `steps` is told; nothing where it may go on."""
    together = ThreadSum(len(steps))

    def start(index: int) -> str:
        try:
            check_same_start(steps[index], together, WorkerRole(index, ("a:1",) * len(steps)), f"/disk{index}")
        except (UsageError, RestartError) as error:
            return f"{error.exit_code}: {error}"
        return ""

    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(start, range(len(steps))))


@pytest.mark.parametrize("step", [0, 7])
def test_workers_that_restored_the_same_step_go_on(step):
    assert start_at([step] * 3) == [""] * 3


@pytest.mark.parametrize("steps", [[7, 7, 0], [0, 0, 7]])
def test_a_worker_with_a_folder_of_its_own_stops_all(steps):
    said = start_at(steps)
    for index, text in enumerate(said):
        assert text.startswith(f"2: the chief goes on from step {steps[0]}")
        assert f"--model_dir=/disk{index} must be one folder that all workers share" in text
    assert "this one, 2," in said[2]
    # The second agrees with the chief: it is another that does not.
    assert "this one" not in said[1]


def test_workers_that_see_the_same_run_at_different_steps_start_again():
    # A listing of NFS may be older than the newest checkpoint.
    assert [text[:3] for text in start_at([8, 8, 4])] == ["75:"] * 3


def test_a_host_with_a_gpu_less_is_named(leaked, monkeypatch):
    config = leaked(("val", "test"))
    manifest = check_data(config)

    def introduce_with(index: int, gpus: int) -> WorkerDescription:
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["GPU"] * gpus)
        return describe_worker(WorkerRole(index, ("a:1", "b:1")), config, manifest, ())

    said = find_disagreement(introduce_with(0, 8), introduce_with(1, 7))
    assert said == "worker 1 (b:1): its number of GPUs is 7, the chief's 8"
