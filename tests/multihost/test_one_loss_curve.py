"""One loss curve whatever the layout: workers x replicas 1x1, 1x2, 2x1, 2x2, 1x4 see the same data and learn the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from multihost.processes import read_logs, start_gang, wait_gang
from synthetic import write_dataset

from ssd_dist.core.config_files import load_config

LAYOUTS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4))
STEPS = 50
SMALL = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8",
         "train.sync_batch_norm=true", "train.log_every=1", "data.augmentation.flip=true"]  # fmt: skip

VARIANTS = {
    "detector": (False, []),
    "detector_frozen": (False, ["backbone.freeze_batch_norm=true"]),
}
TINY = {
    **{
        f"{scope}_{normalizer}": (True, [f"mining.scope={scope}", f"loss.normalizer={normalizer}"])
        for scope in ("image", "global")
        for normalizer in ("positives", "images", "classified")
    },
    "accumulated": (True, ["train.accumulate_steps=2", "backbone.freeze_batch_norm=true"]),
    "mean": (True, ["loss.reduction=mean"]),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data sets: with objects, with objects in few images, with none."""
    root = tmp_path_factory.mktemp("curve")
    (root / "small.yaml").write_text("{}")
    config = load_config(root / "small.yaml", SMALL)
    write_dataset(root / "full", config, {"train": 32}, shards=4)
    write_dataset(root / "none", config, {"train": 32}, shards=4, objects=0)
    return {"root": root, "full": root / "full", "none": root / "none"}


def run_layouts(root: Path, data: Path, variants: dict, name: str, steps: int, layouts=LAYOUTS) -> dict:
    """Results by layout and variant."""
    found = {}
    for workers, replicas in layouts:
        output = root / f"{name}_{workers}x{replicas}"
        output.mkdir()
        job = {
            "base": str(root / "small.yaml"),
            "overrides": [*SMALL, f"data.dir={data}", f"cluster.logical_cpus={replicas}"],
            "variants": {key: {"tiny": tiny, "overrides": more} for key, (tiny, more) in variants.items()},
            "steps": steps,
            "output": str(output),
        }
        (output / "job.json").write_text(json.dumps(job))
        command = [str(Path(__file__).with_name("curve_worker.py")), str(output / "job.json")]
        with start_gang(command, workers, output) as gang:
            assert wait_gang(gang, 280) == [0] * workers, read_logs(output)
        found[workers, replicas] = {key: dict(np.load(output / f"{key}.npz")) for key in variants}
    return found


def relative_difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second) / np.linalg.norm(first))


def difference(results, key, name):
    reference = results[1, 1][key][name]
    return {layout: relative_difference(reference, found[key][name]) for layout, found in results.items()}


@pytest.mark.slow
def test_show(folders):
    results = run_layouts(folders["root"], folders["full"], VARIANTS | TINY, "show", STEPS)
    for key in VARIANTS | TINY:
        base = results[1, 1][key]
        for layout, found in results.items():
            f = found[key]
            print(key, layout, "loss", np.max(np.abs(f["loss"] / base["loss"] - 1)), "w", relative_difference(base["weights"], f["weights"]), "stat", relative_difference(base["statistics"], f["statistics"]), "pos", np.array_equal(base["positives"], f["positives"]), np.array_equal(base["negatives"], f["negatives"]), f["loss"][[0,10,49]])
