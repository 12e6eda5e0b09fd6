"""Tests the JSON of the manifest, and that it rejects configs with other targets."""

import hashlib
import json

import numpy as np
import pytest
from support.reference_boxes import anchors_reference

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
    return Manifest(
        classes=("cat", "köter"),
        fingerprint=fingerprint(config.anchors, config.matching, config.model.input_size),
        splits={name: make_split(name) for name in splits},
        leakage=(Leakage(splits=("train", "val"), images=1, examples=("7",)),),
        **spec,
    )


def make_split(name: str) -> Split:
    view = View(
        examples=3,
        shards=(Shard(file=f"{name}/view00-00000-of-00001.tfrecord", examples=3, bytes=999, sha256="ab" * 32),),
        objects_per_class={"cat": 2, "köter": 1},
        images_per_class={"cat": 1, "köter": 1},
        positives_per_object=PositivesPerObject(mean=4.5, minimum=1, maximum=9, histogram={1: 1, 9: 2}),
    )
    return Split(
        images_read=5,
        images=3,
        boxes_read=7,
        boxes=3,
        rejected_images={"truncated": 2},
        rejected_boxes={"no_area": 4},
        clipped_boxes=1,
        image_hashes=f"{name}/hashes",
        views=(view,),
        windows=CropSettings(largest_expansion=4.0, smallest_crop=0.3),
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
        (lambda tree: tree["splits"]["val"]["views"][0]["images_per_class"].pop("cat"), ["images_per_class"]),
    ],
)
def test_an_invalid_manifest_raises_a_data_error_with_the_key(change, words):
    tree = json.loads(make_manifest().to_json())
    change(tree)
    with pytest.raises(DataError, match=r"OUT/dataset\.json") as caught:
        Manifest.from_json(json.dumps(tree), "OUT/dataset.json")
    assert all(word in str(caught.value) for word in words), caught.value


SHARD = "splits.train.views.0.shards.0"


def set_value(tree: dict, key: str, value: object) -> None:
    *parents, last = (int(part) if part.isdigit() else part for part in key.split("."))
    for part in parents:
        tree = tree[part]
    tree[last] = value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *(
            (f"{SHARD}.file", path, "is not a relative path inside the dataset")
            for path in (
                "", "/etc/passwd", "../x", "train/../../x", "train/..", "./x", "train//x", "train/", "..\\x", "C:x",
                "gs://bucket/x", "train/a\0b", "train/a\nb", "train/\x1b[31m", "train/\u202ex",
            )
        ),
        ("splits.train.image_hashes", "../../x", "is not a relative path"),
        ("splits.train.image_hashes", "val/hashes", "the file 'val/hashes' is listed 2 times"),
        (f"{SHARD}.file", "val/view00-00000-of-00001.tfrecord", "is listed 2 times"),
        *(
            (f"{SHARD}.sha256", text, "pattern")
            for text in ("", "ab", "AB" * 32, "xy" * 32, "../" * 21 + "a", "ab" * 32 + "\n", "/" + "ab" * 31 + "c")
        ),
        ("fingerprint", "x", "pattern"),
        ("classes", ["cat", "köter", "cat"], "the class 'cat' is listed 2 times"),
        ("classes", ["cat", ""], "at least 1 character"),
        ("splits", {"../x": {}}, "is not the name of a split"),
        ("splits", {"a/b": {}}, "is not the name of a split"),
        ("splits", {"a\nb": {}}, "is not the name of a split"),
        ("splits.train.images", 4, "images_read is 5, but 4 were kept and 2 rejected"),
        ("splits.train.boxes", 4, "boxes_read is 7, but 4 were kept and 4 rejected"),
        ("splits.train.views.0.examples", 4, "examples is 4, but the shards have 3"),
        ("splits.train.views.0.shards", [], "at least 1 item"),
        ("splits.train.views", [], "at least 1 item"),
        (f"{SHARD}.bytes", 10**4000, "less than or equal to"),
        ("splits.train.views.0.positives_per_object.mean", float("nan"), "finite"),
        ("image_size", 2**40, "less than or equal to 2048"),
        ("anchors", {"sizes": [0.1]}, "anchors: anchors.sizes needs 7 entries"),
        ("anchors.count", "many", "'count' is neither a setting"),
        ("anchors.feature_sizes", [[1]], "'feature_sizes' is neither a setting"),
        ("matching.policy", "<b>", "matching: policy: Input should be"),
        ("x" * 10_000, 1, "Extra inputs"),
    ],
)  # fmt: skip
def test_a_hostile_manifest_is_rejected_in_one_line_with_the_key(key, value, words):
    tree = json.loads(make_manifest().to_json())
    set_value(tree, key, value)
    with pytest.raises(DataError) as caught:
        Manifest.from_json(json.dumps(tree), "OUT/dataset.json")
    message = str(caught.value)
    assert message.startswith("OUT/dataset.json: ")
    assert words in message
    # A check of several keys names the section that contains them.
    assert key.split(".")[0][:50] in message or "is listed" in message
    assert len(message.splitlines()) == 1
    assert len(message) < 500


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5_000_000,
        '{"a":' * 1_000_000,
        '{"format_version": ' + "1" * 5000 + "}",
        '{"format_version": "' + "x" * 9999 + '"}',
        '{"format_version": 1, "classes": ["\\ud800"]}',
    ],
    ids=["lists", "sections", "integer", "text", "surrogate"],
)
def test_deep_and_large_values_are_rejected_in_one_line(text):
    with pytest.raises(DataError, match=r"^OUT/dataset\.json (is not valid JSON|has format version)") as caught:
        Manifest.from_json(text, "OUT/dataset.json")
    assert len(str(caught.value)) < 500


def test_manifests_of_earlier_versions_are_read():
    tree = json.loads(make_manifest().to_json())
    for split in tree["splits"].values():
        del split["windows"], split["reduced_boxes"]
        split["image_hashes"] = ""
    read = Manifest.from_json(json.dumps(tree), "dataset.json").splits["train"]
    assert (read.windows, read.reduced_boxes, read.image_hashes) == (None, 0, "")


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
    # Online targets do not help with another image size, because the shards contain the resized images.
    assert ("data.targets: online" in message) == (key != "image_size")
    # Equal values are not listed.
    assert message.count("prepared ") <= 4
    make_manifest(config).check_fits(config, "OUT/dataset.json")


def test_more_classes_than_nms_supports_are_rejected():
    # NMS has room for 64 x 64 labels, one of which is the background: `model/postprocessing.py`.
    accepted, rejected = (
        make_manifest().model_copy(update={"classes": tuple(map(str, range(count)))}) for count in (4095, 4096)
    )
    accepted.check_fits(Config(), "OUT/dataset.json")
    with pytest.raises(DataError, match=r"OUT/dataset.json has 4096 classes.* 4095; .*--include_classes"):
        rejected.check_fits(Config(), "OUT/dataset.json")


def test_another_image_size_with_the_same_anchors_is_rejected():
    # Size 304 has the same feature maps and anchors as 300, but the images in the shards have another size.
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
def test_the_evaluation_split_is_chosen_by_name(splits, name, expected):
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
