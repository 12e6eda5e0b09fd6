"""`make` installs the requirements again if and only if their content has changed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ("requirements.lock", "pyproject.toml")


def make(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # `make test` passes its own options in MAKEFLAGS.
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    command = ["make", *options, "setup"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def installed(tmp_path) -> Path:
    """Returns a folder with the Makefile and the requirements in which `make setup` has run; nothing is installed."""
    for name in ("Makefile", *REQUIREMENTS):
        shutil.copy(ROOT / name, tmp_path)
    (touch,) = [line for line in make(tmp_path, "--dry-run").stdout.splitlines() if line.startswith("touch ")]
    stamp = tmp_path / touch.removeprefix("touch ")
    stamp.parent.mkdir()
    stamp.touch()
    return tmp_path


def is_up_to_date(folder: Path) -> bool:
    return make(folder, "--question").returncode == 0


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_a_new_modification_time_alone_does_not_install_again(installed, name):
    later = (installed / name).stat().st_mtime + 1e6
    os.utime(installed / name, (later, later))
    assert is_up_to_date(installed)


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_changed_content_installs_again(installed, name):
    path = installed / name
    before = path.stat()
    path.write_text(path.read_text() + "# changed\n")
    os.utime(path, (before.st_atime, before.st_mtime))
    assert not is_up_to_date(installed)
