"""Tests the JSON of the manifest, and that it rejects configs with other targets."""

import hashlib
import json

import numpy as np
import pytest
from support.box_references import anchors_reference

from ssd_dist.core.config import AnchorConfig, Config, DataConfig, MatchingConfig, ModelConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import (
    CropSettings,
    Leakage,
    Manifest,
    PositivesPerObject,
    Shard,
    Split,
    View,
    fingerprint,
    target_spec,
)


def make_manifest(config: Config = Config(), splits: tuple[str, ...] = ("train", "val")) -> Manifest:  # noqa: B008
    spec = target_spec(config.anchors, config.matching, config.model.input_size)
    view = View(
        examples=3,
        shards=(Shard(file="train/view00-00000-of-00001.tfrecord", examples=3, bytes=999, sha256="ab" * 32),),
        objects_per_class={"cat": 2, "köter": 1},
        positives_per_object=PositivesPerObject(mean=4.5, minimum=1, maximum=9, histogram={1: 1, 9: 2}),
    )
    split = Split(
        images_read=5,
        images=3,
        boxes_read=7,
        boxes=3,
        rejected_images={"truncated": 2},
        rejected_boxes={"no_area": 4},
        clipped_boxes=1,
        image_hashes="train/hashes",
        views=(view,),
        windows=CropSettings(largest_expansion=4.0, smallest_crop=0.3),
    )
    return Manifest(
        classes=("cat", "köter"),
        fingerprint=fingerprint(config.anchors, config.matching, config.model.input_size),
        splits=dict.fromkeys(splits, split),
        leakage=(Leakage(splits=("train", "val"), images=1, examples=("7",)),),
        **spec,
    )


def test_round_trip():
    manifest = make_manifest()
    text = manifest.to_json()
    assert Manifest.from_json(text, "dataset.json") == manifest
    assert Manifest.from_json(text, "dataset.json").to_json() == text
    assert "köter" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.pop("classes"), ["classes"]),
        (lambda tree: tree.update(format_version=2), ["format version 2", "prepare"]),
        (lambda tree: tree.pop("format_version"), ["format version None"]),
        (lambda tree: tree.update(extra=1), ["extra"]),
        (lambda tree: tree["splits"]["train"].update(images=-1), ["splits.train.images"]),
        (lambda tree: tree["splits"]["train"]["views"][0]["shards"][0].pop("sha256"), ["shards.0.sha256"]),
    ],
)
def test_an_invalid_manifest_raises_a_data_error_with_the_key(change, words):
    tree = json.loads(make_manifest().to_json())
    change(tree)
    with pytest.raises(DataError, match=r"OUT/dataset\.json") as caught:
        Manifest.from_json(json.dumps(tree), "OUT/dataset.json")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_manifest_without_crop_settings_is_read():
    tree = json.loads(make_manifest().to_json())
    for split in tree["splits"].values():
        del split["windows"]
    assert Manifest.from_json(json.dumps(tree), "dataset.json").splits["train"].windows is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', make_manifest().to_json()[:-5]])
def test_other_files_raise_a_data_error(text):
    with pytest.raises(DataError, match=r"OUT/dataset\.json.*prepare"):
        Manifest.from_json(text, "OUT/dataset.json")


# A change of the targets, and the key that the message must contain.
CHANGES = [
    ({"anchors": AnchorConfig(sizes=(0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.06))}, "anchors.sizes", "1.06"),
    (
        {"anchors": AnchorConfig(aspect_ratios=((2.0,), (2.0,), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,)))},
        "anchors.aspect_ratios",
        "3.0",
    ),
    ({"anchors": AnchorConfig(center_variance=0.2)}, "anchors.center_variance", "0.2"),
    ({"anchors": AnchorConfig(size_variance=0.1)}, "anchors.size_variance", "0.1"),
    ({"matching": MatchingConfig(policy="one_to_one")}, "matching.policy", "one_to_one"),
    ({"matching": MatchingConfig(positive_iou=0.55)}, "matching.positive_iou", "0.55"),
    ({"matching": MatchingConfig(negative_iou=0.3)}, "matching.negative_iou", "0.3"),
    ({"model": ModelConfig(input_size=320)}, "image_size", "320"),
]


def fingerprint_of(config: Config) -> str:
    return fingerprint(config.anchors, config.matching, config.model.input_size)


@pytest.mark.parametrize(("change", "key", "value"), CHANGES)
def test_the_fingerprint_changes_with_every_covered_setting(change, key, value):
    assert fingerprint_of(Config(**change)) != fingerprint_of(Config())


def test_fingerprints_of_all_changes_differ():
    assert len({fingerprint_of(Config(**change)) for change, *_ in CHANGES}) == len(CHANGES)


