"""The battery: the reference does not depend on what ssd-fit chooses; recorded results belong to one set of choices."""

import json
import os
import re

import numpy as np
import pytest
import yaml
from support.synthetic import write_dataset

from benchmarks.battery import __main__ as battery
from benchmarks.battery.__main__ import RESULTS, Run, length_flags
from benchmarks.battery.compute import count_multiply_adds, plan_equal_work
from benchmarks.battery.detectors import merge_datasets
from benchmarks.battery.folders import SETS, SMALL_SETS, build_folder, choose_sources
from benchmarks.battery.page import write_battery_page
from benchmarks.battery.table import print_table
from benchmarks.battery.variants import AFTER, BEFORE, FROM_DETECTOR, VARIANTS
from benchmarks.run_queue import read_results
from ssd_dist.core.config import DataConfig
from ssd_dist.core.config_files import flatten_config, load_config
from ssd_dist.data.shard_files import load_manifest, read_split
from ssd_dist.fitting.choices import CROPS_OF_FEW_IMAGES, Settings, choose_batch, choose_network, choose_training
from ssd_dist.fitting.facts import DatasetFacts, MachineFacts, TrainingCost

SMALL = ["model.input_size=64", "backbone.weights=none"]
TINY_OBJECTS = DatasetFacts(3, {"train": 1000, "val": 100}, np.full((50, 2), 640), np.full((200, 2), 0.02), {"a": 50})
CPU = MachineFacts(gpus=0, memory=2**34)


def choose(run):
    """Returns the choices of ssd-fit for a run, by key."""
    settings = Settings(flatten_config(load_config(run.config, run.overrides), only_set=True))
    choose_network(settings, TINY_OBJECTS, CPU)
    choose_batch(settings, TINY_OBJECTS, CPU, replicas=1)
    choose_training(settings, TINY_OBJECTS, CPU, TrainingCost(2**20, 2**24), replicas=1)
    return {choice.key: choice.value for choice in settings.choices}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_is_a_valid_config_and_its_values_are_not_chosen(variant):
    run = Run(variant, "bccd", 0, "dev", "steps=10")
    assert not {override.partition("=")[0] for override in variant.overrides} & choose(run).keys()


def test_only_the_length_of_the_reference_is_chosen():
    assert choose(Run(BEFORE, "bccd", 0, "dev", "steps=10")).keys() == {"train.steps", "eval.every_steps"}


def test_results_of_ssd_fit_were_recorded_with_its_choices_of_today():
    results = read_results(RESULTS)
    assert len({result["key"] for result in results}) == len(results) > 0
    chosen = choose(Run(AFTER, "bccd", 0, "dev", "steps=10"))
    for result in results:
        if result["variant"] == AFTER.name:
            made = flatten_config(load_config(None, result["overrides"]), only_set=True) | result["choices"]
            for key in ("backbone.frozen_blocks", "optimizer.lr", *CROPS_OF_FEW_IMAGES):
                assert made.get(key) == chosen[key]


def test_merged_datasets_have_the_images_and_boxes_of_all(tmp_path):
    prepared = {name: tmp_path / name for name in ("first", "second")}
    for seed, folder in enumerate(prepared.values()):
        write_dataset(folder, load_config("base", SMALL), {"train": 4, "val": 2 + seed}, shards=2)
    merge_datasets(prepared, tmp_path / "merged")
    for split, images in {"train": 8, "val": 5}.items():
        document = json.loads((tmp_path / "merged" / split / "_annotations.coco.json").read_text())
        assert len(document["images"]) == images
        assert len({image["file_name"] for image in document["images"]}) == images
        records = []
        for config in (DataConfig(dir=str(folder)) for folder in prepared.values()):
            records += read_split(config, load_manifest(config).split(split, config.dir))
        # [x, y, width, height] in pixels.
        boxes = np.concatenate([record.objects.boxes[:, [1, 0, 3, 2]] for record in records]) * 64
        found = np.array([annotation["bbox"] for annotation in document["annotations"]])
        # float32 has 24 bits for numbers up to 64.
        np.testing.assert_allclose(found[:, :2], boxes[:, :2], atol=1e-4)
        np.testing.assert_allclose(found[:, :2] + found[:, 2:], boxes[:, 2:], atol=1e-4)
        files = {path.name for path in (tmp_path / "merged" / split).glob("*.jpg")}
        assert files == {image["file_name"] for image in document["images"]}
        names = [category["name"] for category in document["categories"]]
        assert {name.partition(" ")[0] for name in names} == {"first", "second"}


