"""Hurts a training run by a plan and looks at how it ends.

    python tests/chaos/harness.py --faults=50        what `make chaos` runs; prints a table

The run: two workers of a small detector under the launcher, a checkpoint every three steps, an evaluation every twenty.
After each fault the launcher restarts the gang; where it gives up with "start me again", the harness does.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

STEPS = 60
FLAGS = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8",
         f"train.steps={STEPS}", "train.log_every=1", "eval.every_steps=20", "checkpoint.every_steps=3",
         "cluster.health_timeout=10"]  # fmt: skip
CLOCKS = ("images_per_second", "data_wait")


@dataclass(frozen=True)
class Outcome:
    """One fault and what became of it; times in seconds, None where the run was at its end."""

    fault: str
    at_step: int
    noticed: float | None
    training_again: float | None
    steps_repeated: int


class ChaoticRun:
    """A run under the launcher that can be looked at and hurt."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        (folder.parent / "small.yaml").write_text("{}")
        self._command = [
            str(ROOT / "launch" / "train_multinode.sh"), "--local=2", "--max_restarts=1", f"--python={sys.executable}",
            "--",
            f"--config={folder.parent / 'small.yaml'}", f"--model_dir={folder}", f"--set=data.dir={data}",
            *(f"--set={flag}" for flag in FLAGS),
        ]  # fmt: skip
        self._launcher: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts the launcher."""
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        with self.log.open("ab") as log:
            self._launcher = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def end(self) -> None:
        """Kills what of it still runs, by id."""
        if self._launcher is None:
            return
        for process in [*self.workers(), self._launcher]:
            try:
                process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        self._launcher.wait(timeout=30)

    def workers(self) -> list[psutil.Process]:
        """The training processes, the chief first."""
        found = {}
        try:
            children = psutil.Process(self._launcher.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        for child in children:
            try:
                if "ssd_dist.cli.train" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found[json.loads(child.environ()["TF_CONFIG"])["task"]["index"]] = child
            except (psutil.NoSuchProcess, psutil.AccessDenied, KeyError):
                continue
        return [found[index] for index in sorted(found)]

    def last_step(self) -> int:
        """The last step that was reported."""
        return max((row["step"] for row in read_rows(self.folder, "train")), default=0)

    def attend(self) -> int | None:
        """Restarts a launcher that asks for it; the exit code if the run is over."""
        code = self._launcher.poll()
        if code == 75:
            self.start()
            return None
        return code

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Waits for a condition or the run's end; whether it was the condition."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if condition():
                return True
            code = self.attend()
            if code is not None:
                if code:
                    raise AssertionError(f"exit code {code}\n{self.log.read_text()[-4000:]}")
                return condition()
            time.sleep(0.1)
        raise AssertionError(f"nothing happened for {timeout} s\n{self.log.read_text()[-4000:]}")


def kill_worker(run: ChaoticRun) -> None:
    """SIGKILL of the second worker."""
    run.workers()[-1].send_signal(signal.SIGKILL)


def kill_chief(run: ChaoticRun) -> None:
    """SIGKILL of the chief."""
    run.workers()[0].send_signal(signal.SIGKILL)


def terminate_worker(run: ChaoticRun) -> None:
    """SIGTERM of one worker, as a spot machine gets it."""
    run.workers()[-1].send_signal(signal.SIGTERM)


def freeze_worker(run: ChaoticRun) -> None:
    """SIGSTOP of one worker: it holds its connections and says nothing."""
    run.workers()[-1].send_signal(signal.SIGSTOP)


def newest_file(run: ChaoticRun) -> Path:
    return max(
        (run.folder / "checkpoints").glob("ckpt-*.data*"), key=lambda path: int(path.name.split("-")[1].split(".")[0])
    )


def cut_checkpoint(run: ChaoticRun) -> None:
    """The newest checkpoint cut in half, and SIGKILL."""
    kill_chief(run)
    path = newest_file(run)
    os.truncate(path, path.stat().st_size // 2)


def flip_checkpoint(run: ChaoticRun) -> None:
    """One bit of the newest checkpoint flipped, and SIGKILL."""
    kill_chief(run)
    path = newest_file(run)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def lose_latest_file(run: ChaoticRun) -> None:
    """TensorFlow's file `checkpoint` deleted, and SIGKILL."""
    kill_chief(run)
    (run.folder / "checkpoints" / "checkpoint").unlink()


FAULTS = {
    "SIGKILL worker": kill_worker,
    "SIGKILL chief": kill_chief,
    "SIGTERM worker": terminate_worker,
    "SIGSTOP worker": freeze_worker,
    "checkpoint cut": cut_checkpoint,
    "checkpoint bit flip": flip_checkpoint,
    "latest file deleted": lose_latest_file,
}


def run_undisturbed(data: Path, folder: Path) -> None:
    """The run that all others are compared with."""
    run = ChaoticRun(data, folder)
    try:
        run.start()
        assert run.wait_until(lambda: run.last_step() == STEPS and run._launcher.poll() == 0, 300)
    finally:
        run.end()


