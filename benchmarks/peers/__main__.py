"""Compares our training step with those of two other programs, in turns in one run.

    python -m benchmarks.peers --mobilenetv2_ssd=CHECKOUT --pytorch_ssd=CHECKOUT [--torch_python=PYTHON] [--rounds=6]

Forward pass, loss, backward pass and optimizer; 16 images of 300 x 300 pixels with 5 boxes each, 20 classes, float32,
all CPU cores. Every program runs in its own process, on the same images, and waits while another one is measured. A
program without a checkout is omitted. The checkouts are not part of this repository; the measured commits are:

    git clone https://github.com/AdmiralAki99/MobileNetV2-SSD && git -C MobileNetV2-SSD checkout 0dc8499
    git clone https://github.com/qfgaohao/pytorch-ssd && git -C pytorch-ssd checkout 7a839cb
    python -m venv torch_env && torch_env/bin/pip install torch torchvision opencv-python-headless

`--torch_python=torch_env/bin/python` runs pytorch-ssd; the other program runs with the TensorFlow of this project.

The steps are those of each program, which differ: `ours.py`, `mobilenetv2_ssd.py` and `pytorch_ssd.py` describe what
each includes. Wall time on a busy machine is mostly waiting for a core, so the table also has the CPU time of a step.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.table import Table

from benchmarks.peers.images import IMAGES, draw_images, write_arrays, write_coco
from benchmarks.rows import Row, print_rows, write_rows

ROOT = Path(__file__).parents[2]
# Steps per turn.
STEPS = 2
# A file of each peer, which shows that a folder is its checkout.
MOBILENETV2_SSD_FILE = "src/training/engine.py"
PYTORCH_SSD_FILE = "vision/ssd/mobilenet_v2_ssd_lite.py"
NO_PEER = (
    "no peer to compare with: clone https://github.com/AdmiralAki99/MobileNetV2-SSD or "
    "https://github.com/qfgaohao/pytorch-ssd and pass the folder as --mobilenetv2_ssd or --pytorch_ssd; --help has all "
    "commands"
)


@dataclass(frozen=True)
class Turn:
    """The time of one step, the mean of a turn.

    Attributes:
      seconds: wall time.
      user, system: CPU time of all threads, in seconds.
    """

    seconds: float
    user: float
    system: float


class Program:
    """A running program that trains on request.

    Attributes:
      name: its name in the tables.
      parameters: its number of trainable parameters.
      anchors: its number of anchors per image.
    """

    def __init__(self, name: str, command: Sequence[str], *arguments: str):
        """Starts `command REPLIES ARGUMENTS` and waits until the program is ready.

        Raises:
          RuntimeError: if the program ends before.
        """
        self.name = name
        with ExitStack() as opened:
            self._log = opened.enter_context(tempfile.TemporaryFile("w+"))
            replies, written = os.pipe()
            self._replies = opened.enter_context(os.fdopen(replies))
            self._process = subprocess.Popen(
                [*command, str(written), *arguments], cwd=ROOT, pass_fds=[written], text=True, stdin=subprocess.PIPE,
                stdout=self._log, stderr=subprocess.STDOUT,
                # Threads that wait for a core that another job uses must not spin: on a machine with three busy
                # processes per core, a step of PyTorch took 19 to 23 s with spinning threads, 7 to 18 s otherwise.
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "OMP_WAIT_POLICY": "passive"},
            )  # fmt: skip
            os.close(written)
            opened.callback(self._stop)
            size = self._read_reply()
            self.parameters, self.anchors = int(size["parameters"]), int(size["anchors"])
            self._opened = opened.pop_all()

    def train(self, steps: int) -> Turn:
        """Trains for some steps and returns the time of one step."""
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        return Turn(**{name: spent / steps for name, spent in self._read_reply().items()})

    def _read_reply(self) -> dict[str, float]:
        line = self._replies.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            output = "".join(self._log.readlines()[-20:])
            raise RuntimeError(f"{self.name}: the program ended early; its last output:\n{output}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def _stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def measure_in_turns(programs: Sequence[Program], rounds: int) -> dict[str, list[Turn]]:
    """Returns the turns of each program by name; the first round is a warm-up and not counted."""
    turns: dict[str, list[Turn]] = {program.name: [] for program in programs}
    for round_number in range(rounds + 1):
        for program in programs:
            turn = program.train(STEPS)
            if round_number:
                turns[program.name].append(turn)
    return turns


def compare(programs: Sequence[Program], turns: dict[str, list[Turn]]) -> list[Row]:
    """Compares the first program with the others."""
    ours, *peers = programs

    def wall(program: Program) -> float:
        return median(turn.seconds for turn in turns[program.name])

    def cpu(program: Program) -> float:
        return median(turn.user + turn.system for turn in turns[program.name])

    rows = []
    for peer in peers:
        rows += [
            Row("training step", "s", wall(ours), wall(peer), peer.name),
            Row("training step", "CPU s", cpu(ours), cpu(peer), peer.name),
            Row("parameters", "million", 1e-6 * ours.parameters, 1e-6 * peer.parameters, peer.name),
        ]
    return rows


def print_programs(programs: Sequence[Program], turns: dict[str, list[Turn]]) -> None:
    """Prints medians of each program, with minimum and maximum of the wall time."""
    table = Table("program", "s per step", "img/s", "CPU s per step", "system", "parameters", "anchors")
    for program in programs:
        seconds = [turn.seconds for turn in turns[program.name]]
        cpu = median(turn.user + turn.system for turn in turns[program.name])
        system = median(turn.system for turn in turns[program.name])
        table.add_row(
            program.name, f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
            f"{IMAGES / median(seconds):.1f}", f"{cpu:.2f}", f"{system:.2f}", f"{program.parameters:,}",
            f"{program.anchors:,}",
        )  # fmt: skip
    Console(width=140).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mobilenetv2_ssd", type=Path, help="checkout of AdmiralAki99/MobileNetV2-SSD")
    parser.add_argument("--pytorch_ssd", type=Path, help="checkout of qfgaohao/pytorch-ssd")
    parser.add_argument(
        "--torch_python", default=sys.executable, help="Python that has PyTorch, torchvision and OpenCV"
    )
    parser.add_argument("--rounds", type=int, default=6, help=f"turns of {STEPS} steps per program")
    parser.add_argument("--json", type=Path, help="JSON file to write the rows to")
    options = parser.parse_args(arguments)
    checkouts = {
        "--mobilenetv2_ssd": (options.mobilenetv2_ssd, MOBILENETV2_SSD_FILE),
        "--pytorch_ssd": (options.pytorch_ssd, PYTORCH_SSD_FILE),
    }
    for flag, (checkout, file) in checkouts.items():
        if checkout is not None and not (checkout / file).exists():
            parser.error(f"{flag}: {checkout} does not contain {file}; pass the folder of a clone")
    if options.mobilenetv2_ssd is None and options.pytorch_ssd is None:
        parser.exit(2, f"{NO_PEER}\n")
    if shutil.which(options.torch_python) is None:
        parser.error(f"--torch_python: {options.torch_python} is not an executable file; pass a Python with PyTorch")

    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        arrays = folder / "images.npz"
        images = draw_images()
        write_coco(images, folder / "raw")
        write_arrays(images, arrays)

        def start(name: str, python: str, module: str, *paths: Path) -> Program:
            command = [python, "-m", f"benchmarks.peers.{module}"]
            return running.enter_context(Program(name, command, *(str(path.resolve()) for path in paths)))

        programs = [start("ours", sys.executable, "ours", folder)]
        if options.mobilenetv2_ssd is not None:
            peer = "AdmiralAki99/MobileNetV2-SSD"
            programs.append(start(peer, sys.executable, "mobilenetv2_ssd", arrays, options.mobilenetv2_ssd))
        if options.pytorch_ssd is not None:
            peer = "qfgaohao/pytorch-ssd, mb2-ssd-lite"
            programs.append(start(peer, options.torch_python, "pytorch_ssd", arrays, options.pytorch_ssd))
        turns = measure_in_turns(programs, options.rounds)
    print_programs(programs, turns)
    rows = compare(programs, turns)
    print_rows(rows)
    if options.json:
        write_rows(rows, options.json)


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(str(error))
