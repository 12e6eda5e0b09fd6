"""`launch/train/train.slurm` under a real Slurm: whatever interrupts the job, it ends with the undisturbed result."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support.slurm_cluster import NODES, SlurmCluster, start_slurm_cluster, wait_for
from support.synthetic import write_dataset

from ssd_dist.core.config_files import load_config

ROOT = Path(__file__).parents[2]
STEPS, CHECKPOINT_STEPS = 60, 10
# The signal comes after this step: a checkpoint exists, and enough is left.
SIGNAL_STEP = 15
FLAGS = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "model.batch_norm_group=4",
         "train.global_batch_size=8", "train.log_every=1", "eval.every_epochs=0", "train.steps_per_loop=1",
         f"checkpoint.every_steps={CHECKPOINT_STEPS}", "checkpoint.keep=50", "cluster.health_timeout=15"]  # fmt: skip
# Seconds that a job may take on the slowest machine.
JOB_SECONDS = 1800

# Slurm starts a job that was queued again after two minutes.
pytestmark = [pytest.mark.long, pytest.mark.timeout(4 * JOB_SECONDS)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with start_slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a dataset and the config `small.yaml` beside it; returns the folder of the dataset."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "small.yaml").write_text("{}")
    write_dataset(folder / "data", load_config(folder / "small.yaml", FLAGS), {"train": 32}, shards=4)
    return folder / "data"


class Job:
    """A training job; its run folder, log and number of steps."""

    def __init__(self, cluster: SlurmCluster, data: Path, model_dir: Path, steps: int, *options: str) -> None:
        self.cluster, self.model_dir, self.log = cluster, model_dir, model_dir.with_suffix(".log")
        sets = [f"--set={item}" for item in (*FLAGS, f"train.steps={steps}", f"data.dir={data}")]
        flags = [f"--config={data.parent / 'small.yaml'}", f"--model_dir={model_dir}", *sets]
        script = ROOT / "launch" / "train" / "train.slurm"
        self.id = cluster.submit(script, [f"--chdir={ROOT}", f"--output={self.log}", *options], flags)

    def read_steps(self) -> list[int]:
        """Returns the steps that the run has reported so far."""
        path = self.model_dir / "metrics.jsonl"
        rows = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return [row["step"] for row in rows if row["kind"] == "train"]

    def wait_for_step(self, step: int) -> None:
        self._wait(lambda: max(self.read_steps(), default=0) >= step, f"step {step}")

    def wait_for_end(self) -> dict[str, str]:
        """Waits until the job is over; returns its fields."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        self._wait(lambda: self.cluster.read_job(self.id)["JobState"] in ends, "its end")
        return self.cluster.read_job(self.id)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        message = f"job {self.id} did not reach {what}"
        try:
            wait_for(condition, JOB_SECONDS, message)
        except AssertionError:
            raise AssertionError(f"{message}:\n{self.log.read_text()[-3000:]}") from None


@pytest.fixture(scope="module")
def undisturbed(cluster: SlurmCluster, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Returns the weights of a job that nothing interrupts."""
    job = Job(cluster, data, tmp_path_factory.mktemp("runs") / "undisturbed", STEPS)
    fields = job.wait_for_end()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "0"), job.log.read_text()[-3000:]
    assert job.read_steps() == list(range(1, STEPS + 1))
    return read_weights(job.model_dir, STEPS)


def test_a_job_of_two_nodes_trains_as_two_local_workers(
    undisturbed: dict[str, np.ndarray], data: Path, tmp_path: Path
) -> None:
    sets = [f"--set={item}" for item in (*FLAGS, f"train.steps={STEPS}", f"data.dir={data}")]
    command = [ROOT / "launch" / "train_multinode.sh", "--local=2", f"--python={sys.executable}", "--",
               f"--config={data.parent / 'small.yaml'}", f"--model_dir={tmp_path / 'run'}", *sets]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=JOB_SECONDS)
    assert_equal_weights(read_weights(tmp_path / "run", STEPS), undisturbed)


def test_a_signal_saves_and_queues_the_job_again(
    cluster: SlurmCluster, undisturbed: dict[str, np.ndarray], data: Path, tmp_path: Path
) -> None:
    job = Job(cluster, data, tmp_path / "run", STEPS)
    job.wait_for_step(SIGNAL_STEP)
    cluster.ask("scancel", "--signal=TERM", job.id)
    fields = job.wait_for_end()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), job.log.read_text()[-3000:]
    # The signal loses no step: training continues after the step that it interrupted.
    assert job.read_steps() == list(range(1, STEPS + 1))
    assert_equal_weights(read_weights(job.model_dir, STEPS), undisturbed)


@pytest.mark.parametrize("node", NODES)
def test_a_job_survives_the_loss_of_a_node(
    cluster: SlurmCluster, undisturbed: dict[str, np.ndarray], data: Path, tmp_path: Path, node: str
) -> None:
    # The batch script runs on the first node.
    job = Job(cluster, data, tmp_path / "run", STEPS)
    job.wait_for_step(SIGNAL_STEP)
    cluster.kill_node(node)
    wait_for(lambda: cluster.read_job(job.id)["Restarts"] != "0", 300, f"job {job.id} was not queued again")
    cluster.start_node(node)
    fields = job.wait_for_end()
    assert fields["JobState"] == "COMPLETED", job.log.read_text()[-3000:]
    assert int(fields["Restarts"]) >= 1
    assert_equal_weights(read_weights(job.model_dir, STEPS), undisturbed)


def test_a_job_continues_after_its_time_limit(cluster: SlurmCluster, data: Path, tmp_path: Path) -> None:
    # Slurm signals up to 60 s before the time of `--signal`, and its limits are whole minutes.
    started = time.monotonic()
    limited = Job(cluster, data, tmp_path / "limited", 100_000, "--time=4", "--signal=TERM@60")
    wait_for(lambda: cluster.read_job(limited.id)["Restarts"] == "1", 600, "the job was not queued again")
    assert time.monotonic() - started > 60
    stopped_at = max(limited.read_steps())
    assert stopped_at > 0
    # The first checkpoint after the interruption; it exists when a later step is reported.
    checkpoint = (stopped_at // CHECKPOINT_STEPS + 1) * CHECKPOINT_STEPS
    limited.wait_for_step(checkpoint + 1)
    cluster.ask("scancel", limited.id)
    limited.wait_for_end()
    steps = limited.read_steps()
    assert steps == list(range(1, len(steps) + 1))
    # The same config without a limit; it is stopped as soon as it has passed that checkpoint.
    free = Job(cluster, data, tmp_path / "free", 100_000)
    free.wait_for_step(checkpoint + 1)
    cluster.ask("scancel", free.id)
    free.wait_for_end()
    assert_equal_weights(read_weights(limited.model_dir, checkpoint), read_weights(free.model_dir, checkpoint))
    assert read_losses(limited.model_dir)[:checkpoint] == read_losses(free.model_dir)[:checkpoint]


def read_weights(model_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Returns weights, averages and moving statistics of a checkpoint."""
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints" / f"ckpt-{step}"))
    return {
        name: reader.get_tensor(name)
        for name, shape in reader.get_variable_to_shape_map().items()
        if shape and name.startswith(("model", "ema"))
    }


def assert_equal_weights(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Bit by bit: an interruption and a restart change no bit of a run with the same workers."""
    assert ours.keys() == expected.keys()
    assert len(ours) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def read_losses(model_dir: Path) -> list[float]:
    rows = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["kind"] == "train"]
