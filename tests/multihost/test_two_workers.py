"""Two real workers under the launcher: stopped, killed, frozen, and the run still ends as an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow as tf
from synthetic import write_dataset

from ssd_dist.core.config_files import load_config

LAUNCHER = Path(__file__).parents[2] / "launch" / "train_multinode.sh"
STEPS = 24
FLAGS = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8",
         f"train.steps={STEPS}", "train.steps_per_loop=2", "train.log_every=2", "eval.every_steps=12",
         "checkpoint.every_steps=4", "cluster.health_timeout=10"]  # fmt: skip


class Launched:
    """A launcher with its two workers, and what they print."""

    def __init__(self, data: Path, run: Path, *flags: str) -> None:
        config = data.parent / "small.yaml"
        sets = [f"--set={item}" for item in (*FLAGS, f"data.dir={data}")]
        self._process = subprocess.Popen(
            [str(LAUNCHER), "--local=2", f"--python={sys.executable}", *flags, "--", f"--config={config}",
             f"--model_dir={run}", *sets],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        self.said = ""

    def read_until(self, words: str) -> None:
        """Reads what is printed up to a line with these words."""
        for line in self._process.stdout:
            self.said += line
            if words in line:
                return
        raise AssertionError(f"it ended before saying {words!r}:\n{self.said}")

    def workers(self) -> dict[int, psutil.Process]:
        """The training processes by their index."""
        found = {}
        for child in psutil.Process(self._process.pid).children(recursive=True):
            if "ssd_dist.cli.train" in child.cmdline():
                found[int(child.environ()["TF_CONFIG"].rsplit('"index": ', 1)[1].strip("}"))] = child
        return found

    def signal(self, number: int) -> None:
        """Signals the launcher."""
        self._process.send_signal(number)

    def end(self, timeout: float = 120) -> int:
        """Its exit code, once it and all it printed are done."""
        self.said += self._process.communicate(timeout=timeout)[0]
        return self._process.returncode

    def kill(self) -> None:
        """Ends what is left of it, by id."""
        if self._process.poll() is None:
            for process in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
                process.kill()
            self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    (folder / "small.yaml").write_text("{}")
    write_dataset(folder / "data", load_config(folder / "small.yaml", FLAGS), {"train": 32, "val": 10}, shards=4)
    return folder / "data"


@pytest.fixture
def launch(data: Path) -> Iterator:
    started: list[Launched] = []

    def start(run: Path, *flags: str) -> Launched:
        started.append(Launched(data, run, *flags))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def read_weights(run: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / f"ckpt-{STEPS}"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_whatever_happens_the_run_ends_the_same(launch, tmp_path: Path) -> None:
    whole = launch(tmp_path / "whole", "--max_restarts=0")
    assert whole.end() == 0, whole.said
    reference = read_weights(tmp_path / "whole")
    assert any("ema" in name for name in reference)

    hurt = launch(tmp_path / "hurt", "--max_restarts=0")
    hurt.read_until("step 6/")
    hurt.signal(signal.SIGTERM)
    assert hurt.end() == 75, hurt.said
    assert "stopped and saved after step" in hurt.said
    stopped_at = int(hurt.said.split("saved after step ")[1].split(" ")[0])

    again = launch(tmp_path / "hurt", "--max_restarts=2")
    again.read_until("step 10/")
    # All was saved: nothing is repeated.
    assert f"goes on from step {stopped_at} to" in again.said
    again.workers()[1].kill()
    again.read_until("goes on from step")
    assert "lost a peer" in again.said
    again.read_until("step 16/")
    frozen, started = again.workers()[1], time.monotonic()
    frozen.suspend()
    again.read_until("lost a peer")
    print(f"frozen worker noticed after {time.monotonic() - started:.1f} s, cluster.health_timeout is 10")
    assert again.end() == 0, again.said

    found = read_weights(tmp_path / "hurt")
    assert found.keys() == reference.keys()
    for name, value in reference.items():
        assert name == "_CHECKPOINTABLE_OBJECT_GRAPH" or np.array_equal(value, found[name]), name
    assert (tmp_path / "whole" / "best" / "best.json").read_text() == (
        tmp_path / "hurt" / "best" / "best.json"
    ).read_text()
