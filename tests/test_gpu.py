"""The blocks of `benchmarks.gpu`: on a GPU as they are, and in their small form on the CPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from support.synthetic import write_dataset

from ssd_dist.core.config_files import load_config

ROOT = Path(__file__).parents[1]
BLOCKS = ["probe", "placement", "speed", "parts", "input", "layouts", "overflow", "accuracy"]
POLICIES = {"float32", "float16", "bfloat16"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes shards and the config `small.yaml` beside them; returns the folder of the shards."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "small.yaml").write_text("model: {input_size: 64}\n")
    write_dataset(folder / "data", load_config(folder / "small.yaml", []), {"train": 64, "val": 8}, shards=4)
    return folder / "data"


def run_block(block: str, data: Path, folder: Path, *flags: str) -> list[dict]:
    command = [sys.executable, "-m", "benchmarks.gpu", block, f"--data={data}", f"--output={folder / 'new'}",
               f"--config={data.parent / 'small.yaml'}", "--seconds=1200", *flags]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "new" / f"{block}.json").read_text())["rows"]


def check_rows(block: str, rows: list[dict]) -> None:
    """Checks the properties that hold on every device, and that times and rates are positive numbers."""
    assert rows
    for row in rows:
        for name, value in row.items():
            if name.endswith(("_per_second", "_ms", "ratio")):
                assert math.isfinite(value), (name, row)
                assert value > 0, (name, row)
    if block == "probe":
        assert {row["policy"]: row["equal_bits"] for row in rows if "equal_bits" in row} == dict.fromkeys(
            POLICIES, True
        )
    elif block == "placement":
        assert sum(row["operations"] for row in rows if "operations" in row) > 1000
    elif block == "layouts":
        assert {row["replicas"] for row in rows} == {1, 2, 4}
        assert all(row["replicas_equal"] for row in rows)
        # No bit depends on the layout with `train.reduction: exact`.
        assert {row["largest_difference"] for row in rows if row["reduction"] == "exact"} == {0.0}
    elif block == "overflow":
        columns = ("gradient_of_replica_1", "weights_changed", "scale_factor", "skipped_steps")
        assert [tuple(row[name] for name in columns) for row in rows] == [
            ("finite", True, 1.0, 0),
            ("infinite", False, 0.5, 1),
            ("finite again", True, 1.0, 0),
        ]
        assert all(row["replicas_equal"] and row["finite"] for row in rows)
    elif block == "accuracy":
        assert [(row["policy"], row["seed"]) for row in rows[:-1]] == [
            ("float32", 0), ("float16", 0), ("float32", 1), ("float16", 1),
        ]  # fmt: skip
        assert {row["steps"] for row in rows[:-1]} == {2}
        ap = [row["AP"] for row in rows[:-1]]
        assert math.isclose(rows[-1]["float16_minus_float32"], (ap[1] + ap[3] - ap[0] - ap[2]) / 2, abs_tol=1e-12)
        assert rows[-1]["difference_of_seeds"] == max(abs(ap[0] - ap[2]), abs(ap[1] - ap[3]))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_in_its_small_form(block: str, data: Path, tmp_path: Path) -> None:
    check_rows(block, run_block(block, data, tmp_path, "--tiny"))


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="needs a GPU")
@pytest.mark.parametrize("block", ["probe", "placement", "layouts", "overflow"])
def test_a_block_runs_on_the_gpu(block: str, data: Path, tmp_path: Path) -> None:
    check_rows(block, run_block(block, data, tmp_path))