def test_a_detector_to_start_from_has_not_seen_the_dataset():
    for dataset in (*SETS, *SMALL_SETS):
        sources = choose_sources(dataset)
        assert len(set(sources)) == 3
        assert dataset not in sources
        run = Run(FROM_DETECTOR, dataset, 0, "dev", "steps=10")
        assert f"model.init_from={run.detector}" in run.overrides
        assert not any(override.startswith("backbone.weights") for override in run.overrides)


def test_subsets_of_training_images_are_nested_and_keep_the_validation_images(tmp_path):
    lists = tmp_path / "data/bccd/BCCD/ImageSets/Main"
    lists.mkdir(parents=True)
    names = [f"image_{number:03}" for number in range(205)]
    (lists / "train.txt").write_text("\n".join(names))
    (lists / "val.txt").write_text("validation\n")
    subsets = []
    for name in ("bccd_25", "bccd_50", "bccd_100", "bccd"):
        folder = build_folder(name, "dev", tmp_path / "data", tmp_path / "folders") / "ImageSets/Main"
        assert (folder / "val.txt").read_text() == "validation\n"
        subsets.append(set((folder / "train.txt").read_text().split()))
    assert [len(subset) for subset in subsets] == [25, 50, 100, 205]
    assert subsets[0] < subsets[1] < subsets[2] < subsets[3] == set(names)


def test_table_has_means_over_seeds_and_a_mean_over_the_battery_only_for_complete_rows(capsys):
    def result(variant, dataset, seed, ap):
        return {
            "variant": variant, "dataset": dataset, "seed": seed, "AP": ap, "protocol": "test", "budget": "steps=1",
            "multiply_adds": {"chess": 812_345_678}.get(dataset, 1_412_345_678),
        }  # fmt: skip

    values = dict(zip(SETS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.9), strict=True))
    results = [result("complete", name, seed, ap + seed / 100) for name, ap in values.items() for seed in (0, 2)]
    results += [result("partial", "bccd", 0, 0.25), result("complete", "bccd_50", 0, 0.7)]
    results.append(result("complete", "bccd", 1, 0.0) | {"protocol": "dev"})
    print_table(results, "test", "steps=1")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| complete", "| partial"))]
    # The mean of 10, 20, 30, 40, 50 and 90, each with a second seed that is 2 higher, is 41; the subset is not in it.
    assert rows == [
        "| complete | 812 to 1412 | 11.0 | 21.0 | 31.0 | 41.0 | 51.0 | 91.0 | 70.0 | 41.0 | 13 |",
        "| partial | 1412 |  |  |  |  | 25.0 |  |  |  | 1 |",
    ]


def test_page_has_each_run_and_marks_the_best_mean(tmp_path):
    def result(variant, dataset, seed, ap, protocol="dev"):
        return {
            "variant": variant, "dataset": dataset, "seed": seed, "AP": ap, "steps": 70 + seed, "protocol": protocol,
            "budget": "minutes=30", "machine": "a <fast> processor", "commit": "abc",
        }  # fmt: skip

    results = [
        result(BEFORE.name, "bccd", 0, 0.5), result(BEFORE.name, "bccd", 1, 0.6), result(AFTER.name, "bccd", 0, 0.56),
        result(AFTER.name, "chess", 0, 0.4), result(AFTER.name, "chess", 0, 0.3, protocol="test"),
    ]  # fmt: skip
    write_battery_page(results, tmp_path / "battery.html")
    page = (tmp_path / "battery.html").read_text()
    tests, validation = page.split("<section")[1:]
    assert "Test splits, 30 minutes per run" in tests
    assert [dot.split(",")[1] for dot in re.findall(r"<title>(seed .*?)</title>", tests)] == [" 70 steps"]
    # One dot per run; the means are 55.0 (before), 56.0 (ssd-fit) and 40.0 (ssd-fit on chess).
    dots = re.findall(r"<title>(seed .*?), \d+ steps</title>", validation)
    assert dots == ["seed 0: AP 50.0", "seed 1: AP 60.0", "seed 0: AP 40.0", "seed 0: AP 56.0"]
    assert re.findall(r"<b>([\d.]+)</b>", validation) == ["55.0", "40.0", "56.0"]
    best = [re.findall(r"<b>([\d.]+)</b>", cell) for cell in validation.split('class="best"')[1:]]
    assert [numbers[0] for numbers in best] == ["40.0", "56.0"]
    assert "a &lt;fast&gt; processor" in page


