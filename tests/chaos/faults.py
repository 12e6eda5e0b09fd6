"""The faults: each does one thing to a run, and says when it is to strike and whether the gang may live through it."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from chaos.hurt_run import HurtRun


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
      name: as in the table.
      strike: does it.
      moment: `training`; `evaluation`, `save` or `start`: the next one after its step.
      passes: whether the gang may live through it; else it has to be started again.
      needs_world: whether it takes a disk or network of its own.
    """

    name: str
    strike: Callable[[HurtRun], None]
    moment: str = "training"
    passes: bool = False
    needs_world: bool = False


def _signal(which: int, *numbers: int) -> Callable[[HurtRun], None]:
    def strike(run: HurtRun) -> None:
        worker = run.workers()[which]
        for number in numbers:
            worker.send_signal(number)
            time.sleep(0.2 * (len(numbers) > 1))

    return strike


def _kill_everything(run: HurtRun) -> None:
    # As if the power failed: the launcher first, so that it cannot act.
    workers = run.workers()
    run.launcher.kill()
    for worker in workers:
        worker.kill()


def _stop_launcher(run: HurtRun) -> None:
    run.launcher.send_signal(signal.SIGTERM)


def _pause(run: HurtRun) -> None:
    worker = run.workers()[-1]
    worker.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    worker.send_signal(signal.SIGCONT)


def _cut_network(run: HurtRun) -> None:
    run.network.cut()
    run.mend = run.network.join


def _interrupt_network(run: HurtRun) -> None:
    run.network.cut()
    time.sleep(1.0)
    run.network.join()


def _fill_disk(run: HurtRun) -> None:
    run.disk.fill()
    run.mend = run.disk.free


def _damage(change: Callable[[Path], None]) -> Callable[[HurtRun], None]:
    """Kills the chief, then changes the data of the newest checkpoint."""

    def strike(run: HurtRun) -> None:
        chief = run.workers()[0]
        chief.kill()
        psutil.wait_procs([chief], timeout=10)
        files = list((run.folder / "checkpoints").glob("ckpt-*.data*"))
        change(max(files, key=lambda path: int(path.name.split("-")[1].split(".")[0])))

    return strike


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


TERM, KILL, STOP = signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP
FAULTS = (
    Fault("SIGKILL of a worker", _signal(1, KILL)),
    Fault("SIGKILL of the chief", _signal(0, KILL)),
    Fault("SIGKILL of everything", _kill_everything),
    Fault("SIGKILL of the chief in a save", _signal(0, KILL), moment="save"),
    Fault("SIGKILL of a worker in an evaluation", _signal(1, KILL), moment="evaluation"),
    Fault("SIGKILL of a worker in start-up", _signal(1, KILL), moment="start"),
    Fault("SIGTERM of a worker", _signal(1, TERM)),
    Fault("SIGTERM of the launcher", _stop_launcher),
    Fault("SIGTERM twice", _signal(0, TERM, TERM)),
    Fault("SIGTERM of the chief in a save", _signal(0, TERM), moment="save"),
    Fault("SIGTERM of a worker in an evaluation", _signal(1, TERM), moment="evaluation"),
    Fault("SIGTERM of the chief in start-up", _signal(0, TERM), moment="start"),
    Fault("SIGSTOP of a worker", _signal(1, STOP)),
    Fault("SIGSTOP of the chief", _signal(0, STOP)),
    Fault("worker paused for 1.5 s", _pause, passes=True),
    Fault("network cut", _cut_network, needs_world=True),
    Fault("network away for 1 s", _interrupt_network, passes=True, needs_world=True),
    Fault("disk full", _fill_disk, needs_world=True),
    Fault("SIGKILL, newest checkpoint cut", _damage(lambda path: os.truncate(path, path.stat().st_size // 2))),
    Fault("SIGKILL, bit of newest checkpoint flipped", _damage(_flip_bit)),
    Fault("SIGKILL, latest file deleted", _damage(lambda path: path.with_name("checkpoint").unlink())),
)
