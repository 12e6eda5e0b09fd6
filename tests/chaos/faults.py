"""Defines the faults; each is injected into a run at a given moment."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from chaos.supervised_run import SupervisedRun


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
      name: name in the table.
      inject: causes the fault.
      moment: "training"; or "evaluation", "save" or "start": the next one after the fault's step.
      survivable: whether the workers may continue without a restart.
      needs_root: whether the fault needs its own disk or network.
    """

    name: str
    inject: Callable[[SupervisedRun], None]
    moment: str = "training"
    survivable: bool = False
    needs_root: bool = False


def _signal(which: int, *numbers: int) -> Callable[[SupervisedRun], None]:
    def inject(run: SupervisedRun) -> None:
        worker = run.workers()[which]
        for number in numbers:
            worker.send_signal(number)
            time.sleep(0.2 * (len(numbers) > 1))

    return inject


def _kill_everything(run: SupervisedRun) -> None:
    # Like a power failure: the launcher is killed first, so that it cannot react.
    workers = run.workers()
    run.launcher.kill()
    for worker in workers:
        worker.kill()


def _stop_launcher(run: SupervisedRun) -> None:
    run.launcher.send_signal(signal.SIGTERM)


def _pause(run: SupervisedRun) -> None:
    worker = run.workers()[-1]
    worker.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    worker.send_signal(signal.SIGCONT)


def _disconnect_network(run: SupervisedRun) -> None:
    run.network.disconnect()
    run.undo = run.network.connect


def _interrupt_network(run: SupervisedRun) -> None:
    run.network.disconnect()
    time.sleep(1.0)
    run.network.connect()


def _fill_disk(run: SupervisedRun) -> None:
    run.disk.fill()
    run.undo = run.disk.free


def _damage(change: Callable[[Path], None]) -> Callable[[SupervisedRun], None]:
    """Returns a fault that kills the chief, then changes the data of the newest checkpoint."""

    def inject(run: SupervisedRun) -> None:
        chief = run.workers()[0]
        chief.kill()
        psutil.wait_procs([chief], timeout=10)
        files = list((run.folder / "checkpoints").glob("ckpt-*.data*"))
        change(max(files, key=lambda path: int(path.name.split("-")[1].split(".")[0])))

    return inject


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
    Fault("worker paused for 1.5 s", _pause, survivable=True),
    Fault("network disconnected", _disconnect_network, needs_root=True),
    Fault("network disconnected for 1 s", _interrupt_network, survivable=True, needs_root=True),
    Fault("disk full", _fill_disk, needs_root=True),
    Fault("SIGKILL, newest checkpoint truncated", _damage(lambda path: os.truncate(path, path.stat().st_size // 2))),
    Fault("SIGKILL, bit of newest checkpoint flipped", _damage(_flip_bit)),
    Fault("SIGKILL, latest file deleted", _damage(lambda path: path.with_name("checkpoint").unlink())),
)