def run_with_faults(data: Path, folder: Path, plan: Sequence[tuple[int, str]]) -> list[Outcome]:
    """Runs to the end, each fault inflicted once its step is reached; what became of each."""
    run = ChaoticRun(data, folder)
    outcomes = []
    try:
        run.start()
        for step, fault in plan:
            # Two checkpoints at least: one may be damaged.
            run.wait_until(lambda step=step: run.last_step() >= max(step, 7) and len(run.workers()) == 2, 300)
            before, gone = run.last_step(), {worker.pid for worker in run.workers()}
            started = time.monotonic()
            FAULTS[fault](run)
            run.wait_until(lambda gone=gone: not gone & {worker.pid for worker in run.workers()}, 120)
            noticed = time.monotonic() - started
            resumed, mark = len(resumptions(run)), run.log.stat().st_size
            if run.wait_until(lambda mark=mark: last_line_step(run, mark) > 0, 300):
                again = time.monotonic() - started
                went_on = resumptions(run)[resumed - 1 :] or [0]
                outcomes.append(Outcome(fault, before, noticed, again, max(before - went_on[-1], 0)))
            else:
                outcomes.append(Outcome(fault, before, noticed, None, 0))
        assert run.wait_until(lambda: run._launcher.poll() == 0, 300)
    finally:
        run.end()
    return outcomes


def last_line_step(run: ChaoticRun, mark: int) -> int:
    """The last step told after a place of the log; 0 if none was."""
    with run.log.open("rb") as log:
        log.seek(mark)
        steps = [line for line in log.read().decode(errors="replace").splitlines() if f"/{STEPS}  loss" in line]
    return int(steps[-1].split("step ")[1].split("/")[0]) if steps else 0


def resumptions(run: ChaoticRun) -> list[int]:
    """The steps from which the run went on."""
    text = run.log.read_text(errors="replace")
    return [int(part.split(" ")[0]) for part in text.split("goes on from step ")[1:] if part.split(" ")[1] == "to"]


def read_rows(folder: Path, kind: str) -> list[dict]:
    """Rows of metrics.jsonl without its clocks; a line that is being written is left out."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["kind"] == kind:
            rows.append({key: value for key, value in row.items() if key not in CLOCKS})
    return rows


def differences(first: Path, second: Path) -> list[str]:
    """What differs between the ends of two runs: tensors, metrics, the best model; bit by bit."""
    import tensorflow as tf

    found = []
    for part in (
        f"checkpoints/ckpt-{STEPS}",
        f"best/{json.loads((first / 'best/best.json').read_text())['checkpoint']}",
    ):
        readers = [tf.train.load_checkpoint(str(folder / part)) for folder in (first, second)]
        names = [set(reader.get_variable_to_shape_map()) for reader in readers]
        found += sorted(names[0] ^ names[1])
        for name in sorted(names[0] & names[1]):
            values = [reader.get_tensor(name) for reader in readers]
            if name != "_CHECKPOINTABLE_OBJECT_GRAPH" and not np.array_equal(*values):
                found.append(f"{part}: {name}")
    for kind in ("train", "eval"):
        if read_rows(first, kind) != read_rows(second, kind):
            found.append(f"metrics.jsonl: {kind}")
    if (first / "best/best.json").read_text() != (second / "best/best.json").read_text():
        found.append("best.json")
    return found


def make_plan(rng: random.Random, faults: int) -> list[tuple[int, str]]:
    """Random faults at random steps, in order."""
    steps = sorted(rng.randint(7, STEPS - 2) for _ in range(faults))
    return [(step, rng.choice(sorted(FAULTS))) for step in steps]


def write_data(folder: Path) -> Path:
    """A small data set of rectangles."""
    from synthetic import write_dataset

    from ssd_dist.core.config_files import load_config

    (folder / "small.yaml").write_text("{}")
    write_dataset(folder / "data", load_config(folder / "small.yaml", FLAGS), {"train": 32, "val": 10}, shards=4)
    return folder / "data"


def main() -> None:
    """Inflicts faults, five a run, and prints what became of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    table = Table("fault", "at step", "noticed, s", "training again, s", "steps repeated", "identical end")
    done = failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_data(folder)
        run_undisturbed(data, folder / "undisturbed")
        while done < arguments.faults:
            hurt = folder / f"hurt{done}"
            outcomes = run_with_faults(data, hurt, make_plan(rng, min(5, arguments.faults - done)))
            differing = differences(folder / "undisturbed", hurt)
            failed += bool(differing)
            for one in outcomes:
                again = "-" if one.training_again is None else f"{one.training_again:.1f}"
                verdict = "no: " + differing[0] if differing else "yes"
                table.add_row(
                    one.fault, str(one.at_step), f"{one.noticed:.1f}", again, str(one.steps_repeated), verdict
                )
            done += len(outcomes)
            print(f"{done} faults, {failed} runs with another end", flush=True)
    Console(width=120).print(table)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