@pytest.mark.parametrize(
    "change",
    [{"model": ModelConfig(width=0.5, head="ssd")}, {"data": DataConfig(dir="/elsewhere", views=3)}],
)
def test_the_fingerprint_and_the_check_ignore_other_settings(change):
    assert fingerprint_of(Config(**change)) == fingerprint_of(Config())
    make_manifest().check_fits(Config(**change), "dataset.json")


def test_the_fingerprint_is_sha256_over_the_anchors_and_the_matching():
    anchors = AnchorConfig()
    reference = anchors_reference(anchors.sizes, anchors.aspect_ratios, (38, 19, 10, 5, 3, 1)).astype("<f4")
    matching = {
        "center_variance": 0.1, "negative_iou": 0.4, "policy": "multi", "positive_iou": 0.5, "size_variance": 0.2,
    }  # fmt: skip
    digest = hashlib.sha256(reference.tobytes() + json.dumps(matching, sort_keys=True).encode())
    assert fingerprint_of(Config()) == digest.hexdigest()


@pytest.mark.parametrize(("change", "key", "value"), CHANGES)
def test_targets_of_another_config_are_rejected(change, key, value):
    config = Config(**change)
    with pytest.raises(DataError) as caught:
        make_manifest().check_fits(config, "OUT/dataset.json")
    message = str(caught.value)
    for word in ("OUT/dataset.json", key, value, "prepare again"):
        assert word in message
    # The images themselves are in the shards, and cannot be matched to another size while training.
    assert ("data.targets: online" in message) == (key != "image_size")
    # Equal values are not listed.
    assert message.count("prepared ") <= 4
    make_manifest(config).check_fits(config, "OUT/dataset.json")


def test_more_classes_than_nms_supports_are_rejected():
    # 64 scales of each axis, one for the background: `model/postprocessing.py`.
    fitting, crowded = (
        make_manifest().model_copy(update={"classes": tuple(map(str, range(count)))}) for count in (4095, 4096)
    )
    fitting.check_fits(Config(), "OUT/dataset.json")
    with pytest.raises(DataError, match=r"OUT/dataset.json has 4096 classes.* 4095; .*--include_classes"):
        crowded.check_fits(Config(), "OUT/dataset.json")


def test_another_image_size_with_the_same_anchors_is_rejected():
    # 304 has the feature maps of 300, hence its anchors; the images in the shards are still of another size.
    assert fingerprint_of(Config(model=ModelConfig(input_size=304))) == fingerprint_of(Config())
    with pytest.raises(DataError, match="image_size: prepared 300, config 304"):
        make_manifest().check_fits(Config(model=ModelConfig(input_size=304)), "dataset.json")


@pytest.mark.parametrize(("change", "key", "value"), CHANGES)
def test_online_targets_fit_any_shards_with_images_of_their_size(change, key, value):
    config = Config(data=DataConfig(targets="online"), **change)
    if key != "image_size":
        make_manifest().check_fits(config, "OUT/dataset.json")
        return
    with pytest.raises(DataError, match=r"prepare again with this config into another --output$"):
        make_manifest().check_fits(config, "OUT/dataset.json")


@pytest.mark.parametrize("text", [b"\xff\xfe{", "{", "[]", "3", b""])
def test_an_invalid_file_is_reported_by_name(text):
    with pytest.raises(DataError, match=r"^OUT/dataset.json (is not valid JSON|has format version)"):
        Manifest.from_json(text, "OUT/dataset.json")


def test_a_missing_split_is_reported_with_the_existing_splits():
    manifest = make_manifest()
    assert manifest.split("val", "dataset.json") == manifest.splits["val"]
    with pytest.raises(DataError, match=r"OUT/dataset\.json.*'test'.*train, val"):
        manifest.split("test", "OUT/dataset.json")


@pytest.mark.parametrize(
    ("splits", "name", "expected"),
    [
        (("train", "val", "test"), "auto", "val"),
        (("train", "test"), "auto", "test"),
        (("train",), "auto", None),
        (("train", "odd"), "odd", "odd"),
    ],
)
def test_the_split_to_evaluate(splits, name, expected):
    assert make_manifest(splits=splits).eval_split(name, "dataset.json") == expected


def test_a_missing_eval_split_is_rejected():
    with pytest.raises(DataError, match="test"):
        make_manifest().eval_split("test", "dataset.json")


def test_the_spec_is_plain_data():
    spec = target_spec(AnchorConfig(), MatchingConfig(), 300)
    assert json.loads(json.dumps(spec)) == spec
    assert spec["anchors"]["count"] == 8732
    assert spec["anchors"]["feature_sizes"] == [38, 19, 10, 5, 3, 1]
    assert np.isclose(spec["anchors"]["sizes"][2], 0.37)
