"""Splits that share one folder of images: every image is in a shard or is reported once, and the counts are right."""

import gzip
import json

import pytest
from raw_sets import voc_xml
from tool_exports import BOX, PER_FOLDER, PER_IMAGE, write, write_per_image

from pipelines.annotations import Image
from pipelines.manifest_writer import read_manifest
from pipelines.readers import coco, coco_layout, csv
from pipelines.readers.sources import Source

SPLITS = {"train": ["a", "b", "c"], "val": ["d", "e"]}
UNLISTED = ["x", "y"]


def coco_json(names):
    images = [
        {"id": sum(name.encode()), "file_name": f"{name}.jpg", "height": 48, "width": 64, "license": 1}
        for name in names
    ]  # fmt: skip
    boxes = [
        {"id": number, "image_id": image["id"], "category_id": 1, "bbox": [8, 12, 16, 24]}
        for number, image in enumerate(images)
    ]
    return json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]})


def csv_text(names):
    lines = (f"{name}.jpg,64,48,car,8,12,24,36\n" for name in names)
    return "filename,width,height,class,xmin,ymin,xmax,ymax\n" + "".join(lines)


def write_annotations(root, input_format, split, names):
    if input_format == "coco":
        write(root, f"annotations/instances_{split}.json", coco_json(names))
    elif input_format == "csv":
        write(root, f"{split}.csv", csv_text(names))
    elif input_format == "yolo":
        for name in names:
            write(root, f"labels/{split}/{name}.txt", "0 0.25 0.5 0.25 0.5\n")
    elif input_format == "voc":
        for name in names:
            write(root, f"Annotations/{split}/{name}.xml", voc_xml(f"{name}.jpg", [("car", *BOX)]))
    elif input_format in PER_IMAGE:
        for name in names:
            suffix = "json" if input_format in ("labelme", "supervisely") else "txt"
            write(root, f"ann/{split}/{name}.{suffix}", PER_IMAGE[input_format](f"{name}.jpg", [BOX]))
    else:
        write(root, f"{split}/annotations.json", PER_FOLDER[input_format]({f"{name}.jpg": [BOX] for name in names}))


def write_dataset(root, input_format, splits=SPLITS, unlisted=UNLISTED):
    for split, names in splits.items():
        write_annotations(root, input_format, split, names)
    for name in (*(name for names in splits.values() for name in names), *unlisted):
        write(root, f"images/{name}.jpg")


def read_rejections(folder, manifest):
    """Returns (reason, name of the image file) of each rejected image, sorted."""
    lines = [
        json.loads(line)
        for split in manifest.splits
        if (folder / split / "rejected.jsonl").exists()
        for line in (folder / split / "rejected.jsonl").read_text().splitlines()
    ]
    return sorted((line["reason"], line["image"].rpartition("/")[2]) for line in lines)


@pytest.mark.parametrize(
    "input_format", ["coco", "csv", "voc", "yolo", "labelme", "supervisely", "kitti", "create_ml", "via", "vott"]
)
def test_each_image_that_no_split_lists_is_reported_once(tmp_path, prepare_folder, input_format):
    write_dataset(tmp_path / "raw", input_format)
    manifest, out = prepare_folder(f"--input_format={input_format}")
    assert {name: split.images for name, split in manifest.splits.items()} == {"train": 3, "val": 2}, out
    assert read_rejections(tmp_path / "out", manifest) == [("not_annotated", "x.jpg"), ("not_annotated", "y.jpg")]


@pytest.mark.parametrize("input_format", ["coco", "csv", "voc", "labelme", "create_ml"])
def test_the_images_of_a_shared_folder_are_not_counted_for_every_split(tmp_path, prepare_folder, input_format):
    write_dataset(tmp_path / "raw", input_format)
    _, out = prepare_folder()
    (line,) = (line for line in out.splitlines() if line.startswith("recognized"))
    assert line.endswith(": train, val images"), out


def test_a_damaged_file_of_another_split_may_list_the_images(tmp_path):
    write_dataset(tmp_path, "coco")
    train, val = coco_layout.find_splits(str(tmp_path), "").splits.values()
    (own,) = (file for file in (*train, *val) if file.others)

    def read_unlisted():
        values = coco.read_entries(own, Source((str(tmp_path),)))
        return [value.filename for value in values if isinstance(value, Image) and value.problem]

    assert read_unlisted() == ["x.jpg", "y.jpg"]
    path = tmp_path / "annotations/instances_val.json"
    path.write_bytes(path.read_bytes()[:-40])
    assert read_unlisted() == []


