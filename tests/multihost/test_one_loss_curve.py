"""One loss curve: 1x1, 1x2, 2x1, 2x2, 1x4 (workers x replicas) see the same, one and two replicas learn the same."""

import json
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from multihost.processes import read_logs, start_gang, wait_gang
from synthetic import write_dataset

from ssd_dist.core.config_files import load_config

Results: TypeAlias = dict[tuple[int, int], dict[str, dict[str, np.ndarray]]]

LAYOUTS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4))
SMALL = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8",
         "train.sync_batch_norm=true", "train.log_every=1"]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets: `full` of images with objects, `sparse` with three of 32 that have some, `none` without."""
    folder = tmp_path_factory.mktemp("curve")
    (folder / "small.yaml").write_text("{}")
    config = load_config(folder / "small.yaml", SMALL)
    write_dataset(folder / "full", config, {"train": 32}, shards=4)
    write_dataset(folder / "sparse", config, {"train": 32}, shards=4, objects=[2, 1, 0, 0, 0, 3] + [0] * 26)
    write_dataset(folder / "none", config, {"train": 32}, shards=4, objects=0)
    return folder


def train_layouts(root: Path, name: str, variants: dict[str, dict], layouts=LAYOUTS) -> Results:
    """Trains the variants in every layout; results by layout and variant."""
    found = {}
    for workers, replicas in layouts:
        output = root / f"{name}_{workers}x{replicas}"
        output.mkdir()
        overrides = [*SMALL, f"cluster.logical_cpus={replicas}"]
        job = {"base": str(root / "small.yaml"), "overrides": overrides, "variants": variants, "output": str(output)}
        (output / "job.json").write_text(json.dumps(job))
        command = [str(Path(__file__).with_name("curve_worker.py")), str(output / "job.json")]
        with start_gang(command, workers, output) as gang:
            assert wait_gang(gang, 280) == [0] * workers, read_logs(output)
        found[workers, replicas] = {key: dict(np.load(output / f"{key}.npz")) for key in variants}
    return found


def assert_one_curve(results: Results, variant: str, losses: float, weights: float) -> None:
    """All layouts saw the same targets, and differ from 1x1 by no more than the given relative tolerances."""
    base = results[1, 1][variant]
    assert np.isfinite(base["loss"]).all()
    for layout, found in results.items():
        for counted in ("positives", "negatives", "applied"):
            np.testing.assert_array_equal(found[variant][counted], base[counted], err_msg=f"{variant} {layout}")
        np.testing.assert_allclose(
            found[variant]["loss"], base["loss"], rtol=losses, atol=1e-7, err_msg=f"{variant} {layout}"
        )
        for vector in ("weights", "ema"):
            distance = np.linalg.norm(found[variant][vector] - base[vector]) / np.linalg.norm(base[vector])
            assert distance <= weights, (variant, layout, vector, distance)


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_the_detector_sees_the_same_in_every_layout(root: Path) -> None:
    # The weights stand still: from random weights the detector's batch norms (2 x 2 cells in eight images) are so
    # badly conditioned that the last bits of a gradient grow tenfold a step. Learning is compared on a tamer net below.
    still = ["optimizer.lr=1e-9", "schedule.min_lr=0", f"data.dir={root / 'full'}"]
    results = train_layouts(root, "detector", {"still": {"tiny": False, "steps": 6, "overrides": still}})
    assert_one_curve(results, "still", losses=1e-5, weights=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_fifty_steps_are_learned_the_same_on_one_and_two_replicas(root: Path) -> None:
    # Every normaliser and scope: tests/training/test_losses.py, on one, two and four replicas of one process.
    image = ["mining.scope=image", "loss.normalizer=positives", f"data.dir={root / 'full'}"]
    globally = ["mining.scope=global", "loss.normalizer=classified", f"data.dir={root / 'sparse'}"]
    none = [f"data.dir={root / 'none'}"]
    variants = {
        "image": {"tiny": True, "steps": 50, "overrides": image},
        "global": {"tiny": True, "steps": 50, "overrides": globally},
        "none": {"tiny": True, "steps": 8, "overrides": none},
        "none_mined": {"tiny": True, "steps": 8, "overrides": [*none, "mining.min_negatives_per_image=2"]},
    }
    results = train_layouts(root, "learned", variants, [(1, 1), (1, 2)])
    for variant in variants:
        # Float32 sums in another order; the small net has no kinks that would blow the differences up.
        assert_one_curve(results, variant, losses=1e-4, weights=1e-3)
    base = results[1, 1]
    assert base["image"]["loss"][-5:].mean() < base["image"]["loss"][:5].mean()
    # Three of 32 images have objects: some steps have none at all.
    assert 0 in base["global"]["positives"]
    assert base["global"]["positives"].max() > 0
    assert not base["none"]["loss"].any()
    assert (base["none_mined"]["negatives"] == 16).all()
    assert (base["none_mined"]["loss"] > 0).all()


@pytest.mark.slow
def test_accumulated_parts_are_the_large_batch(root: Path) -> None:
    # Without moving parts in the batch norm (each part would have statistics of its own) the parts add up exactly.
    frozen = [f"data.dir={root / 'full'}", "backbone.freeze_batch_norm=true", "train.sync_batch_norm=false"]
    variants = {
        f"{parts}_{normalizer}": {
            "tiny": True,
            "steps": 8,
            "overrides": [*frozen, f"train.accumulate_steps={parts}", f"loss.normalizer={normalizer}"],
        }
        for parts in (1, 2, 4)
        for normalizer in ("positives", "classified")
    }
    results = train_layouts(root, "accumulated", variants, [(1, 1), (1, 2)])
    for normalizer in ("positives", "classified"):
        whole = results[1, 1][f"1_{normalizer}"]
        for layout, found in results.items():
            for parts in (1, 2, 4):
                part = found[f"{parts}_{normalizer}"]
                np.testing.assert_array_equal(part["negatives"], whole["negatives"])
                np.testing.assert_allclose(part["loss"], whole["loss"], rtol=1e-5, err_msg=f"{layout} {parts}")
                np.testing.assert_allclose(part["weights"], whole["weights"], rtol=1e-4, atol=1e-5)
