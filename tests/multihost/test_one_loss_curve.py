"""One loss curve: all layouts (workers x replicas of each) give equal losses and weights on the same batches.

`make test` runs one test, with a small network in three layouts. `make test-long` runs the others, with more variants,
layouts and steps, and with the real detector.
"""

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from multihost.curve_worker import REPORTED
from multihost.processes import read_logs, start_workers, wait_for_exit
from support.synthetic import write_dataset

from ssd_dist.core.config_files import load_config
from ssd_dist.training.precision import INITIAL_SCALE

# By layout (workers, replicas per worker) and variant: the arrays that each worker wrote.
Results: TypeAlias = dict[tuple[int, int], dict[str, list[dict[str, np.ndarray]]]]

# Tracing takes most of the time. On a busy machine it was seen to take eight times as long as on an idle one.
LAYOUT_SECONDS, TEST_SECONDS = 900, 1800
SHORT_LAYOUTS = ((1, 1), (2, 1), (2, 2))
LAYOUTS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4))
# Their batches and shards must be divisible by three.
LAYOUTS_OF_THREE = ((1, 1), (3, 1), (2, 3))
SMALL = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8",
         "model.batch_norm_group=8", "train.log_every=1"]  # fmt: skip
FROZEN = ["backbone.freeze_batch_norm=true", "model.batch_norm_group=1", "loss.normalizer=classified"]
# Everything that could break exact reduction, together: float16, accumulation, global mining and a skipped step.
EXACT = ["train.reduction=exact", "model.batch_norm_group=2", "train.global_batch_size=16", "train.accumulate_steps=2",
         "mining.scope=global", "amp.enabled=true", "amp.policy=mixed_float16"]  # fmt: skip
OVERFLOW_AT = 3


