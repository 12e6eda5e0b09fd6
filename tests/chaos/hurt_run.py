"""A run of two workers under the launcher that can be watched and hurt, and is started again as a user would."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from chaos.world import WRAPPER, CuttableNetwork, SmallDisk

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "launch" / "train_multinode.sh"
STEPS = 100
# How soon a worker that is gone must be noticed, and how long one that was told to stop may take.
HEALTH_SECONDS, GRACE_SECONDS = 8, 10
FLAGS = ("model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8",
         f"train.steps={STEPS}", "train.log_every=1", "eval.every_steps=50", "checkpoint.every_steps=4",
         "checkpoint.keep=2", "preemption.grace_seconds=15", f"cluster.health_timeout={HEALTH_SECONDS}")  # fmt: skip
RESTART, STORAGE = 75, 4
_LONGEST_SILENCE = 240.0
# Ten faults, each of which may end the launcher and the one after it: more is a run that never gets on.
_MOST_LAUNCHES = 25


class HurtRun:
    """The launcher, its workers and what they say; `disk` and `network` are there if the run has a world of its own.

    Attributes:
      step: the last step that was reported.
      starts: the step from which each gang so far has trained.
      trains: whether the present gang has reported a step.
      code: exit code of the launcher once the run is over.
      mend: undoes the last fault; called when the workers it hit are gone.
    """

    def __init__(
        self,
        data: Path,
        folder: Path,
        flags: Sequence[str] = (),
        disk: SmallDisk | None = None,
        network: CuttableNetwork | None = None,
    ) -> None:
        self.folder = folder
        self.disk = disk
        self.network = network
        self.step = 0
        self.starts: list[int] = []
        self.trains = False
        self.code: int | None = None
        self.mend: Callable[[], None] | None = None
        self._log = data.parent / f"{folder.name}.log"
        self._read = 0
        sets = [f"--set={item}" for item in (*FLAGS, f"data.dir={data}", *flags)]
        python = str(WRAPPER) if network else sys.executable
        self._command = [
            str(LAUNCHER), "--local=2", "--max_restarts=1", f"--grace_seconds={GRACE_SECONDS}", f"--python={python}",
            "--", f"--config={data.parent / 'small.yaml'}", f"--model_dir={folder}", *sets,
        ]  # fmt: skip
        self._launches = 0
        self._environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | (network.environment() if network else {})
        self.launcher = self._start()

    def _start(self) -> subprocess.Popen:
        self._launches += 1
        assert self._launches <= _MOST_LAUNCHES, f"started {_MOST_LAUNCHES} times\n{self.tail()}"
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def workers(self) -> list[psutil.Process]:
        """The training processes, the chief first."""
        found = {}
        try:
            for child in psutil.Process(self.launcher.pid).children(recursive=True):
                try:
                    if "ssd_dist.cli.train" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                        found[json.loads(child.environ()["TF_CONFIG"])["task"]["index"]] = child
                except (psutil.Error, KeyError):
                    continue
        except psutil.NoSuchProcess:
            return []
        return [found[index] for index in sorted(found)]

    def wait_until(self, condition: Callable[[], bool], pause: float = 0.05) -> None:
        """Waits until it holds or the run is over; a launcher that says so is started again.

        Raises:
          AssertionError: if the launcher ends in another way, or nothing happens for long.
        """
        deadline = time.monotonic() + _LONGEST_SILENCE
        while self.code is None and not condition():
            if self._listen():
                deadline = time.monotonic() + _LONGEST_SILENCE
            code = self.launcher.poll()
            if code in (RESTART, STORAGE, -9):
                if self.mend is not None:
                    self.mend()
                self.launcher = self._start()
            elif code is not None:
                self._listen()
                self.code = code
                assert code == 0, f"exit code {code}\n{self.tail()}"
            assert time.monotonic() < deadline, f"nothing was said for {_LONGEST_SILENCE} s\n{self.tail()}"
            time.sleep(pause)

    def tail(self) -> str:
        """The last that was said."""
        return self._log.read_text(errors="replace")[-6000:]

    def end(self) -> None:
        """Kills what of it still runs, by id."""
        for process in [*self.workers(), self.launcher]:
            try:
                process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        self.launcher.wait(timeout=30)

    def _listen(self) -> bool:
        with self._log.open("rb") as log:
            log.seek(self._read)
            said = log.read()
        # A line that is being written is left for the next time.
        said = said[: said.rfind(b"\n") + 1]
        self._read += len(said)
        for line in said.decode(errors="replace").splitlines():
            if match := re.search(r"steps per epoch; (?:resumes at step (\d+) of )?\d+", line):
                self.starts.append(int(match[1] or 0))
                self.trains = False
            elif match := re.search(r"\bstep (\d+)/\d+ ", line):
                self.step, self.trains = int(match[1]), True
        return bool(said)
