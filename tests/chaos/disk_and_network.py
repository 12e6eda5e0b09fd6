"""A small disk that can be filled and a network that can be disconnected, for fault injection; both need root.

Each worker runs in its own network namespace; a pair of veth devices connects them. The launcher uses
`namespaced_python.sh` as the Python interpreter, which starts each worker in its namespace.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

WRAPPER = Path(__file__).with_name("namespaced_python.sh")
DISK = "192m"


def run_command(*command: str) -> None:
    """Runs a command.

    Raises:
      RuntimeError: if the command fails; contains its stderr.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


class SmallDisk:
    """A tmpfs of limited size that can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        run_command("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        run_command("umount", "--lazy", str(self.folder))

    def fill(self) -> None:
        """Fills the disk completely."""
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                return

    def free(self) -> None:
        """Frees the space again."""
        self._filler.unlink(missing_ok=True)


class SeparableNetwork:
    """Two network namespaces with the addresses 10.213.0.1 and 10.213.0.2, and the link between them."""

    def __init__(self) -> None:
        self._names = [f"chaos{os.getpid()}{side}" for side in "ab"]

    def __enter__(self) -> Self:
        first, second = self._names
        for name in self._names:
            run_command("ip", "netns", "add", name)
            run_command("ip", "-n", name, "link", "set", "lo", "up")
        run_command("ip", "-n", first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second)
        for number, name in enumerate(self._names, 1):
            run_command("ip", "-n", name, "address", "add", f"10.213.0.{number}/24", "dev", "eth0")
            run_command("ip", "-n", name, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            run_command("ip", "netns", "delete", name)

    def environment(self) -> dict[str, str]:
        """Returns the environment variables that `namespaced_python.sh` reads."""
        return {"CHAOS_NAMESPACES": " ".join(self._names), "CHAOS_PYTHON": sys.executable}

    def disconnect(self) -> None:
        """Disables the link: packets are lost without an error."""
        run_command("ip", "-n", self._names[0], "link", "set", "eth0", "down")

    def connect(self) -> None:
        """Enables the link again."""
        run_command("ip", "-n", self._names[0], "link", "set", "eth0", "up")


def can_create() -> bool:
    """Returns whether disks and networks can be created: as root, with iproute2."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    try:
        with SeparableNetwork():
            return True
    except RuntimeError:
        return False
