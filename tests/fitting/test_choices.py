"""Tests the choices of ssd-fit as functions of facts: no dataset is read and no network is built."""

import dataclasses
import json
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import flatten_config, load_config
from ssd_dist.core.errors import CheckpointError, DataError, UsageError
from ssd_dist.fitting import choose_config as choose_config_module
from ssd_dist.fitting.choices import (
    Settings,
    choose_batch,
    choose_network,
    choose_training,
    plan_training_seconds,
    raise_input_size,
)
from ssd_dist.fitting.choose_config import check_disk, choose_config, measure_cost
from ssd_dist.fitting.facts import DatasetFacts, MachineFacts, TimeLimit, TrainingCost
from ssd_dist.fitting.run_files import FitFiles, FitRequest

CPU = MachineFacts(gpus=0, memory=8 * 2**30)
CHEAP = TrainingCost(bytes_per_image=2**20, model_bytes=2**24)


def make_facts(side=0.3, images=1000, image_side=640, images_per_class=(50, 50, 50)):
    return DatasetFacts(
        classes=3,
        images={"train": images, "val": 100},
        sizes=np.full((50, 2), image_side),
        box_sizes=np.full((200, 2), side),
        images_per_class=dict(zip("abc", images_per_class, strict=True)),
    )


def choose(facts, machine=CPU, cost=CHEAP, limit=None, replicas=1, source_width=None, **fixed):
    """Returns the values of all choices by key."""
    settings = Settings({key.replace("__", "."): value for key, value in fixed.items()})
    choose_network(settings, facts, machine, source_width)
    choose_batch(settings, facts, machine, replicas)
    choose_training(settings, facts, machine, cost, replicas, limit)
    assert all(choice.reason for choice in settings.choices)
    assert len({choice.key for choice in settings.choices}) == len(settings.choices)
    return {choice.key: choice.value for choice in settings.choices}


@pytest.mark.parametrize("side", [0.02, 0.06, 0.3])
@pytest.mark.parametrize("images", [3, 40, 100_000])
@pytest.mark.parametrize("gpus", [0, 2])
def test_the_choices_are_a_valid_config(side, images, gpus):
    machine = MachineFacts(gpus=gpus, memory=2**32, missing_weights="no network")
    chosen = choose(make_facts(side, images), machine, replicas=max(gpus, 1))
    config = load_config(None, [f"{key}={json.dumps(value)}" for key, value in chosen.items()])
    # An epoch has at least one batch, which divides between the replicas.
    assert config.train.global_batch_size <= max(images, gpus)
    assert config.train.global_batch_size % max(gpus, 1) == 0


def test_a_key_of_the_user_is_not_chosen_and_the_others_follow_from_it():
    chosen = choose(make_facts(), train__steps=400, model__input_size=64, train__global_batch_size=4)
    assert not {"train.steps", "model.input_size", "train.global_batch_size"} & chosen.keys()
    # A twentieth, a fifth and a tenth of 400 steps.
    assert (chosen["schedule.warmup_steps"], chosen["eval.every_steps"], chosen["checkpoint.every_steps"]) == (
        20,
        80,
        40,
    )
    assert "train.steps" not in choose(make_facts(), train__epochs=3)


def test_smaller_objects_get_a_larger_input_and_smaller_anchors():
    inputs = [choose(make_facts(side))["model.input_size"] for side in (0.3, 0.08, 0.06)]
    assert inputs == [224, 300, 400]
    gpu = MachineFacts(gpus=1, memory=2**33)
    assert choose(make_facts(0.03), gpu)["model.input_size"] == 512
    # Enlarging small images adds no detail, and the network is not larger than the GPU or CPU can compute.
    assert choose(make_facts(0.03, image_side=320))["model.input_size"] == 300
    assert choose(make_facts(0.03))["model.input_size"] == 400
    assert "anchors.sizes" not in choose(make_facts(0.1))
    assert choose(make_facts(0.07))["anchors.sizes"][0] == 0.07
    assert choose(make_facts(0.03))["anchors.sizes"][0] == 0.04