def tiny(steps: int, data: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    """Returns a variant that trains the small network of `curve_worker.py`.

    The small network does not amplify rounding differences. The detector's float32 gradients change abruptly where
    rounding moves an activation across a corner of ReLU6 (docs/clusters.md).
    """
    return {"tiny": True, "steps": steps, "overrides": [f"data.dir={data}", *overrides], **options}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes three datasets: `full` has objects in every image, `sparse` in three of 32, `none` in no image."""
    folder = tmp_path_factory.mktemp("curve")
    (folder / "small.yaml").write_text("{}")
    config = load_config(folder / "small.yaml", SMALL)
    write_dataset(folder / "full", config, {"train": 32}, shards=4)
    write_dataset(folder / "sparse", config, {"train": 32}, shards=4, objects=[2, 1, 0, 0, 0, 3] + [0] * 26)
    write_dataset(folder / "none", config, {"train": 32}, shards=4, objects=0)
    return folder


def train_layouts(root: Path, name: str, variants: dict[str, dict], layouts=LAYOUTS, base=SMALL) -> Results:
    """Trains the variants in every layout; all variants of a layout run in the same processes."""
    results: Results = {}
    for workers, replicas in layouts:
        output = root / f"{name}_{workers}x{replicas}"
        output.mkdir()
        overrides = [*base, f"cluster.logical_cpus={replicas}"]
        job = {"base": str(root / "small.yaml"), "overrides": overrides, "variants": variants, "output": str(output)}
        (output / "job.json").write_text(json.dumps(job))
        command = [str(Path(__file__).with_name("curve_worker.py")), str(output / "job.json")]
        with start_workers(command, workers, output) as processes:
            assert wait_for_exit(processes, LAYOUT_SECONDS) == [0] * workers, read_logs(output)
        results[workers, replicas] = {
            key: [dict(np.load(output / f"{key}-{worker}.npz")) for worker in range(workers)] for key in variants
        }
        assert_replica_counts(results[workers, replicas], workers, replicas)
    return results


def assert_replica_counts(found: dict[str, list[dict[str, np.ndarray]]], workers: int, replicas: int) -> None:
    """Checks that every worker trained with `workers * replicas` replicas in total, `replicas` of them its own."""
    for variant, outputs in found.items():
        assert len(outputs) == workers
        for output in outputs:
            assert output["replicas"] == workers * replicas, (variant, workers, replicas)
            assert "copies" not in output or len(output["copies"]) == replicas, (variant, workers, replicas)


def assert_equal_curves(
    results: Results, variant: str, losses: float, weights: float, of: str = "", statistics: float | None = None
) -> None:
    """Checks that all layouts had the same targets and differ from variant `of` in 1x1 by at most the tolerances.

    All tolerances are relative. `statistics` is that of the moving statistics; None means that of the weights.
    """
    base = results[1, 1][of or variant][0]
    assert np.isfinite(base["loss"]).all()
    for layout, found in results.items():
        chief, note = found[variant][0], f"{variant} {layout}"
        for counted in ("positives", "negatives", "applied"):
            np.testing.assert_array_equal(chief[counted], base[counted], err_msg=note)
        # A loss of 0 (nothing counted) must be 0 in every layout.
        np.testing.assert_allclose(chief["loss"], base["loss"], rtol=losses, err_msg=note)
        for vector, most in (("weights", weights), ("ema", weights), ("statistics", statistics or weights)):
            distance = np.linalg.norm(chief[vector] - base[vector]) / np.linalg.norm(base[vector])
            assert distance <= most, (variant, layout, vector, distance)
        assert_equal_copies(found[variant], note)


def assert_equal_copies(workers: list[dict[str, np.ndarray]], note: str) -> None:
    """Checks that weights, averages, statistics, scale and counters are equal bit for bit on all replicas."""
    copies = np.concatenate([worker["copies"] for worker in workers])
    np.testing.assert_array_equal(copies, np.broadcast_to(copies[0], copies.shape), err_msg=note)


def assert_equal_bits(results: Results) -> None:
    """Checks that variant `bits` has the same reports, weights, statistics and averages in all layouts, bit for bit."""
    base = results[1, 1]["bits"][0]
    for layout, found in results.items():
        for worker in found["bits"]:
            for key in (*REPORTED, "applied", "weights", "statistics", "ema"):
                np.testing.assert_array_equal(worker[key], base[key], err_msg=f"{key} {layout}")
        assert_equal_copies(found["bits"], str(layout))


def assert_equal_gradients(results: Results) -> None:
    """Checks that variant `gradient` has the same gradient in all layouts.

    Everything but the ranks of mined losses is float64; the measured difference is about 1e-16.
    """
    one = results[1, 1]["gradient"][0]["gradient"]
    assert np.linalg.norm(one) > 0
    for layout, found in results.items():
        distance = np.linalg.norm(found["gradient"][0]["gradient"] - one) / np.linalg.norm(one)
        assert distance < 1e-6, (layout, distance)


@pytest.mark.slow
@pytest.mark.timeout(TEST_SECONDS)
def test_two_workers_have_the_losses_gradient_and_bits_of_one(root: Path) -> None:
    sparse = root / "sparse"
    variants = {
        # The first variant decides the number of threads per operation, which exact reduction needs undivided.
        "bits": tiny(8, root / "full", *EXACT, overflow_at=OVERFLOW_AT),
        "curve": tiny(10, sparse, "mining.scope=global", "model.batch_norm_group=2"),
        "gradient": tiny(1, root / "full", *FROZEN, "mining.scope=global", "amp.force_fp32=[]", gradient=True),
    }
    results = train_layouts(root, "short", variants, SHORT_LAYOUTS)
    assert_equal_curves(results, "curve", losses=1e-4, weights=1e-3)
    assert results[1, 1]["curve"][0]["positives"].max() > 0
    assert_equal_gradients(results)
    assert_equal_bits(results)
    # An infinity on the last replica of the last worker skips one step on all replicas.
    assert {int(worker["applied"]) for found in results.values() for worker in found["bits"]} == {7}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(TEST_SECONDS)
def test_all_layouts_have_the_same_loss_curve(root: Path) -> None:
    full, sparse, none = root / "full", root / "sparse", root / "none"
    globally, grouped = "mining.scope=global", "model.batch_norm_group=2"
    # A few pairs of normalizer and scope are enough: only the sum of the counts differs between workers, and all pairs
    # use it. tests/training/test_losses.py tests every pair with four replicas of one process; test_accumulation.py
    # tests more accumulation steps.
    variants = {
        "image": tiny(50, full),
        "frozen": tiny(50, full, *FROZEN),
        "frozen_parts": tiny(50, full, *FROZEN, "train.accumulate_steps=2"),
        "global": tiny(50, sparse, globally, grouped),
        "none": tiny(8, none, "loss.normalizer=images", "mining.min_negatives_per_image=2"),
        "gradient": tiny(1, full, *FROZEN, globally, "amp.force_fp32=[]", gradient=True),
        "overflow": tiny(101, full, "amp.enabled=true", "amp.policy=mixed_float16", overflow_at=OVERFLOW_AT),
    }
    results = train_layouts(root, "layouts", variants)
    base = {variant: workers[0] for variant, workers in results[1, 1].items()}

    for variant in ("image", "global", "none"):
        # Float32 sums in a different order, also in batch norm.
        assert_equal_curves(results, variant, losses=1e-4, weights=1e-3)
    assert base["image"]["loss"][-5:].mean() < base["image"]["loss"][:5].mean()
    # Without batch statistics only the gradients' sums are in a different order; accumulated parts equal the batch.
    assert_equal_curves(results, "frozen", losses=1e-5, weights=1e-5)
    assert_equal_curves(results, "frozen_parts", losses=1e-5, weights=1e-5, of="frozen")

    # At most three of a batch's eight images have objects, so some of four replicas have none. In some steps no replica
    # has any.
    positives = base["global"]["positives"]
    assert positives.max() > 0
    assert (positives == 0).any()
    assert not base["global"]["loss"][positives == 0].any()
    # Two epochs without any object.
    assert not base["none"]["positives"].any()
    assert (base["none"]["negatives"] == 16).all()
    assert (base["none"]["loss"] > 0).all()

    assert_equal_gradients(results)
    for layout, found in results.items():
        # An infinity on the last replica of the last worker skips one step and halves the scale on all replicas.
        for worker in found["overflow"]:
            assert worker["applied"] == 100, layout
            scale = np.where(np.arange(1, 102) < OVERFLOW_AT, INITIAL_SCALE, INITIAL_SCALE / 2)
            np.testing.assert_array_equal(worker["loss_scale"], scale, err_msg=str(layout))
        # After 100 applied steps the averages are equal bit for bit, too.
        assert_equal_copies(found["overflow"], str(layout))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(TEST_SECONDS)
def test_three_workers_and_three_replicas_have_the_same_loss_curve(root: Path) -> None:
    three = root / "three"
    write_dataset(three, load_config(root / "small.yaml", SMALL), {"train": 24}, shards=6)
    variants = {"image": tiny(6, three), "frozen": tiny(6, three, *FROZEN, "mining.scope=global")}
    twelve = ["train.global_batch_size=12", "model.batch_norm_group=12"]
    results = train_layouts(root, "three", variants, LAYOUTS_OF_THREE, [*SMALL, *twelve])
    # The tolerances are those of the other layouts.
    assert_equal_curves(results, "image", losses=1e-4, weights=1e-3)
    assert_equal_curves(results, "frozen", losses=1e-5, weights=1e-5)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(TEST_SECONDS)
def test_the_detector_has_one_gradient_in_every_layout(root: Path) -> None:
    # The real detector with synchronized batch norm, one step in float64. 2x2 covers what the other layouts do; they
    # gave the same result when tried.
    exact = {"tiny": False, "gradient": True, "overrides": [f"data.dir={root / 'full'}", "amp.force_fp32=[]"]}
    results = train_layouts(root, "exact", {"exact": exact}, ((2, 2),))
    results |= train_layouts(root, "exact", {"exact": exact | {"nudges": [1e-10, 1e-6]}}, ((1, 1),))
    base = results[1, 1]["exact"][0]
    assert base["positives"] > 0

    def distance(found: dict[str, np.ndarray], vector: str, nudge: str = "") -> float:
        return np.linalg.norm(found[vector + nudge] - base[vector]) / np.linalg.norm(base[vector])

    for layout, found in results.items():
        for worker in found["exact"]:
            # Measured: 3e-13 and 5e-15, from the order of float64 sums, amplified by the layers.
            assert distance(worker, "gradient") < 1e-10, layout
            assert distance(worker, "statistics") < 1e-12, layout
    # No test compares this detector's gradients in float32, because weights that differ by a few float32 roundings
    # change them by more than 1e-3. The change is not proportional: when an activation crosses a corner of ReLU6, its
    # share of the gradient appears or disappears. With smaller differences no activation crosses a corner, and the
    # gradient changes by some hundred times the difference. The limit varies: initial weights differ in their last bits
    # between processors, and on some a difference of 1e-7 crosses no corner.
    small, large = (distance(base, "gradient", nudge) for nudge in (" 1e-10", " 1e-06"))
    assert 0 < small < 1e3 * 1e-10
    assert large > 1e3 * 1e-6
    assert large / 1e-6 > 10 * small / 1e-10
    # Statistics are continuous: measured were 46 times the difference.
    assert 0 < distance(base, "statistics", " 1e-06") < 1e3 * 1e-6


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(TEST_SECONDS)
def test_the_detector_has_the_same_losses_in_float32(root: Path) -> None:
    # The weights stay constant (see `tiny`): tests forward pass, batch norm in groups and losses of the detector.
    still = ["optimizer.lr=1e-9", "schedule.min_lr=0", "model.batch_norm_group=4", f"data.dir={root / 'full'}"]
    variants = {"still": {"tiny": False, "steps": 4, "overrides": still}}
    results = train_layouts(root, "detector", variants, ((1, 1), (2, 1)))
    # Float32 rounding (6e-8) grows through seventy batch norms: measured relative differences are 1.3e-5 for the moving
    # statistics and 3e-6 for the losses.
    assert_equal_curves(results, "still", losses=1e-5, weights=1e-6, statistics=1e-4)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(TEST_SECONDS)
def test_exact_reduction_gives_the_detector_the_same_bits_in_every_layout(root: Path) -> None:
    overrides = [*EXACT, f"data.dir={root / 'full'}"]
    variants = {"bits": {"tiny": False, "steps": 50, "overrides": overrides, "overflow_at": OVERFLOW_AT}}
    results = train_layouts(root, "bits", variants, ((1, 1), (2, 1), (2, 2)))
    base = results[1, 1]["bits"][0]
    # The initial loss scale overflows in some more steps.
    assert 25 < base["applied"] < 50
    assert base["loss"][-5:].mean() < base["loss"][:5].mean()
    assert_equal_bits(results)
