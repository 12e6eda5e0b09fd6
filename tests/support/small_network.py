"""Runs a command whose detector has a backbone of a few blocks, which is traced faster than a whole MobileNetV2.

    python tests/support/small_network.py -m ssd_dist.cli.train FLAGS
    python tests/support/small_network.py -c PROGRAM FLAGS

For tests of commands in which the network does not matter. Every command that reads the checkpoints of such a run needs
the same backbone.
"""

import os
import runpy
import shlex
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def small_command(module: str, *flags: str) -> list[str]:
    """Returns the command line that runs a module of ssd_dist with the small backbone."""
    return [sys.executable, __file__, "-m", module, *flags]


def small_program(program: str, *arguments: str) -> list[str]:
    """Returns the command line that runs a Python program with the small backbone."""
    return [sys.executable, __file__, "-c", program, *arguments]


def write_interpreter(folder: Path) -> Path:
    """Writes a program for the launcher's flag --python that runs the training with the small backbone."""
    program = folder / "small_network_python"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, __file__])} "$@"\n')
    program.chmod(0o755)
    return program


def main() -> None:
    """Replaces the backbone and runs the module or program; everything else goes to the Python interpreter."""
    if sys.argv[1] not in ("-m", "-c"):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    sys.path[:1] = [str(TESTS.parent), str(TESTS)]
    from ssd_dist.core.environment_variables import set_tensorflow_defaults

    set_tensorflow_defaults()
    from support.small_backbone import build_few_blocks

    from ssd_dist.model import detector

    detector.build_backbone = build_few_blocks
    option, code = sys.argv[1:3]
    del sys.argv[1:3]
    if option == "-m":
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    else:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