def test_small_objects_are_matched_with_lower_bounds_unless_the_user_sets_one():
    bounds = {"matching.positive_iou", "matching.negative_iou"}
    small = choose(make_facts(side=0.06))
    assert (small["matching.positive_iou"], small["matching.negative_iou"]) == (0.4, 0.3)
    assert not bounds & choose(make_facts(side=0.3)).keys()
    assert not bounds & choose(make_facts(side=0.06), matching__negative_iou=0.45).keys()


def test_pretrained_first_blocks_are_frozen_on_a_cpu():
    gpu = MachineFacts(gpus=1, memory=2**33)
    no_weights = MachineFacts(gpus=0, memory=2**33, missing_weights="no connection")
    assert choose(make_facts())["backbone.frozen_blocks"] == 3
    assert not any("backbone.frozen_blocks" in choose(make_facts(), machine) for machine in (gpu, no_weights))
    assert "backbone.frozen_blocks" not in choose(make_facts(), backbone__weights="none")


def test_missing_weights_select_a_small_network_and_the_reason_states_the_cost():
    settings = Settings({})
    choose_network(settings, make_facts(), MachineFacts(gpus=0, memory=2**33, missing_weights="no connection"))
    weights = next(choice for choice in settings.choices if choice.key == "backbone.weights")
    assert weights.value == "none"
    assert "no connection" in weights.reason
    assert "many more images" in weights.reason
    assert settings.value("model.width") == 0.35
    assert choose(make_facts(), backbone__weights="mine.h5")["model.width"] == 1.0


def test_a_detector_to_start_from_replaces_the_pretrained_weights():
    offline = MachineFacts(gpus=0, memory=2**33, missing_weights="no connection")
    chosen = choose(make_facts(), offline, source_width=0.5, model__init_from="RUN")
    # Config refuses a second source of weights.
    assert chosen["backbone.weights"] == "none"
    assert chosen["model.width"] == 0.5
    assert "model.width" not in choose(make_facts(), offline, model__init_from="weights.h5"), "its width is unknown"
    pretrained = choose(make_facts())
    for key in ("backbone.frozen_blocks", "optimizer.lr"):
        assert chosen[key] == pretrained[key]


def test_the_time_limit_decides_the_number_of_steps():
    cost = TrainingCost(2**20, 2**24, seconds_per_image=0.05)
    # A step of 16 images takes 0.8 s. Of 1000 s, 3.5 times 20 s are for the other work, 15 s for six evaluations of 100
    # images at half the cost, and 2.75 s for preparing 1,100 images at a twentieth of the cost; 10 % of the rest is a
    # reserve. Training gets at least a fifth of the time.
    steps = choose(make_facts(), cost=cost, limit=TimeLimit(20, 1000))["train.steps"]
    assert steps == int(0.9 * (1000 - 70 - 15 - 2.75) / 0.8)
    assert choose(make_facts(), cost=cost, limit=TimeLimit(20, 90))["train.steps"] == int(0.2 * 90 / 0.8)
    assert choose(make_facts(), cost=cost, limit=TimeLimit(20, 1))["train.steps"] == 1


@pytest.mark.parametrize(
    ("splits", "evaluated"), [({}, 0), ({"val": 40}, 240), ({"val": 40, "test": 10}, 210), ({"test": 10}, 60)]
)
def test_the_plan_leaves_time_for_the_evaluations(splits, evaluated):
    facts = dataclasses.replace(make_facts(), images={"train": 100} | splits)
    seconds = plan_training_seconds(TimeLimit(spent=0, left=1000), facts, seconds_per_image=0.2)
    prepared = 100 + sum(splits.values())
    assert seconds == pytest.approx(0.9 * (1000 - evaluated * 0.1 - prepared * 0.01))


