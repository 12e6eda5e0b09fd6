"""The division of the global batch: parts and batch-norm groups hold the same images in every layout."""

import itertools

import pytest

from ssd_dist.core.config import Config
from ssd_dist.core.errors import UsageError
from ssd_dist.training.batch_division import BatchDivision, divide_batch


def config_of(images: int, group: int, parts: int = 1, jit_compile: bool = False, reduction: str = "fast") -> Config:
    train = {
        "global_batch_size": images, "accumulate_steps": parts, "jit_compile": jit_compile, "reduction": reduction
    }  # fmt: skip
    return Config.model_validate({"model": {"batch_norm_group": group}, "train": train})


def locate_groups(config: Config, workers: int, replicas: int) -> set[tuple[int, frozenset[int]]]:
    """Returns the part and the positions of each group, as the replicas of a layout process them."""
    division = divide_batch(config, workers * replicas)
    at_once, parts = division.images_at_once, division.parts
    groups: dict[tuple[int, int, int], list[int]] = {}
    for worker in range(workers):
        # A worker reads the positions congruent to its index and deals them in this order, one replica after another.
        order = division.order_records(workers)
        positions = [range(worker, division.images, workers)[index] for index in order]
        assert sorted(positions) == list(range(worker, division.images, workers))
        for place, position in enumerate(positions):
            replica, within = divmod(place, at_once * parts)
            part, image = divmod(within, at_once)
            key = (
                (part, 0, 0)
                if division.is_synchronized
                else (part, worker * replicas + replica, image // division.group)
            )
            groups.setdefault(key, []).append(position)
    return {(part, frozenset(positions)) for (part, _, _), positions in groups.items()}


@pytest.mark.parametrize(("images", "parts"), [(16, 1), (48, 1), (32, 2), (96, 4)])
def test_groups_hold_the_same_images_in_every_layout(images: int, parts: int) -> None:
    whole = images // parts
    for group in (size for size in range(1, whole + 1) if whole % size == 0):
        config = config_of(images, group, parts)
        single = locate_groups(config, 1, 1)
        assert all(len(positions) == group for _, positions in single)
        assert sorted(itertools.chain(*(positions for _, positions in single))) == list(range(images))
        layouts = 0
        for workers, replicas in itertools.product((1, 2, 3, 4), repeat=2):
            if whole % (workers * replicas):
                continue
            if (whole // (workers * replicas)) % group and group != whole:
                with pytest.raises(UsageError):
                    divide_batch(config, workers * replicas)
                continue
            layouts += 1
            assert locate_groups(config, workers, replicas) == single, (group, workers, replicas)
        assert layouts > 1 or group > whole // 2


def test_one_replica_with_one_group_keeps_the_order() -> None:
    assert BatchDivision(16, replicas=1, parts=2, group=8).order_records(1) == list(range(16))


@pytest.mark.parametrize(
    ("config", "replicas", "words"),
    [
        # Larger than a replica's 4 images, and not the whole batch.
        (config_of(16, 8), 4, ["model.batch_norm_group: 8", "4 replicas", "use 1, 2, 4, 16 (synchronized"]),
        (config_of(12, 4), 2, ["6 images", "use 1, 2, 3, 6, 12 (synchronized"]),
        (config_of(6, 4), 1, ["model.batch_norm_group: 4", "use 1, 2, 3, 6, or another number"]),
        # Groups are formed within a part.
        (config_of(16, 8, parts=4), 1, ["4 parts (train.accumulate_steps)", "use 1, 2, 4, or another number"]),
        (config_of(16, 4), 3, ["train.global_batch_size: 16", "3 replicas", "use 15 or 18"]),
        (config_of(2, 1), 4, ["train.global_batch_size: 2", "4 replicas", "use 4"]),
        (config_of(16, 16, reduction="exact"), 4, ["model.batch_norm_group: 16", "exact", "use 1, 2, 4, or another"]),
        (config_of(8, 8, jit_compile=True), 2, ["train.jit_compile", "model.batch_norm_group: 8", "at most 4"]),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_with_the_valid_values(
    config: Config, replicas: int, words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        divide_batch(config, replicas)
    for word in words:
        assert word in str(caught.value)


def test_a_group_of_the_whole_batch_is_compiled_on_one_replica() -> None:
    assert not divide_batch(config_of(8, 8, jit_compile=True), 1).is_synchronized


@pytest.mark.parametrize(
    ("reduction", "replicas", "at_once", "passes"),
    [("fast", 1, 12, 2), ("fast", 2, 6, 2), ("exact", 1, 3, 8), ("exact", 4, 3, 2)],
)
def test_exact_reduction_processes_one_group_at_once(reduction: str, replicas: int, at_once: int, passes: int) -> None:
    division = divide_batch(config_of(24, 3, parts=2, reduction=reduction), replicas)
    assert (division.images_at_once, division.passes) == (at_once, passes)
    assert division.is_in_parts
    # Groups have the same images in the same order as with the other reduction.
    other = divide_batch(config_of(24, 3, parts=2), replicas)
    assert division.order_records(1) == other.order_records(1)
