"""COCO files where tools put them: what is found, under which split, with which boxes."""

import json

import pytest
from raw_sets import jpeg

from pipelines.readers.coco_layout import find_splits, split_in_name
from ssd_dist.core.config import Config

SMALL = Config.model_validate({"model": {"input_size": 64}})
CATEGORIES = [{"id": 0, "name": "parts", "supercategory": "none"}, {"id": 1, "name": "bolt", "supercategory": "parts"}]


def write_coco(path, names, images, bbox=(8, 12, 16, 24), categories=CATEGORIES, **annotation):
    """Writes one annotation file with a box of category 1 per image, and the images into the folder `images`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "categories": categories, "images": [], "annotations": []}
    for number, name in enumerate(names, start=1):
        content["images"].append({"id": number, "file_name": name, "height": 48, "width": 64})
        content["annotations"].append({"id": number, "image_id": number, "category_id": 1, **annotation})
        if bbox is not None:
            content["annotations"][-1]["bbox"] = list(bbox)
        plain = name.replace("\\", "/").rpartition("/")[2]
        (images / plain).write_bytes(jpeg(hash(str(path)) % 1000 + number))
    path.write_text(json.dumps(content))


LAYOUTS = {
    "Roboflow": ({"train": "train/_annotations.coco.json", "valid": "valid/_annotations.coco.json"}, "{split}"),
    "COCO 2017": (
        {"train2017": "annotations/instances_train2017.json", "val2017": "annotations/instances_val2017.json"},
        "{split}",
    ),
    "Model Maker": ({"train": "train/labels.json", "validation": "validation/labels.json"}, "{split}/images"),
    "FiftyOne": ({"train": "train/labels.json", "val": "val/labels.json"}, "{split}/data"),
    "images in a folder of splits": ({"train": "train.json", "val": "val.json"}, "images/{split}"),
    "annotations with the split in front": ({"train": "annotations/train_annotations.json"}, "images"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_command_finds_splits_and_images(tmp_path, command, name):
    files, images = LAYOUTS[name]
    for split, file in files.items():
        write_coco(tmp_path / "raw" / file, ["a.jpg", "b.jpg"], tmp_path / "raw" / images.format(split=split))
    code, out, err = command(f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}", "--set=model.input_size=64")
    assert (code, err) == (0, "")
    manifest = json.loads((tmp_path / "out/dataset.json").read_text())
    # The category 0 of Roboflow has no boxes.
    assert manifest["classes"] == ["bolt"]
    assert sum(split["images"] for split in manifest["splits"].values()) == 2 * len(files)
    assert sum(split["boxes"] for split in manifest["splits"].values()) == 2 * len(files)
    assert {"train", "val"} >= set(manifest["splits"])
    assert "recognized " in out


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_default.json", "images"),
        ("result.json", "images"),
        ("labels.json", "data"),
        ("my_export.json", "."),
    ],
)
def test_a_dataset_without_splits_is_divided(tmp_path, command, file, images):
    names = [f"{number}.jpg" for number in range(20)]
    write_coco(tmp_path / "raw" / file, names, tmp_path / "raw" / images)
    code, out, err = command(f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}", "--set=model.input_size=64")
    assert (code, err) == (0, "")
    splits = json.loads((tmp_path / "out/dataset.json").read_text())["splits"]
    assert splits["train"]["images"] + splits["val"]["images"] == 20
    assert splits["val"]["images"] > 0
    assert "train:0.8,val:0.2" in out
    arguments = (f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'whole'}", "--set=model.input_size=64")
    assert command(*arguments, "--split_by=none")[0] == 0
    splits = json.loads((tmp_path / "whole/dataset.json").read_text())["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {"train": 20}


def test_the_empty_share_of_a_tiny_source_is_omitted(tmp_path, command):
    write_coco(tmp_path / "raw/result.json", ["1.jpg"], tmp_path / "raw/images")
    code, out, err = command(f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}", "--set=model.input_size=64")
    assert (code, err) == (0, "")
    splits = json.loads((tmp_path / "out/dataset.json").read_text())["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {"train": 1}
    assert "split val: omitted, because its share of the source contains no usable image" in out
    assert not list((tmp_path / "out/val").glob("*.tfrecord"))


def test_a_missing_validation_split_is_a_share_of_train(tmp_path, command):
    for split, count in (("train", 20), ("test", 3)):
        names = [f"{split}{number}.jpg" for number in range(count)]
        write_coco(tmp_path / f"raw/{split}/_annotations.coco.json", names, tmp_path / "raw" / split)
    arguments = (f"--input={tmp_path / 'raw'}", "--set=model.input_size=64")
    assert command(*arguments, f"--output={tmp_path / 'out'}")[0] == 0
    splits = json.loads((tmp_path / "out/dataset.json").read_text())["splits"]
    assert splits["train"]["images"] + splits["val"]["images"] == 20
    assert splits["test"]["images"] == 3
    # An explicit split is written whole.
    assert command(*arguments, f"--output={tmp_path / 'one'}", "--split=train")[0] == 0
    splits = json.loads((tmp_path / "one/dataset.json").read_text())["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {"train": 20}


@pytest.mark.parametrize("folder", ["C:\\data\\", "/home/other/images/", "gs://bucket/images/"])
def test_paths_of_another_machine_are_read_by_base_name(tmp_path, prepare, folder):
    write_coco(tmp_path / "train/annotations.json", [f"{folder}a.jpg", f"{folder}b.jpg"], tmp_path / "train")
    manifest = prepare("coco", tmp_path / "train/annotations.json", tmp_path / "out", config=SMALL)
    assert (manifest.splits["train"].images, manifest.splits["train"].rejected_images) == (2, {})


def test_numbers_written_as_texts_are_numbers(tmp_path, prepare, records_of):
    write_coco(tmp_path / "raw/train.json", ["a.jpg"], tmp_path / "raw/train", bbox=("8", 12, "16.0", 24))
    manifest = prepare("coco", tmp_path / "raw", tmp_path / "out", config=SMALL)
    (record,) = records_of(tmp_path / "out", manifest).values()
    # y 12 to 36 of 48, x 8 to 24 of 64
    assert record.objects.boxes.tolist() == [[0.25, 0.125, 0.75, 0.375]]


def test_a_polygon_without_bbox_becomes_the_box_around_it(tmp_path, prepare, records_of):
    polygons = [[8, 12, 24, 12, 16, 30], [10, 30, 24, 36, 12, 20]]
    write_coco(tmp_path / "raw/train.json", ["a.jpg"], tmp_path / "raw/train", bbox=None, segmentation=polygons)
    manifest = prepare("coco", tmp_path / "raw", tmp_path / "out", config=SMALL)
    (record,) = records_of(tmp_path / "out", manifest).values()
    assert record.objects.boxes.tolist() == [[0.25, 0.125, 0.75, 0.375]]
    assert manifest.splits["train"].reduced_boxes == 1


def test_images_that_the_file_does_not_list_are_reported(tmp_path, prepare):
    write_coco(tmp_path / "raw/train.json", ["a.jpg"], tmp_path / "raw/train")
    (tmp_path / "raw/train/extra.jpg").write_bytes(jpeg(9))
    (tmp_path / "raw/train/extra.heic").write_bytes(b"\0\0\0\0ftypheic")
    split = prepare("coco", tmp_path / "raw", tmp_path / "out", config=SMALL).splits["train"]
    assert (split.images_read, split.images, split.rejected_images) == (3, 1, {"not_annotated": 2})
    # In a folder of several annotation files, an image may be listed in another one.
    for split_name in ("train", "val"):
        write_coco(tmp_path / f"shared/{split_name}.json", [f"{split_name}.jpg"], tmp_path / "shared/images")
    split = prepare("coco", tmp_path / "shared", tmp_path / "out_shared", config=SMALL).splits["train"]
    assert (split.images_read, split.rejected_images) == (1, {})


def test_category_zero_is_kept_if_it_has_boxes_or_is_no_placeholder(tmp_path, prepare):
    write_coco(tmp_path / "raw/train.json", ["a.jpg"], tmp_path / "raw/train", categories=[
        {"id": 0, "name": "person"}, {"id": 1, "name": "bolt"},
    ])  # fmt: skip
    assert prepare("coco", tmp_path / "raw", tmp_path / "out", config=SMALL).classes == ("person", "bolt")
    content = json.loads((tmp_path / "raw/train.json").read_text())
    content["categories"] = CATEGORIES
    content["annotations"][0]["category_id"] = 0
    (tmp_path / "raw/train.json").write_text(json.dumps(content))
    assert prepare("coco", tmp_path / "raw", tmp_path / "used", config=SMALL).classes == ("parts", "bolt")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("annotations/instances_train2017.json", "train2017"), ("valid/_annotations.coco.json", "valid"),
        ("labels.json", ""), ("train/labels.json", "train"), ("annotations/instances_default.json", ""),
        ("result.json", ""), ("test.json.gz", "test"), ("annotations/train_annotations.json", "train"),
    ],
)  # fmt: skip
def test_the_split_is_in_the_name(name, split):
    assert split_in_name(name) == split


@pytest.mark.parametrize("content", ['[{"image": "a.jpg"}]', '{"a.jpg": {"regions": []}}', '{"shapes": []}', "", "{"])
def test_other_json_files_are_not_coco(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "a.jpg").write_bytes(jpeg())
    assert find_splits(str(tmp_path), "") is None
    assert find_splits(str(tmp_path / "a.json"), "") is None
