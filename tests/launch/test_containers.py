"""Containers and job files: they install all files and handle the exit codes."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from ssd_dist.core.errors import CheckpointError, DataError, RestartError, UsageError

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


def test_kubernetes_restarts_only_exit_codes_that_a_restart_can_fix() -> None:
    spec = yaml.safe_load((ROOT / "launch/train/jobset.yaml").read_text())["spec"]
    (job,) = spec["replicatedJobs"]
    rules = job["template"]["spec"]["podFailurePolicy"]["rules"]
    by_code = {
        code: rule["action"] for rule in rules if "onExitCodes" in rule for code in rule["onExitCodes"]["values"]
    }
    permanent = [error.exit_code for error in (UsageError, DataError, CheckpointError)]
    assert by_code == {**dict.fromkeys(permanent, "FailJob"), RestartError.exit_code: "Ignore"}
    # A job that its own policy marked as failed is not restarted.
    assert spec["failurePolicy"]["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]


def test_the_template_image_also_runs_workers() -> None:
    dockerfile = (ROOT / "launch/prepare/Dockerfile").read_text()
    assert "COPY --from=launcher /opt/google/dataflow/python_template_launcher" in dockerfile
    assert "ENTRYPOINT" not in dockerfile
