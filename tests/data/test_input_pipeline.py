"""Tests complete input pipelines: batches contain the records, mirrored or not."""

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.synthetic import write_dataset

from ssd_dist.core.boxes import flip_boxes
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.matching import Matcher
from ssd_dist.data.batch import TrainBatch
from ssd_dist.data.corrupt_records import verify_plan
from ssd_dist.data.pipeline import count_eval_steps, eval_batches, plan_training, training_batches
from ssd_dist.data.shard_files import read_split

SIZE = 64
BATCH = 6


def config_of(folder: Path, **augmentation) -> Config:
    return Config.model_validate(
        {
            "data": {"dir": str(folder), "augmentation": augmentation},
            "model": {"input_size": SIZE},
            "train": {"global_batch_size": BATCH, "seed": 5},
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "out"
    manifest = write_dataset(folder, config_of(folder), {"train": 18, "val": 11}, shards=3)
    return config_of(folder), manifest


def create_batches(config: Config, manifest, batch_size: int = BATCH, start: int = 0) -> tf.data.Dataset:
    plan = plan_training(config.data, config.train, manifest.splits["train"])
    return training_batches(
        config.data, config.anchors, config.matching, config.model.input_size, plan, batch_size, start
    )


def read_batches(config: Config, manifest, steps: int, batch_size: int = BATCH, start: int = 0) -> list[TrainBatch]:
    return list(islice(create_batches(config, manifest, batch_size, start).as_numpy_iterator(), steps))


def decode(record) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record.encoded)).convert("RGB"))


@pytest.mark.parametrize("vertical", [False, True])
def test_pixels_and_targets_are_mirrored_together(data, vertical):
    config, manifest = data
    config = config_of(Path(config.data.dir), flip=not vertical, flip_vertical=vertical)
    records = list(read_split(config.data, manifest.splits["train"]))
    images = np.stack([decode(record) for record in records]).astype(int)
    matcher = Matcher(config.anchors, SIZE, config.matching)
    flips, seen = [], []
    for batch in read_batches(config, manifest, 6):
        for row in range(BATCH):
            pixels = batch.images[row].astype(int)
            mirrored = np.flip(images, 1 if vertical else 2)
            errors = np.abs(np.stack([images - pixels, mirrored - pixels])).mean((2, 3, 4))
            flipped, index = np.unravel_index(errors.argmin(), errors.shape)
            assert errors[flipped, index] < 1
            objects = records[index].objects
            boxes = flip_boxes(objects.boxes, vertical) if flipped else objects.boxes
            expected = matcher.match(boxes, objects.labels)
            kept = batch.targets.anchors[row] >= 0
            order = np.argsort(batch.targets.anchors[row][kept])
            np.testing.assert_array_equal(batch.targets.anchors[row][kept][order], expected.anchors)
            np.testing.assert_array_equal(batch.targets.labels[row][kept][order], expected.labels)
            np.testing.assert_allclose(batch.targets.offsets[row][kept][order], expected.offsets, rtol=1e-4, atol=1e-3)
            ignored = batch.targets.ignored[row]
            np.testing.assert_array_equal(np.sort(ignored[ignored >= 0]), expected.ignored)
            flips.append(bool(flipped))
            seen.append(int(index))
    # Two epochs of three steps; about half of all are mirrored.
    assert sorted(seen[:18]) == sorted(seen[18:]) == list(range(18))
    assert 8 < sum(flips) < 28


def test_the_two_flips_are_drawn_independently(data):
    config, manifest = data
    config = config_of(Path(config.data.dir), flip_vertical=True)
    images = np.stack([decode(record) for record in read_split(config.data, manifest.splits["train"])]).astype(int)
    found = np.zeros((2, 2), int)
    for pixels in np.concatenate([batch.images for batch in read_batches(config, manifest, 12)]).astype(int):
        turned = np.stack([images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]])
        which = np.abs(turned - pixels).mean((2, 3, 4)).min(1).argmin()
        found[divmod(int(which), 2)] += 1
    # A quarter of 72 each: 18, standard deviation 3.7.
    assert found.min() > 18 - 4 * 3.7
    assert found.max() < 18 + 4 * 3.7


def test_without_augmentation_an_epoch_contains_the_unchanged_records(data):
    config, manifest = data
    config = config_of(Path(config.data.dir), flip=False, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    images = np.concatenate([batch.images for batch in read_batches(config, manifest, 3)]).astype(int)
    for record in read_split(config.data, manifest.splits["train"]):
        assert np.abs(images - decode(record)).mean((1, 2, 3)).min() < 1
    for batch in read_batches(config, manifest, 1):
        np.testing.assert_allclose(batch.color_maps, np.tile(np.eye(3, 4), (BATCH, 1, 1)), atol=2e-6)


def test_shapes_and_types_of_a_batch(data):
    batch = read_batches(*data, 1)[0]
    longest = batch.targets.anchors.shape[1]
    assert batch.images.shape == (BATCH, SIZE, SIZE, 3)
    assert batch.color_maps.shape == (BATCH, 3, 4)
    assert batch.targets.labels.shape == (BATCH, longest)
    assert batch.targets.offsets.shape == (BATCH, longest, 4)
    assert [part.dtype.name for part in batch.targets] == ["int32", "int32", "float32", "int32"]
    assert (batch.images.dtype, batch.positions.dtype) == (np.uint8, np.int32)
    # Padding is at the end of each row, and the longest row has none.
    padding = batch.targets.anchors < 0
    assert (np.diff(padding.astype(int), axis=1) >= 0).all()
    assert not padding.all(axis=0).any()
    np.testing.assert_array_equal(batch.targets.labels[padding], -1)


def test_smaller_batches_contain_the_same_images_in_the_same_order(data):
    full, halves = read_batches(*data, 3), read_batches(*data, 6, batch_size=BATCH // 2)
    for part in ("images", "color_maps", "positions"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(batch, part) for batch in full]),
            np.concatenate([getattr(batch, part) for batch in halves]),
        )


