"""The wheel works in any folder: scripts, configs, messages for missing extras, and `ssd-fit` from data to export."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from support.terminal import remove_escapes, run_in_terminal

from ssd_dist.core.config_files import flatten_config, load_config
from ssd_dist.fitting.fit_dataset import format_overrides

ROOT = Path(__file__).parents[1]
SCRIPTS = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]))
"""


def build(kind: str, source: Path, output: Path) -> Path:
    """Builds the sdist or the wheel of a folder with the build backend of pyproject.toml, and returns its path."""
    command = [sys.executable, "-c", BUILD, kind, output]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return output / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Returns the wheel, built from the unpacked sdist as on a package index."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ssd_dist", "pipelines", "toyset", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    sdist = build("sdist", source, folder)
    shutil.unpack_archive(sdist, folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


def find_base_packages() -> set[str]:
    """Returns the names of the distributions that `pip install ssd_dist` installs, without any extra."""
    waiting, found = ["ssd_dist"], set()
    while waiting:
        for text in metadata.distribution(waiting.pop()).requires or []:
            requirement = Requirement(text)
            is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_needed and requirement.name not in found:
                found.add(requirement.name)
                waiting.append(requirement.name)
    return found


def create_environment(folder: Path, wheel: Path) -> tuple[Path, Path]:
    """Creates a virtual environment that contains only the wheel; returns its folders of scripts and of packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--disable-pip-version-check", wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    return folder / "bin", packages


@pytest.fixture(scope="session")
def base_scripts(wheel, tmp_path_factory) -> Path:
    """Returns the scripts of an environment without extras; the packages of this environment are linked into it."""
    scripts, packages = create_environment(tmp_path_factory.mktemp("base"), wheel)
    for name in find_base_packages():
        distribution = metadata.distribution(name)
        for entry in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / entry).exists():
                (packages / entry).symlink_to(distribution.locate_file(entry))
    return scripts


@pytest.fixture(scope="session")
def full_scripts(wheel, tmp_path_factory) -> Path:
    """Returns the scripts of an environment with all extras: it finds the packages of this environment."""
    scripts, packages = create_environment(tmp_path_factory.mktemp("full"), wheel)
    # Python reads this file, but not the .pth file of the editable installation in that folder.
    (packages / "extras.pth").write_text(str(metadata.distribution("numpy").locate_file("")))
    return scripts


def run(script: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_wheel_contains_the_configs_and_is_small(wheel):
    configs = {f"ssd_dist/configs/{path.name}" for path in (ROOT / "configs").iterdir()}
    assert "ssd_dist/configs/base.yaml" in configs
    assert configs <= set(zipfile.ZipFile(wheel).namelist())
    assert wheel.stat().st_size < 1e6


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_only_the_base_package(base_scripts, tmp_path, script):
    done = run(base_scripts / script, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  --output: |^  --model_dir: ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("script", "arguments", "extra"),
    [
        ("ssd-fit", ["--input=data", "--output=run"], "pipelines"),
        ("ssd-prepare", ["--input=data", "--output=shards"], "pipelines"),
        ("ssd-train", ["--config=demo", "--model_dir=run"], "train"),
        ("ssd-evaluate", ["--model_dir=run", "--split=val"], "train"),
        ("ssd-predict", ["--model_dir=run", "--images=data", "--output=out"], "train"),
        ("ssd-export", ["--model_dir=run", "--format=tflite", "--output=out"], "train"),
        ("ssd-inspect", ["--model_dir=run"], "train"),
    ],
)
def test_a_missing_extra_gives_one_line_with_the_command_that_installs_it(
    base_scripts, tmp_path, script, arguments, extra
):
    done = run(base_scripts / script, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.endswith(f"is not installed; install it with: pip install 'ssd_dist[{extra}]'\n")


# A network and a length that train in seconds; the other settings are chosen.
TINY = {
    "model.input_size": 64, "model.width": 0.35, "backbone.weights": "none", "train.global_batch_size": 4,
    "train.steps": 24, "train.log_every": 1,
}  # fmt: skip


def interrupt(command: list[str | Path], cwd: Path, started: Path, number: int) -> int:
    """Starts a command, sends it a signal when a file exists, and returns its exit code."""
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not started.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        return process.wait()


def check_notebook(python: Path, folder: Path) -> None:
    """Runs the code of the notebook on the run of the command: its call of `fit` finds all stages finished."""
    notebook = nbformat.read(ROOT / "docs/folder_to_detector.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0].metadata["tags"] == ["parameters"]
    parameters = f'DATA, RUN, MINUTES, CONFIG, SETTINGS = "raw", "run", None, "mine.yaml", {TINY}'
    assert set(re.findall(r"^[A-Z]+", cells[0].source, re.MULTILINE)) == set(re.findall(r"[A-Z]{3,}", parameters))
    program = "\n".join([parameters, *(cell.source for cell in cells[1:])])
    done = run(python, "-c", f"{program}\nimage.save('drawn.png')", cwd=folder)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "run/metrics.json").read_text())
    assert f"COCO AP50 {metrics['coco/AP50']:.3f}, AP {metrics['coco/AP']:.3f}" in done.stdout
    assert len(re.findall(r"^\w+\.jpg \[", done.stdout, re.MULTILINE)) == 4
    assert "--- train" not in done.stdout
    assert (folder / "drawn.png").stat().st_size


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("interrupted", [False, pytest.param(True, marks=pytest.mark.long)])
def test_one_command_trains_and_exports_in_any_folder_and_resumes_after_interruptions(
    full_scripts, tmp_path, interrupted: bool
):
    """Runs the installed ssd-fit; the long form stops it while it prepares the data and while it trains."""
    assert run(full_scripts / "ssd-sample", "--output=raw", "--train=32", "--val=8", cwd=tmp_path).returncode == 0
    (tmp_path / "mine.yaml").write_text("extends: base\noptimizer: {lr: 3e-3}\n")
    fit = [full_scripts / "ssd-fit", "--input=raw", "--output=run", "--config=mine.yaml"]
    fit += [f"--set={override}" for override in format_overrides(TINY)]
    folder = tmp_path / "run"
    config = None
    if interrupted:
        assert interrupt(fit, tmp_path, folder / "config.yaml", signal.SIGTERM) == 75
        config = (folder / "config.yaml").read_text()
        assert not (folder / "data/dataset.json").exists()
        assert interrupt(fit, tmp_path, folder / "metrics.jsonl", signal.SIGINT) == 75
        assert not (folder / "metrics.json").exists()
    code, printed = run_in_terminal(fit, cwd=tmp_path)
    printed = remove_escapes(printed)
    assert code == 0, printed

    # The choices were made once, and leave the keys of the user as they are.
    assert config in (None, (folder / "config.yaml").read_text())
    chosen = {choice["key"] for choice in json.loads((folder / "fit/choices.json").read_text())}
    assert "data.dir" not in chosen
    assert {"schedule.warmup_steps", "eval.every_steps"} <= chosen
    values = flatten_config(load_config(folder / "config.yaml"))
    assert (values["optimizer.lr"], values["model.input_size"], values["train.steps"]) == (3e-3, 64, 24)
    # Every step was trained and reported once.
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 25))
    for name in ("report.html", "predictions.png", "best/best.json", "export/tflite/model.tflite"):
        assert (folder / name).stat().st_size
    ap = json.loads((folder / "metrics.json").read_text())["coco/AP50"]
    assert re.search(rf"COCO AP50 +│ {ap:.3f}", printed)
    for word in ("schedule.warmup_steps = ", "report.html", "ssd-predict --model_dir=run"):
        assert word in printed
    # Every stage shows what it does, and the terminal is free of the output of TensorFlow and its converters.
    for word in ("start TensorFlow", "first step", "24/24  loss", "evaluate split val, batches", "convert to tflite"):
        assert word in printed
    assert "W0000" not in printed
    assert "tf_tfl_flatbuffer_helpers" in (folder / "logs/export.log").read_text()
    check_notebook(full_scripts / "python", tmp_path)
    program = "import ssd_dist; print(ssd_dist.__file__)"
    location = run(full_scripts / "python", "-c", program, cwd=tmp_path).stdout
    assert location.startswith(str(full_scripts.parent))


def find_python(version: str) -> Path | None:
    """Returns the interpreter of a version of Python, from the path or of pyenv; None without one that runs."""
    installed = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *installed):
        if candidate and subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return Path(candidate)
    return None


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheel_installs_on_other_pythons_and_trains_from_python(wheel, tmp_path, version):
    """Installs TensorFlow and Beam from the package index, then goes from a folder to predictions in one program."""
    python = find_python(version)
    if python is None:
        pytest.skip(f"Python {version} is not installed")
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    scripts = tmp_path / "venv/bin"
    subprocess.run([scripts / "pip", "install", "--quiet", f"{wheel}[pipelines,train]"], check=True)
    assert run(scripts / "ssd-sample", "--output=raw", "--train=32", "--val=8", cwd=tmp_path).returncode == 0
    program = f"""
import sys, ssd_dist
folder = ssd_dist.fit("raw", "run", **{TINY})
detector = ssd_dist.Detector.load(folder / "export/tflite")
print(sys.version_info[:2], len(detector.predict(["raw/images/val/000001.jpg"])), detector.classes)
"""
    done = run(scripts / "python", "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/export/tflite/export.json").read_text())
    major_minor = tuple(int(part) for part in version.split("."))
    assert done.stdout.splitlines()[-1] == f"{major_minor} 1 {tuple(summary['classes'])}"
