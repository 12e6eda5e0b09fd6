"""Tests that images of rare classes appear more often, in an epoch of the same length."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import tensorflow as tf
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import encode_example
from ssd_dist.core.tfrecord_io import frame_record
from ssd_dist.data.order import EpochPlan, read_in_order
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.repeat_factors import UNIT, compute_repeat_factors, resample
from ssd_dist.data.shard_files import read_split

# Labels of the images of two shards, 1-based: label 3 is rare, and some images have no object.
SHARDS = (
    [(1,), (1, 1), (), (2, 1), (3,), (1,), (2,), (1,)],
    [(1,), (2, 3), (1,), (1,), (), (2,), (1, 2), (1,), (1,)],
)
FACTORS = (UNIT, UNIT, UNIT * 3 // 2, 4 * UNIT)


def make_records(shard, number=0):
    features = [
        {
            "image/source_id": [f"{number}-{index}".encode()],
            "image/object/class/label": np.array(labels, np.int64),
            "image/object/is_crowd": np.zeros(len(labels), np.int64),
        }
        for index, labels in enumerate(shard)
    ]
    return [encode_example(each) for each in features]


def weigh(labels):
    """Returns the factor of an image, independently of TensorFlow."""
    return max((Fraction(FACTORS[label], UNIT) for label in labels), default=Fraction(1))


@pytest.fixture
def plan(tmp_path):
    files = []
    for number, shard in enumerate(SHARDS):
        files.append(str(tmp_path / f"{number}.tfrecord"))
        with open(files[-1], "wb") as file:
            file.writelines(map(frame_record, make_records(shard, number)))
    return EpochPlan((tuple(files),), 8, 4, seed=5, largest_shard=9, repeat_factors=FACTORS)


def read(plan, steps, start_step=0):
    """Returns (image id, key of the draws, position) of the records that this worker reads."""
    records = islice(read_in_order(plan, start_step), steps * plan.global_batch_size // plan.workers)
    feature = {"image/source_id": tf.io.FixedLenFeature([], tf.string)}
    return [
        (tf.io.parse_single_example(record, feature)["image/source_id"].numpy().decode(), int(key), int(position))
        for record, key, position in records
    ]


def test_a_factor_is_the_root_of_threshold_by_share():
    # Gupta et al. 2019, section 4.1: max(1, sqrt(t / f)).
    counts = {"common": 80, "at the threshold": 40, "rare": 10, "rarest": 1, "absent": 0}
    factors = compute_repeat_factors(counts, 100, 0.4)
    # The root of 40 is above the largest factor.
    assert np.array(factors) / UNIT == pytest.approx([1, 1, 1, 2, 4, 1], abs=1 / UNIT)


def test_without_rare_classes_or_threshold_there_are_no_factors():
    assert compute_repeat_factors({"a": 50, "b": 60}, 100, 0.5) == ()
    assert compute_repeat_factors({"a": 1, "b": 60}, 100, 0.0) == ()
    assert compute_repeat_factors({}, 0, 0.5) == ()


@pytest.mark.parametrize("shard", SHARDS)
def test_a_record_appears_in_proportion_to_the_largest_factor_of_its_classes(shard):
    records = tf.constant(make_records(shard))
    weights = [weigh(labels) for labels in shard]
    expected = [len(shard) * weight / sum(weights) for weight in weights]
    draws = 200
    totals = np.zeros(len(shard))
    for draw in range(draws):
        indices, repetitions = (part.numpy() for part in resample(records, FACTORS, tf.constant([7, draw])))
        counts = np.bincount(indices, minlength=len(shard))
        assert len(indices) == len(shard)
        assert all(abs(count - mean) < 1 for count, mean in zip(counts, expected, strict=True))
        # The appearances of a record are numbered from 0.
        numbers = [number for count in counts for number in range(count)]
        assert (sorted(indices), repetitions.tolist()) == (indices.tolist(), numbers)
        totals += counts
    # A count has a variance of at most 1/4; four standard errors of its mean are 0.14.
    assert totals / draws == pytest.approx(np.array(expected, float), abs=4 * 0.5 / draws**0.5)


def test_records_are_those_at_equidistant_points_of_the_cumulated_factors():
    shard = SHARDS[0]
    # The offset is drawn; all other values follow from it.
    seed = tf.constant([1, 2])
    units = [int(weigh(labels) * UNIT) for labels in shard]
    offset = int(tf.random.stateless_uniform([], seed, 0, sum(units), tf.int64))
    expected = []
    for number in range(len(shard)):
        point = Fraction(offset + number * sum(units), len(shard))
        expected.append(next(i for i in range(len(shard)) if point < sum(units[: i + 1])))
    assert resample(tf.constant(make_records(shard)), FACTORS, seed).indices.numpy().tolist() == expected


def test_an_epoch_keeps_its_length_and_repeats_rare_images(plan):
    assert plan.steps_per_epoch == replace(plan, repeat_factors=()).steps_per_epoch == 4
    epochs = 30
    counts = Counter(name for name, _, _ in read(plan, 4 * epochs))
    for number, shard in enumerate(SHARDS):
        weights = [weigh(labels) for labels in shard]
        for index, weight in enumerate(weights):
            mean = epochs * 8 * weight / sum(weights)
            # Every image appears. Standard error: at most 1/2 per epoch for the choice, and as much for the omitted
            # record of the larger shard.
            assert counts[f"{number}-{index}"] == pytest.approx(float(mean), abs=4 * 0.7 * epochs**0.5)
            assert counts[f"{number}-{index}"] > 0


def test_equal_factors_choose_every_record_once(plan):
    same = replace(plan, repeat_factors=(UNIT,) * 4)
    assert {key: len(names) for key, names in group_by_key(read(same, 12)).items()} == {0: 16, 1: 16, 2: 16}
    assert all(len({*names}) == 16 for names in group_by_key(read(same, 12)).values())


def group_by_key(records):
    groups = {}
    for name, key, _ in records:
        groups.setdefault(key, []).append(name)
    return groups


def test_each_appearance_in_an_epoch_has_its_own_draws(plan):
    steps = 40
    keys = [(name, key) for name, key, _ in read(plan, steps)]
    assert len({*keys}) == len(keys)
    # An image that appears once has the draws of the epoch.
    assert [key % 2**32 for _, key in keys] == [step // 4 for step in range(steps) for _ in range(4)]
    assert {key >> 32 for _, key in keys} >= {0, 1, 2}


def test_appearances_are_shuffled(plan):
    names = [name for name, _, _ in read(plan, 400)]
    pairs = sum(first == second for first, second in zip(names[::2], names[2::2], strict=False))
    # The rare image is 4/11.5 of its shard; were its appearances neighbors, over a quarter of the pairs would be equal.
    assert pairs / (len(names) / 2) < 0.2


def test_the_global_batch_is_the_same_for_any_number_of_workers(plan):
    alone = read(plan, 12)
    parts = [read(replace(plan, worker=worker, workers=2), 12) for worker in range(2)]
    together = [each for step in range(24) for each in (parts[0][step], parts[1][step])]
    assert together == alone


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_resuming_at_a_step_equals_skipping_to_it(plan, start):
    assert read(plan, 5, start) == read(plan, start + 5)[4 * start :]


def test_large_shards_are_resampled_in_blocks(tmp_path, monkeypatch):
    # Blocks have 16 records.
    monkeypatch.setattr("ssd_dist.data.order.SHUFFLE_RECORDS", 1)
    path = tmp_path / "0.tfrecord"
    labels = [(3,) if index % 10 == 0 else (1,) for index in range(50)]
    path.write_bytes(b"".join(map(frame_record, make_records(labels))))
    plan = EpochPlan(((str(path),),), 50, 10, seed=0, largest_shard=50, repeat_factors=FACTORS)
    names = Counter(name for name, _, _ in read(plan, 50))
    assert names.total() == 500
    rare = sum(count for name, count in names.items() if int(name[2:]) % 10 == 0)
    # 5 of 50 images, four times as often: 20 / 65 of the appearances. Each block of 16 has one or two of them, so its
    # share lies between 4 / 19 and 8 / 22.
    assert 500 * 4 / 19 < rare < 500 * 8 / 22
    assert len(names) == 50


def test_crowds_do_not_count():
    records = [
        encode_example({"image/object/class/label": np.array(labels), "image/object/is_crowd": np.array(crowds)})
        for labels, crowds in (([1, 3], [0, 1]), ([3, 3], [1, 0]), ([1], [0]), ([1], [0]))
    ]
    draws = [resample(tf.constant(records), FACTORS, tf.constant([0, draw])).indices.numpy() for draw in range(64)]
    # Weights of 1, 4, 1 and 1: 4/7 of the appearances show the image whose label 3 is no crowd.
    counts = np.bincount(np.concatenate(draws)) / 64
    # Four standard errors, as above.
    assert counts == pytest.approx(4 * np.array([1, 4, 1, 1]) / 7, abs=4 * 0.5 / 64**0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A config and its training split of 24 images with one object each."""
    folder = tmp_path_factory.mktemp("data") / "out"
    values = {
        "data": {"dir": str(folder), "repeat_threshold": 0.9},
        "model": {"input_size": 32},
        "train": {"global_batch_size": 6, "seed": 1},
    }
    config = Config.model_validate(values)
    return config, write_dataset(folder, config, {"train": 24}, objects=1).splits["train"]


