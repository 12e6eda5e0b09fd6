"""Runs the launcher with two workers, follows its log, and starts it again after an interruption, as a user would."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from chaos.disk_and_network import WRAPPER, SeparableNetwork, SmallDisk

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "launch" / "train_multinode.sh"
STEPS = 100
# Seconds until a lost worker must be detected (the default), and seconds that a worker gets to save after a signal.
HEALTH_SECONDS, GRACE_SECONDS = 15, 10
FLAGS = ("model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8",
         f"train.steps={STEPS}", "train.log_every=1", "eval.every_steps=50", "checkpoint.every_steps=4",
         "checkpoint.keep=2", "preemption.grace_seconds=15", f"cluster.health_timeout={HEALTH_SECONDS}")  # fmt: skip
RESTART, STORAGE = 75, 4
_MAX_SILENT_SECONDS = 240.0
# Ten faults, each of which may end the launcher twice. A run that needs more launches makes no progress.
_MAX_LAUNCHES = 25


class SupervisedRun:
    """The launcher, its workers and their log; `disk` and `network` are given if faults need them.

    `python` is the interpreter of the workers, if they do not run in network namespaces.

    Attributes:
      step: the last reported step.
      starts: the first step of each start of the workers so far.
      is_training: whether the workers have reported a step since their last start.
      code: exit code of the launcher when the run is over; None before.
      undo: undoes the last fault; called when the workers that it affected have ended.
    """

    def __init__(
        self,
        data: Path,
        folder: Path,
        flags: Sequence[str] = (),
        disk: SmallDisk | None = None,
        network: SeparableNetwork | None = None,
        python: str | Path = sys.executable,
    ) -> None:
        self.folder = folder
        self.disk = disk
        self.network = network
        self.step = 0
        self.starts: list[int] = []
        self.is_training = False
        self.code: int | None = None
        self.undo: Callable[[], None] | None = None
        self._log = data.parent / f"{folder.name}.log"
        self._read_bytes = 0
        sets = [f"--set={item}" for item in (*FLAGS, f"data.dir={data}", *flags)]
        python = WRAPPER if network else python
        self._command = [
            str(LAUNCHER), "--local=2", "--max_restarts=1", f"--grace_seconds={GRACE_SECONDS}", f"--python={python}",
            "--", f"--config={data.parent / 'small.yaml'}", f"--model_dir={folder}", *sets,
        ]  # fmt: skip
        self._launches = 0
        self._environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | (network.environment() if network else {})
        self.launcher = self._start()

    def _start(self) -> subprocess.Popen:
        self._launches += 1
        assert self._launches <= _MAX_LAUNCHES, f"started {_MAX_LAUNCHES} times\n{self.tail()}"
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def workers(self) -> list[psutil.Process]:
        """Returns the training processes, the chief first."""
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
        """Waits until the condition holds or the run is over; starts an interrupted launcher again.

        Raises:
          AssertionError: if the launcher ends with another exit code, or prints nothing for `_MAX_SILENT_SECONDS`.
        """
        deadline = time.monotonic() + _MAX_SILENT_SECONDS
        while self.code is None and not condition():
            if self._read_log():
                deadline = time.monotonic() + _MAX_SILENT_SECONDS
            code = self.launcher.poll()
            if code in (RESTART, STORAGE, -9):
                if self.undo is not None:
                    self.undo()
                self.launcher = self._start()
            elif code is not None:
                self._read_log()
                self.code = code
                assert code == 0, f"exit code {code}\n{self.tail()}"
            assert time.monotonic() < deadline, f"no output for {_MAX_SILENT_SECONDS} s\n{self.tail()}"
            time.sleep(pause)

    def tail(self) -> str:
        """Returns the end of the log."""
        return self._log.read_text(errors="replace")[-6000:]

    def end(self) -> None:
        """Kills the processes that still run, by id."""
        for process in [*self.workers(), self.launcher]:
            try:
                process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        self.launcher.wait(timeout=30)

    def _read_log(self) -> bool:
        with self._log.open("rb") as log:
            log.seek(self._read_bytes)
            output = log.read()
        # An incomplete last line is read next time.
        output = output[: output.rfind(b"\n") + 1]
        self._read_bytes += len(output)
        for line in output.decode(errors="replace").splitlines():
            if match := re.search(r"steps per epoch; (?:resumes at step (\d+) of )?\d+", line):
                self.starts.append(int(match[1] or 0))
                self.is_training = False
            elif match := re.search(r"\bstep (\d+)/\d+ ", line):
                self.step, self.is_training = int(match[1]), True
        return bool(output)
