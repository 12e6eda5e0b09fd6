"""Every config in configs/ is valid and matches its name, and the recipes train."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.small_network import small_program
from support.synthetic import write_dataset

from ssd_dist.core.anchors import feature_sizes
from ssd_dist.core.config_files import load_config
from ssd_dist.training.batch_division import divide_batch

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
FAMILIES = [name for name in NAMES if name.startswith(("voc0712", "coco"))]
# The others differ from these only in size and head.
RECIPES = ("voc0712_ssd300.yaml", "coco_ssd300.yaml")
# pytest skips a parametrized test without parameters: if the folder moves, the tests must fail instead.
assert {*RECIPES} < {*FAMILIES} < {*NAMES}
# Makes a recipe small enough for a test.
SMALL = [
    "model.input_size=64", "model.width=0.1", "backbone.weights=none", "data.views=1", "train.global_batch_size=4",
    "model.batch_norm_group=4",
    "train.steps=2", "train.log_every=1", "train.steps_per_loop=1", "eval.batch_size=4",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_valid(name: str) -> None:
    config = load_config(CONFIGS / name)
    assert len(feature_sizes(config.model.input_size)) == len(config.anchors.aspect_ratios)
    assert list(config.anchors.sizes) == sorted(config.anchors.sizes)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_a_recipe_fits_up_to_8_gpus(name: str, gpus: int) -> None:
    division = divide_batch(load_config(CONFIGS / name), gpus)
    assert not division.is_synchronized


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_matches_its_name(name: str) -> None:
    config = load_config(CONFIGS / name)
    head, size = ("ssdlite", 320) if "ssdlite" in name else ("ssd", int(name[-8:-5]))
    assert (config.model.head, config.model.input_size) == (head, size)
    # The recipe of the paper.
    assert (config.train.epochs, config.optimizer.name, config.amp.enabled, config.ema.enabled) == (
        200, "adamw", True, True,
    )  # fmt: skip
    assert config.data.views in (8, 16)
    assert config.schedule.warmup_steps > 0
    # The records of two recipes have different sizes, so their folders differ.
    others = [load_config(CONFIGS / other) for other in FAMILIES if other != name]
    assert config.data.dir not in [other.data.dir for other in others]


RUN_ALL = """
import json, sys
from ssd_dist.core.config_files import load_config
from ssd_dist.cluster.preemption import StopRequest
from ssd_dist.training.run import run_training
with open(sys.argv[1]) as file:
    jobs = json.load(file)
for path, folder, overrides in jobs:
    run_training(load_config(path, overrides), folder, StopRequest())
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_recipes_take_two_steps(tmp_path: Path) -> None:
    """All recipes run in one new process, because each sets the mixed-precision policy of its process."""
    jobs = []
    for name in RECIPES:
        data, run = tmp_path / f"data_{name}", tmp_path / f"run_{name}"
        overrides = [*SMALL, f"data.dir={data}"]
        config = load_config(CONFIGS / name, overrides)
        write_dataset(data, config, {"train": 8, config.eval.split: 4})
        jobs.append((str(CONFIGS / name), str(run), overrides))
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        small_program(RUN_ALL, str(tmp_path / "jobs.json")),
        capture_output=True, text=True, timeout=900, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for _, run, _ in jobs:
        rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        assert [(row["kind"], row["step"]) for row in rows] == [("train", 1), ("train", 2), ("eval", 2)], run
        assert all(row["loss"] > 0 for row in rows if row["kind"] == "train")
        assert (Path(run) / "best" / "best.json").exists()
