"""Runs a command in a pseudo-terminal, as a person would."""

import fcntl
import os
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

COLUMNS, LINES = 120, 40
# Sequences that move the cursor, erase, or set colors.
ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_in_terminal(
    command: Sequence[str | Path], cwd: Path | None = None, stdout: int | None = None, timeout: float = 900
) -> tuple[int, str]:
    """Runs a command with a terminal for stdin, stdout and stderr; returns its exit code and all that was printed.

    Args:
      command: the command.
      cwd: the folder to run it in.
      stdout: a file descriptor for stdout instead of the terminal.
      timeout: seconds after the end of the output until the command is killed.
    """
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        stdin=writer,
        stdout=writer if stdout is None else stdout,
        stderr=writer,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(writer)
    printed = bytearray()
    try:
        while part := os.read(reader, 65536):
            printed += part
    except OSError:
        # The last process that had the terminal has ended.
        pass
    os.close(reader)
    try:
        return process.wait(timeout), printed.decode()
    finally:
        process.kill()


def remove_escapes(printed: str) -> str:
    """Returns what was printed without escape sequences; a line that was redrawn appears once per drawing."""
    return ESCAPE_SEQUENCE.sub("", printed).replace("\r\n", "\n").replace("\r", "\n")