@pytest.mark.parametrize(
    ("hours", "image_side", "expected"),
    [
        # An epoch of 1,000 images takes 100 s at 224 pixels, 179 s at 300, 319 s at 400 and 522 s at 512.
        (1, 640, 224), (3.19, 640, 300), (3.17, 640, 224), (5.66, 640, 300), (5.68, 640, 400), (9.3, 640, 512),
        (100, 640, 512), (100, 480, 400), (100, 250, 224),
    ],
)  # fmt: skip
def test_the_input_is_as_large_as_the_time_allows_for_64_epochs(hours, image_side, expected):
    settings, facts = Settings({}), make_facts(image_side=image_side)
    choose_network(settings, facts, CPU)
    assert settings.value("model.input_size") == 224
    raised = raise_input_size(settings, facts, seconds_per_image=0.1, training_seconds=3600 * hours)
    assert settings.value("model.input_size") == expected
    assert raised == (expected > 224)
    assert len({choice.key for choice in settings.choices}) == len(settings.choices)


def test_the_cost_of_a_raised_input_is_measured_again(tmp_path, monkeypatch):
    measured = []

    def measure(config, class_count, devices, is_timed):
        assert (config.train.global_batch_size, devices) == (16, 1)
        measured.append(config.model.input_size)
        return TrainingCost(2**20, 2**24, 1e-3 * config.model.input_size if is_timed else None)

    monkeypatch.setattr("ssd_dist.fitting.choose_config.measure_cost", measure)
    train = {"images": 100, "boxes": 1, "sizes": [[640, 640]], "box_sizes": [[0.3, 0.3]]}
    (tmp_path / "fit").mkdir()
    files = FitFiles(tmp_path)
    files.survey.write_text(json.dumps({"classes": ["a"], "splits": {"train": train}}))
    overrides = ("backbone.weights=none",)
    # 46 minutes: at most 0.9 * 2760 s = 2484 s; 64 epochs at 300 pixels take 64 * 100 * 0.224 s * 1.79 = 2571 s.
    short = choose_config(FitRequest("/data", None, overrides, minutes=46, started=time.time()), files)
    assert (short.model.input_size, measured) == (224, [224])
    long = choose_config(FitRequest("/data", None, overrides, minutes=65, started=time.time()), files)
    assert (long.model.input_size, measured[1:]) == (300, [224, 300])
    # 0.9 * 3900 s in steps of 16 images, 0.3 s each; choosing may take 3 minutes, other work three times as long.
    assert long.train.steps == pytest.approx(0.9 * 3900 / (16 * 0.3), abs=4 * 180 * 0.9 / (16 * 0.3))
    choose_config(FitRequest("/data", None, overrides), files)
    assert measured[3:] == [224]


def test_the_input_of_small_objects_is_raised_from_its_size():
    settings, facts = Settings({}), make_facts(side=0.04)
    choose_network(settings, facts, CPU)
    assert settings.value("model.input_size") == 400
    # 64 epochs of 1,000 images at 512 pixels take 1.64 times as long.
    assert not raise_input_size(settings, facts, 0.1, 1.63 * 6400)
    assert raise_input_size(settings, facts, 0.1, 1.65 * 6400)
    assert settings.value("model.input_size") == 512


def test_gpus_share_the_time_of_a_step(monkeypatch):
    batches = []
    monkeypatch.setattr(choose_config_module, "time_training", lambda _, size, batch: batches.append(batch) or 0.1)
    config = load_config(None, ["train.global_batch_size=32", "model.input_size=64", "backbone.weights=none"])
    assert measure_cost(config, 3, devices=4, is_timed=True).seconds_per_image == pytest.approx(0.025)
    assert batches == [8]