@pytest.mark.parametrize("targets", ["precomputed", "online"])
def test_a_resumed_pipeline_is_bit_identical(data, targets):
    config, manifest = data
    config = config.model_copy(update={"data": config.data.model_copy(update={"targets": targets})})
    # Two epochs of three steps; the second pipeline starts within the first epoch.
    full, resumed = read_batches(config, manifest, 6), read_batches(config, manifest, 4, start=2)
    for batch, again in zip(full[2:], resumed, strict=True):
        for part, other in zip(tf.nest.flatten(batch), tf.nest.flatten(again), strict=True):
            np.testing.assert_array_equal(part, other)


def test_workers_do_not_have_to_ask_whether_another_batch_follows(data):
    # A distributed iterator sums, before each batch of unknown cardinality, how many workers have one.
    config, manifest = data
    online = config.model_copy(update={"data": config.data.model_copy(update={"targets": "online"})})
    evaluation = eval_batches(config.data, config.model.input_size, manifest.splits["val"], 4, 12)
    for batches in (create_batches(config, manifest), create_batches(online, manifest), evaluation):
        assert batches.cardinality() == tf.data.INFINITE_CARDINALITY


@pytest.mark.parametrize(("batch_size", "workers"), [(4, 1), (11, 1), (16, 1), (2, 3)])
def test_evaluation_reads_every_record_once(data, batch_size, workers):
    config, manifest = data
    split = manifest.splits["val"]
    steps = count_eval_steps(split, batch_size, workers)
    records = list(read_split(config.data, split))
    seen = []
    for worker in range(workers):
        batches = eval_batches(
            config.data, config.model.input_size, split, batch_size, steps * batch_size, worker, workers
        )
        # Two evaluations.
        twice = list(batches.take(2 * steps).as_numpy_iterator())
        for batch, again in zip(twice[:steps], twice[steps:], strict=True):
            np.testing.assert_array_equal(batch.indices, again.indices)
            np.testing.assert_array_equal(batch.images, again.images)
        for batch in twice[:steps]:
            assert len(batch.images) == batch_size
            for image, index in zip(batch.images, batch.indices, strict=True):
                seen.append(int(index))
                if index >= 0:
                    assert np.abs(image.astype(int) - decode(records[index])).mean() < 1
                else:
                    assert not image.any()
    assert sorted(index for index in seen if index >= 0) == list(range(11))
    assert len(seen) == steps * batch_size * workers


def test_an_evaluation_shard_that_changes_during_a_run_is_reported(tmp_path):
    config = config_of(tmp_path)
    manifest = write_dataset(tmp_path, config, {"train": 18, "val": 11}, shards=3)
    train, val = manifest.splits["train"], manifest.splits["val"]
    plan = plan_training(config.data, config.train, train)
    plan, _ = verify_plan(plan, train, SIZE, config.data, val)
    batches = eval_batches(config.data, SIZE, val, 4, 12, guard=plan.guard).as_numpy_iterator()
    assert len(list(islice(batches, 3))) == 3
    first, second = (tmp_path / shard.file for shard in val.views[0].shards[:2])
    # As many records, but of other images.
    first.write_bytes(second.read_bytes())
    with pytest.raises(tf.errors.OpError, match=f"shard {first} changed during training"):
        list(islice(batches, 9))
    assert str(first) in plan.find_change()


def test_more_augmented_copies_than_prepared_are_rejected(data):
    config, manifest = data
    config = config.model_copy(update={"data": config.data.model_copy(update={"views": 2})})
    with pytest.raises(DataError, match=r"data\.views: 2, but .* was prepared with 1"):
        plan_training(config.data, config.train, manifest.splits["train"])


def test_a_damaged_shard_is_reported_before_training(data, tmp_path):
    config, manifest = data
    split = manifest.splits["train"]
    shard = split.views[0].shards[0]
    other = config.data.model_copy(update={"dir": str(tmp_path)})
    with pytest.raises(DataError, match=f"{shard.file} .*does not exist"):
        plan_training(other, config.train, split)
    (tmp_path / "train").mkdir()
    (tmp_path / shard.file).write_bytes(b"short")
    with pytest.raises(DataError, match=f"{shard.file} has 5 bytes"):
        plan_training(other, config.train, split)


def test_the_plan_follows_manifest_and_config(data):
    config, manifest = data
    plan = plan_training(config.data, config.train, manifest.splits["train"], worker=1, workers=3)
    assert (plan.shard_records, plan.shards, plan.steps_per_epoch) == (6, 3, 3)
    assert (plan.worker, plan.workers, plan.seed) == (1, 3, 5)


def test_batches_are_small_apart_from_the_pixels(tmp_path):
    config = Config.model_validate({"data": {"dir": str(tmp_path / "out")}, "train": {"global_batch_size": 16}})
    # COCO has about seven objects per image on average.
    manifest = write_dataset(tmp_path / "out", config, {"train": 16}, shards=2, objects=7)
    (batch,) = read_batches(config, manifest, 1, batch_size=16)
    others = (batch.color_maps, batch.positions, *batch.targets)
    assert batch.images.dtype == np.uint8
    assert batch.images.nbytes == 16 * 300 * 300 * 3
    assert sum(array.nbytes for array in others) < 0.02 * batch.images.nbytes
