"""What must hold before training: no leaked images, and one checkpoint from which all workers go on."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, Leakage
from ssd_dist.training.agreement import WorkerSum
from ssd_dist.training.cluster import WorkerRole
from ssd_dist.training.run_checks import check_data, check_same_start


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
        except UsageError as error:
            return str(error)
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
        assert f"the chief goes on from step {steps[0]}" in text
        assert f"--model_dir=/disk{index} must be one folder that all workers share" in text
    assert "this one, 2," in said[2]
    # The second agrees with the chief: it is another that does not.
    assert "this one" not in said[1]