def test_a_damaged_csv_file_of_another_split_may_list_the_images(tmp_path):
    write(tmp_path, "train.csv", csv_text(SPLITS["train"]))
    write(tmp_path, "val.csv.gz", gzip.compress(csv_text(SPLITS["val"]).encode()))
    write_dataset(tmp_path, "csv", {}, [*"abcdexy"])
    train, val = csv.find_splits(str(tmp_path), "").splits.values()
    (own,) = (file for file in (*train, *val) if file.others)

    def read_unlisted():
        values = csv.read_entries(csv.group_files([own])[0], Source((str(tmp_path),)))
        return [value.filename for value in values if isinstance(value, Image) and value.problem]

    assert read_unlisted() == ["x.jpg", "y.jpg"]
    path = tmp_path / "val.csv.gz"
    # Wrong checksum and length.
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    assert read_unlisted() == []


def test_images_below_the_folder_of_another_split_are_reported_once(tmp_path, prepare_folder):
    root = tmp_path / "raw"
    write(root, "annotations/instances_train.json", coco_json(["a", "b"]))
    write(root, "annotations/instances_val.json", coco_json(["c"]))
    for name in ("a.jpg", "b.jpg", "x.jpg", "val/c.jpg", "val/y.jpg"):
        write(root, f"images/{name}")
    manifest, out = prepare_folder("--input_format=coco")
    assert {name: split.images for name, split in manifest.splits.items()} == {"train": 2, "val": 1}, out
    assert read_rejections(tmp_path / "out", manifest) == [("not_annotated", "x.jpg"), ("not_annotated", "y.jpg")]


@pytest.mark.parametrize("names", [{"": "one", "other": "two"}, {"": "train", "other": "val"}])
@pytest.mark.parametrize("input_format", ["coco", "csv", "voc", "yolo", "labelme", "create_ml"])
def test_inputs_with_one_folder_of_images_report_each_image_once(tmp_path, command, input_format, names):
    for (place, split), stems in zip(names.items(), (["a", "b"], ["c"]), strict=True):
        write_annotations(tmp_path / f"set{place}", input_format, split, stems)
    for stem in "abcx":
        write(tmp_path, f"photos/{stem}.jpg")
    inputs = [f"--input={tmp_path}/set{place}" for place in names]
    code, out, err = command(
        *inputs, f"--image_dir={tmp_path}/photos", f"--output={tmp_path}/out", "--set=model.input_size=64",
        "--split_by=none",
    )  # fmt: skip
    assert (code, err) == (0, ""), out
    manifest = read_manifest(str(tmp_path / "out"))
    found = {name: (split.images, split.boxes) for name, split in manifest.splits.items()}
    assert found == ({"train": (2, 2), "val": (1, 1)} if "train" in names.values() else {"train": (3, 3)}), out
    assert read_rejections(tmp_path / "out", manifest) == [("not_annotated", "x.jpg")]


def test_an_image_with_the_stem_of_another_splits_annotation_is_reported(tmp_path, prepare_folder):
    write_dataset(tmp_path / "raw", "voc", unlisted=[])
    write(tmp_path / "raw", "images/d.png")
    manifest, _ = prepare_folder()
    assert read_rejections(tmp_path / "out", manifest) == [("not_annotated", "d.png")]


def test_annotations_of_another_split_that_name_their_image_describe_it(tmp_path, prepare_folder):
    for split, stem in (("train", "a"), ("val", "c")):
        write_per_image(tmp_path / "raw", "labelme", f"ann/{split}/{{}}.json", "images/{}.jpg", {stem: [BOX]})
    write(tmp_path / "raw", "images/b.jpg")
    write(tmp_path / "raw", "ann/val/second.json", PER_IMAGE["labelme"]("b.jpg", [BOX]))
    manifest, out = prepare_folder()
    assert {name: split.images for name, split in manifest.splits.items()} == {"train": 1, "val": 2}, out
    assert read_rejections(tmp_path / "out", manifest) == []