@pytest.mark.parametrize(
    ("gpus", "fixed", "images"), [(4, (), 16), (4, ("train.global_batch_size=32",), 8), (0, (), 16)]
)
def test_a_step_is_timed_with_the_images_that_training_gives_a_device(tmp_path, monkeypatch, gpus, fixed, images):
    measured = []

    def measure(config, class_count, devices, is_timed):
        measured.append((config.train.global_batch_size // devices, devices))
        return TrainingCost(2**20, 2**24, 1.0)

    monkeypatch.setattr(choose_config_module, "measure_cost", measure)
    monkeypatch.setattr(choose_config_module, "inspect_machine", lambda _: MachineFacts(gpus, 2**34))
    train = {"images": 500, "boxes": 1, "sizes": [[640, 640]], "box_sizes": [[0.3, 0.3]]}
    (tmp_path / "fit").mkdir()
    files = FitFiles(tmp_path)
    files.survey.write_text(json.dumps({"classes": ["a"], "splits": {"train": train}}))
    request = FitRequest("/data", None, ("backbone.weights=none", *fixed), minutes=30, started=time.time())
    choose_config(request, files)
    assert measured == [(images, max(gpus, 1))]


def test_zero_steps_are_the_epochs_of_the_config():
    # 62 steps per epoch.
    chosen = choose(make_facts(images=1000), train__steps=0, train__epochs=5)
    assert (chosen["eval.every_steps"], chosen["checkpoint.every_steps"]) == (62, 31)
    default = choose(make_facts(images=1000), train__steps=0)
    assert default["eval.every_steps"] == 62 * Config().train.epochs / 5


@pytest.mark.parametrize("fixed", [{"train__accumulate_steps": 32}, {"train__global_batch_size": 1}])
def test_a_batch_that_cannot_be_divided_is_refused(fixed):
    with pytest.raises(UsageError, match=r"is too small for 2 x \d+ parts .*; use at least \d+"):
        choose(make_facts(), replicas=2, **fixed)


@pytest.mark.parametrize("key", ["model.input_size", "train.steps", "train.epochs"])
def test_the_input_size_and_the_length_of_the_user_are_kept(key):
    settings = Settings({key: 100})
    choose_network(settings, make_facts(), CPU)
    before = list(settings.choices)
    assert not raise_input_size(settings, make_facts(), 0.1, 1e9)
    assert settings.choices == before


def test_the_length_follows_from_the_number_of_images_within_bounds():
    steps = [choose(make_facts(images=images))["train.steps"] for images in (20, 1000, 10**6)]
    assert steps == [1200, 4000, 20_000]


def test_augmented_copies_are_limited_by_the_epochs_and_by_their_number():
    assert choose(make_facts(images=1000))["data.views"] == 16
    assert choose(make_facts(images=1000), train__epochs=12)["data.views"] == 2
    assert choose(make_facts(images=20_000))["data.views"] == 2
    assert choose(make_facts(images=100_000))["data.views"] == 1


def test_a_batch_that_does_not_fit_into_memory_is_split():
    costly = TrainingCost(bytes_per_image=2**30, model_bytes=2**24)
    # 16 GiB of activations; half of 8 GiB are available.
    assert choose(make_facts(), cost=costly)["train.accumulate_steps"] == 4
    assert "train.accumulate_steps" not in choose(make_facts())


@pytest.mark.parametrize(
    ("replicas", "parts", "batch", "group"),
    [(1, 1, 16, 16), (2, 1, 16, 8), (1, 4, 16, 4), (1, 1, 40, 10), (1, 1, 15, 15)],
)
def test_the_images_of_a_part_on_a_replica_are_whole_batch_norm_groups(replicas, parts, batch, group):
    fixed = {"train__accumulate_steps": parts, "train__global_batch_size": batch}
    assert choose(make_facts(), replicas=replicas, **fixed)["model.batch_norm_group"] == group
    # The 8 images of each replica are split into two parts.
    costly = TrainingCost(bytes_per_image=2**30, model_bytes=2**24)
    assert choose(make_facts(), cost=costly, replicas=2)["model.batch_norm_group"] == 4


@pytest.mark.parametrize(
    ("images_per_class", "images", "is_chosen"),
    [
        # 10 of the 50 sampled images are 20 %.
        ((50, 30, 10), 1000, True),
        ((50, 30, 15), 1000, False),  # not below 30 %
        ((14, 12, 10), 1000, False),  # all classes are about equally frequent
        ((50, 30, 1), 1000, False),  # a single image cannot teach a class
        ((50, 30, 10), 100_000, False),
    ],
)
def test_images_of_rare_classes_are_repeated_in_small_datasets(images_per_class, images, is_chosen):
    chosen = choose(make_facts(images=images, images_per_class=images_per_class))
    assert chosen.get("data.repeat_threshold") == (0.3 if is_chosen else None)


def test_few_images_have_a_small_batch():
    assert choose(make_facts(images=20))["train.global_batch_size"] == 8


@pytest.mark.parametrize(
    ("splits", "word"),
    [
        ({"test": {"images": 3, "sizes": [[4, 4]], "box_sizes": [[0.5, 0.5]]}}, "no training split"),
        ({"train": {"images": 3, "sizes": [[4, 4]], "box_sizes": []}}, "none of the 3 training images"),
    ],
)
def test_a_dataset_without_training_data_is_refused(tmp_path, splits, word):
    path = tmp_path / "survey.json"
    path.write_text(json.dumps({"classes": ["a"], "splits": splits}))
    with pytest.raises(DataError, match=word):
        DatasetFacts.read(path)


def test_a_survey_of_an_earlier_version_has_no_rare_classes(tmp_path):
    path = tmp_path / "survey.json"
    train = {"images": 3, "sizes": [[4, 4]] * 3, "box_sizes": [[0.5, 0.5]]}
    path.write_text(json.dumps({"classes": ["a"], "splits": {"train": train}}))
    assert DatasetFacts.read(path).count_rare_classes(0.3) == 0


@pytest.mark.parametrize("machine", [CPU, MachineFacts(gpus=2, memory=2**20, missing_weights="no network")])
def test_the_config_of_the_demo_leaves_nothing_to_choose(machine):
    fixed = flatten_config(load_config("demo"), only_set=True)
    assert choose(make_facts(0.02, 1200), machine, replicas=2, **fixed) == {}


def test_a_missing_weight_file_is_reported_before_shards_are_written(tmp_path):
    request = FitRequest("/data", overrides=("backbone.weights=/absent.h5",))
    with pytest.raises(CheckpointError, match=r"/absent.h5 does not exist"):
        choose_config(request, FitFiles(tmp_path))


@pytest.mark.parametrize(("images", "expected"), [(4999, (1.5, 0.6)), (5000, (None, None))])
def test_small_datasets_get_milder_crops(images, expected):
    keys = ("data.augmentation.largest_expansion", "data.augmentation.smallest_crop")
    chosen = choose(make_facts(images=images))
    assert tuple(map(chosen.get, keys)) == expected
    fixed = choose(make_facts(images=images), data__augmentation__smallest_crop=0.9)
    assert (fixed.get(keys[0]), fixed.get(keys[1])) == (expected[0], None)


@pytest.mark.parametrize(("steps", "expected"), [(255, None), (256, 0.05), (5000, 0.05)])
def test_trainings_of_64_epochs_have_more_weight_decay(steps, expected):
    # 64 images in batches of 16.
    assert choose(make_facts(images=64), train__steps=steps).get("optimizer.weight_decay") == expected
    kept = choose(make_facts(images=64), train__steps=steps, optimizer__weight_decay=0.1)
    assert "optimizer.weight_decay" not in kept


def test_a_disk_without_space_for_shards_and_checkpoints_is_reported(tmp_path, monkeypatch):
    config = Config.model_validate({"data": {"views": 10}, "checkpoint": {"keep": 3, "keep_best": 1}})
    facts, cost = make_facts(images=20_000), TrainingCost(bytes_per_image=2**20, model_bytes=10**7)
    # 200,100 images of 300 x 300 pixels, 4 checkpoints of 4 copies, and 4 copies for exports.
    needed = 200_100 * 0.45 * 300**2 + (4 * 4 + 4) * 10**7
    for free, fits in ((needed - 1, False), (needed + 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if fits:
            check_disk(config, facts, cost, tmp_path)
        else:
            with pytest.raises(DataError, match=r"needs about 8\.3 GB, but only 8\.3 GB are free; free disk space"):
                check_disk(config, facts, cost, tmp_path)