@pytest.mark.parametrize(
    ("arguments", "budget"),
    [([], "minutes=30"), (["--steps=7"], "steps=7"), (["--same_steps=9"], "same_steps=9")],
)
def test_by_default_the_reference_and_ssd_fit_are_trained(arguments, budget, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("sys.argv", ["battery", *arguments, "--seeds=1", "--dataset=bccd"])
    monkeypatch.setattr(battery, "run_all", lambda runs, groups, *_: started.append((runs, groups)))
    monkeypatch.setattr(battery, "read_results", lambda path: [])
    (tmp_path / "data").mkdir()
    for name, path in {"SHARED": tmp_path, "FOLDER": tmp_path / "runs", "ROOT": tmp_path}.items():
        monkeypatch.setattr(battery, name, path)
    battery.main()
    ((runs, groups),) = started
    assert [(run.variant, run.budget) for run in runs] == [(BEFORE, budget), (AFTER, budget)]
    cores = sorted(os.sched_getaffinity(0))
    assert groups == ([[core] for core in cores] if arguments else [cores])


def test_lengths_are_flags_of_ssd_fit(tmp_path):
    flags = {
        budget: length_flags(Run(AFTER, "bccd", 0, "dev", budget), tmp_path)
        for budget in ("minutes=5", "same_steps=40")
    }
    assert flags == {"minutes=5": ["--minutes=5"], "same_steps=40": ["--set=train.steps=40"]}


def test_equal_work_is_more_steps_of_a_cheaper_network_and_a_larger_input_if_there_is_time(tmp_path):
    survey = tmp_path / "survey.json"
    train = {"images": 100, "boxes": 100, "sizes": [[640, 640]] * 100, "box_sizes": [[0.2, 0.2]] * 100}
    survey.write_text(json.dumps({"classes": ["a", "b"], "splits": {"train": train}}))
    weights = ["backbone.weights=file.h5"]

    def plan(steps, *overrides):
        planned = [each.split("=") for each in plan_equal_work(steps, survey, None, [*weights, *overrides])]
        return {key: int(value) for key, value in planned}

    assert plan(100, "model.input_size=300", "backbone.frozen_blocks=0") == {"train.steps": 100}
    # 224 pixels and frozen blocks: 300 * 300 / (224 * 224) = 1.8 times as many steps, and more.
    few = plan(100)
    assert few.keys() == {"train.steps"}
    assert 180 < few["train.steps"] < 300
    # 64 epochs of 100 images are 400 batches of 16.
    many = plan(600)
    assert many["model.input_size"] > 224
    assert many["train.steps"] >= 400
    assert "model.input_size" not in plan(600, "model.input_size=224")


def test_multiply_adds_of_a_run_are_those_of_its_network(tmp_path):
    def count(size):
        config = load_config(None, [f"model.input_size={size}", "backbone.weights=imagenet"])
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return count_multiply_adds(str(folder), 80)

    # Sandler et al. 2018, table 6: 0.8 billion at 320 pixels with 80 classes. This network also has a finer level.
    assert 0.8e9 < count(320) < 1.1e9
    # Convolutions of four times as many cells; the parameters do not grow.
    assert 3.5 < count(384) / count(192) < 4.5
