"""Containers and job files: they install all files and handle the exit codes."""

import platform
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("container", ["train", "prepare"])
def test_a_container_installs_the_report_templates(tmp_path: Path, container: str) -> None:
    text = (ROOT / "launch" / container / "Dockerfile").read_text()
    for line in re.findall("^COPY ([^-].*)$", text, re.MULTILINE):
        *sources, target = line.split()
        for source in map(ROOT.joinpath, sources):
            if source.is_dir():
                shutil.copytree(source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tmp_path / target)
    build = "import sys\nfrom setuptools import build_meta\nbuild_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path / "out"], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    files = {path.name for path in (ROOT / "ssd_dist" / "report" / "templates").iterdir()}
    assert files
    assert {f"ssd_dist/report/templates/{name}" for name in files} <= set(zipfile.ZipFile(wheel).namelist())


def read_versions(lock: Path) -> dict[str, str]:
    """Returns the version of each package; checks that each has hashes and that the lock names no host."""
    text = lock.read_text()
    assert "://" not in text
    assert "--index" not in text
    blocks = re.split(r"\n(?=\S)", text.strip().replace(" \\\n    ", " "))
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", block) for block in blocks), lock
    pins = (re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", block) for block in blocks)
    return {pin[1]: pin[2] for pin in pins if pin}


def test_the_locks_have_hashes_and_the_containers_have_the_versions_of_the_tests() -> None:
    tested = read_versions(ROOT / "requirements.lock")
    assert len(tested) > 200
    for container, package, absent in (
        ("train", "tensorflow", "apache-beam"),
        ("prepare", "apache-beam", "tensorflow"),
    ):
        versions = read_versions(ROOT / "launch" / container / "requirements.lock")
        assert package in versions
        assert absent not in versions
        cuda = {name for name in versions if name.startswith("nvidia-")}
        assert bool(cuda) == (container == "train")
        assert {name: tested.get(name) for name in versions if name not in cuda} == {
            name: version for name, version in versions.items() if name not in cuda
        }


def test_pip_accepts_every_installed_version_on_this_python() -> None:
    # uv, which writes the locks, ignores upper bounds of Requires-Python; pip in the containers does not.
    refused = [
        f"{package.name} {package.version}: {required}"
        for package in metadata.distributions()
        if (required := package.metadata.get("Requires-Python"))
        and platform.python_version() not in SpecifierSet(required)
    ]
    assert refused == []


@pytest.mark.parametrize("container", ["train", "prepare"])
def test_a_container_installs_only_files_whose_hashes_are_locked(container: str) -> None:
    text = (ROOT / "launch" / container / "Dockerfile").read_text()
    installs = re.findall(r"pip install .*", text)
    assert [install.removesuffix(" && pip check") for install in installs] == [
        "pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock",
        "pip install --no-cache-dir --no-deps .",
    ]
    assert f"COPY launch/{container}/requirements.lock ./" in text


def test_the_template_image_also_runs_workers() -> None:
    dockerfile = (ROOT / "launch/prepare/Dockerfile").read_text()
    assert "COPY --from=launcher /opt/google/dataflow/python_template_launcher" in dockerfile
    assert "ENTRYPOINT" not in dockerfile