def test_the_factors_of_a_run_follow_from_its_manifest(data):
    config, split = data
    labels = [record.objects.labels[0] for record in read_split(config.data, split)]
    expected = [min(max((0.9 * 24 / labels.count(label)) ** 0.5, 1), 4) for label in (1, 2, 3)]
    plan = plan_training(config.data, config.train, split)
    assert np.array(plan.repeat_factors) / UNIT == pytest.approx([1, *expected], abs=1 / UNIT)


def test_a_manifest_without_counts_is_refused(data):
    config, split = data
    views = tuple(view.model_copy(update={"images_per_class": None}) for view in split.views)
    earlier = split.model_copy(update={"views": views})
    with pytest.raises(DataError, match=r"repeat_threshold.*earlier version.*prepare again"):
        plan_training(config.data, config.train, earlier)
    off = config.data.model_copy(update={"repeat_threshold": 0.0})
    assert plan_training(off, config.train, earlier).repeat_factors == ()


@pytest.mark.parametrize("targets", ["precomputed", "online"])
def test_each_appearance_is_augmented_differently(data, targets):
    config, split = data
    config = config.model_copy(update={"data": config.data.model_copy(update={"targets": targets})})
    plan = plan_training(config.data, config.train, split)
    plan = replace(plan, repeat_factors=(UNIT, UNIT, UNIT, 8 * UNIT))
    batches = training_batches(config.data, config.anchors, config.matching, 32, plan, 6, 0)
    assert len({name for name, _, _ in read(plan, plan.steps_per_epoch)}) < 24
    maps = np.concatenate([batch.color_maps for batch in batches.take(plan.steps_per_epoch).as_numpy_iterator()])
    assert len(np.unique(maps.reshape(len(maps), -1), axis=0)) == len(maps) == 24
