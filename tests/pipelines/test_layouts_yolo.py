"""Layouts of YOLO datasets as annotation tools export them."""

import json

import numpy as np
import pytest
from raw_sets import write_files
from yolo_sets import CORNERS, IMAGE, LINE, NAMES, classes_of, images_of, pairs

from pipelines.detection import detect_format
from pipelines.manifest_writer import read_manifest
from pipelines.readers.yolo import find_splits

OBJ_DATA = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
# Name of the layout: files, tool, and ids of the images by split.
LAYOUTS = {
    "Roboflow": (
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n" + NAMES,
            "README.roboflow.txt": "exported",
            **pairs("a", images="train/images/", labels="train/labels/"),
            **pairs("b", images="valid/images/", labels="valid/labels/"),
            **pairs("c", images="test/images/", labels="test/labels/"),
        },
        "Roboflow YOLO export",
        {"train": ["a"], "val": ["b"], "test": ["c"]},
    ),
    "Roboflow, two levels below": (
        {
            "sets/one/data.yaml": "train: ../train/images\nval: ../valid/images\nroboflow: {version: 1}\n" + NAMES,
            **pairs("a", images="sets/one/train/images/", labels="sets/one/train/labels/"),
            **pairs("b", images="sets/one/valid/images/", labels="sets/one/valid/labels/"),
        },
        "Roboflow YOLO export",
        {"train": ["a"], "val": ["b"]},
    ),
    "Roboflow, val in a folder of another name": (
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\n" + NAMES,
            **pairs("a", images="train/images/", labels="train/labels/"),
            **pairs("b", images="val/images/", labels="val/labels/"),
        },
        "Ultralytics YOLO dataset",
        {"train": ["a"], "val": ["b"]},
    ),
    "Roboflow Darknet": (
        {
            **{f"{split}/_darknet.labels": "bolt\nnut\n" for split in ("train", "valid")},
            **pairs("train/a", "valid/b"),
        },
        "Roboflow Darknet export",
        {"train": ["a"], "valid": ["b"]},
    ),
    "Ultralytics": (
        {
            "coco8.yaml": "path: ../sets/coco8\ntrain: images/train\nval: images/val\nnames:\n  0: bolt\n  1: nut\n",
            **pairs("a", "cam/b", images="images/train/", labels="labels/train/"),
            **pairs("c", images="images/val/", labels="labels/val/"),
        },
        "Ultralytics YOLO dataset",
        {"train": ["a", "cam/b"], "val": ["c"]},
    ),
    "absolute paths of another machine, quoted keys": (
        {
            "dataset.yaml": "path: /content/drive/set\ntrain: /content/drive/set/train/images\n"
            'val: C:\\set\\val\\images\nnames: {"0": bolt, "1": nut}\n',
            **pairs("a", images="train/images/", labels="train/labels/"),
            **pairs("b", images="val/images/", labels="val/labels/"),
        },
        "Ultralytics YOLO dataset",
        {"train": ["a"], "val": ["b"]},
    ),
    "folders that contain images and labels": (
        {
            "data.yaml": "train: train\nval: valid\n" + NAMES,
            **pairs("a", images="train/images/", labels="train/labels/"),
            **pairs("b", images="valid/images/", labels="valid/labels/"),
        },
        "Ultralytics YOLO dataset",
        {"train": ["images/a"], "val": ["images/b"]},
    ),
    "CVAT Ultralytics YOLO": (
        {
            "data.yaml": "path: ./\ntrain: train.txt\nnames:\n  0: bolt\n  1: nut\n",
            "train.txt": "data/images/train/a.jpg\ndata/images/train/cam/b.jpg\n",
            **pairs("a", "cam/b", images="images/train/", labels="labels/train/"),
        },
        "Ultralytics YOLO dataset with lists of images",
        {"train": ["a", "cam/b"]},
    ),
    "lists of several kinds": (
        {
            "data.yaml": "train: [one.txt, two.txt]\nval: val.txt\n" + NAMES,
            "one.txt": "./images/a.jpg\n",
            "two.txt": "/home/u/set/images/b.png\n",
            "val.txt": "\ufeffD:\\set\\images\\c.jpg\r\n",
            **pairs("a", "b", "c", images="images/", labels="labels/"),
        },
        "Ultralytics YOLO dataset with lists of images",
        {"train": ["a", "b"], "val": ["c"]},
    ),
    "CVAT YOLO 1.1": (
        {
            "obj.names": "bolt\nnut\n",
            "obj.data": OBJ_DATA,
            "train.txt": "data/obj_train_data/a.jpg\n",
            "valid.txt": "data/obj_valid_data/b.jpg\n",
            **pairs("obj_train_data/a", "obj_valid_data/b"),
        },
        "CVAT YOLO 1.1 export",
        {"train": ["a"], "valid": ["b"]},
    ),
    "CVAT YOLO 1.1 without lists": (
        {"obj.names": "bolt\nnut\n", "obj.data": OBJ_DATA, **pairs("obj_train_data/a", "obj_valid_data/b")},
        "CVAT YOLO 1.1 export",
        {"train": ["a"], "valid": ["b"]},
    ),
    "Darknet": (
        {
            "cfg/voc.data": "names = data/voc.names\ntrain = /home/u/train.txt\n",
            "cfg/voc.names": "bolt\nnut\n",
            "cfg/train.txt": "/home/u/img/a.jpg\n",
            **pairs("img/a"),
        },
        "Darknet dataset",
        {"train": ["a"]},
    ),
    "Label Studio": (
        {
            "classes.txt": "bolt\nnut\n",
            "notes.json": json.dumps({"categories": [{"id": 0, "name": "bolt"}, {"id": 1, "name": "nut"}]}),
            **pairs("0f1e2d3c-a", images="images/", labels="labels/"),
        },
        "Label Studio YOLO export",
        {"": ["0f1e2d3c-a"]},
    ),
    "Label Studio without classes.txt, images without prefix": (
        {
            "notes.json": json.dumps({"categories": [{"id": 1, "name": "nut"}, {"id": 0, "name": "bolt"}]}),
            "images/a.jpg": IMAGE,
            "labels/0f1e2d3c-a.txt": LINE,
        },
        "Label Studio YOLO export",
        {"": ["a"]},
    ),
    "LabelImg": (
        {"classes.txt": "bolt\nnut\n", "README.txt": "about", **pairs("a", "b")},
        "YOLO labels",
        {"": ["a", "b"]},
    ),
    "LabelImg, several folders and predefined classes": (
        {"data/predefined_classes.txt": "bolt\nnut\n", **pairs("cam1/a", "cam2/a")},
        "YOLO labels",
        {"": ["cam1/a", "cam2/a"]},
    ),
    "labels below the images": (
        {"classes.txt": "bolt\nnut\n", "photos/a.jpg": IMAGE, "photos/labels/a.txt": LINE},
        "YOLO labels",
        {"": ["a"]},
    ),
    "test folder beside the training images": (
        {"classes.txt": "bolt\nnut\n", **pairs("a", "b", "test/c")},
        "YOLO labels",
        {"train": ["a", "b"], "test": ["c"]},
    ),
    "upper case": (
        {
            "Data.YAML": "path: .\ntrain: Images/Train\n" + NAMES,
            "data.yml": "train: Images/Train\n" + NAMES,
            "Images/Train/A.JPG": IMAGE,
            "Labels/Train/a.TXT": LINE,
        },
        "Ultralytics YOLO dataset",
        {"train": ["A"]},
    ),
    "JPEGImages of a VOC folder": (
        {"classes.txt": "bolt\nnut\n", **pairs("a", images="JPEGImages/", labels="labels/")},
        "YOLO labels",
        {"": ["a"]},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_recognized_and_read_without_loss(tmp_path, name):
    files, tool, expected = LAYOUTS[name]
    write_files(tmp_path, files)
    detected = detect_format([str(tmp_path)], "")
    assert (detected.input_format, detected.found.tool) == ("yolo", tool)
    splits = detected.found.splits
    assert [split for split in splits if split] == [split for split in expected if split]
    for split, ids in expected.items():
        images = images_of(tmp_path, split or "train")
        assert [image.image_id for image in images] == ids
        assert detected.found.images[split] == len(ids)
        assert [image.problem for image in images] == [None] * len(ids)
        for image in images:
            assert image.path.startswith(str(tmp_path))
            (box,) = image.boxes
            assert box.corners == pytest.approx(CORNERS)
            assert box.category == "1"
        assert classes_of(tmp_path, split or "train") == ["bolt", "nut"]
    # Dividing the whole dataset reads each image once.
    whole = images_of(tmp_path, "train", split_by=(("train", 1.0),))
    assert len(whole) == len({image.image_id for image in whole}) == sum(map(len, expected.values()))


def test_a_roboflow_export_is_prepared_without_flags(tmp_path, command, records_of):
    files, _, expected = LAYOUTS["Roboflow"]
    raw, out = write_files(tmp_path / "raw", files), tmp_path / "out"
    code, output, errors = command(f"--input={raw}", f"--output={out}", "--set=model.input_size=64")
    assert code == 0, errors
    assert "recognized Roboflow YOLO export: train 1, val 1, test 1 images" in output
    manifest = read_manifest(str(out))
    assert manifest.classes == ("bolt", "nut")
    for split, ids in expected.items():
        records = records_of(out, manifest, split)
        assert list(records) == ids
        np.testing.assert_allclose(records[ids[0]].objects.boxes, [CORNERS], atol=1e-6)


def test_a_cvat_export_without_images_is_read_with_image_dir(tmp_path):
    write_files(tmp_path, {"set/obj.names": "bolt\nnut\n", "set/obj.data": OBJ_DATA, "photos/a.jpg": IMAGE})
    write_files(tmp_path, {"set/train.txt": "data/obj_train_data/a.jpg\n", "set/obj_train_data/a.txt": LINE})
    (image,) = images_of(tmp_path / "set", image_dir=tmp_path / "photos")
    assert (image.image_id, image.path, len(image.boxes)) == ("a", str(tmp_path / "photos/a.jpg"), 1)


def test_a_folder_that_replaces_a_missing_one_is_announced(tmp_path):
    files, _, _ = LAYOUTS["Roboflow, val in a folder of another name"]
    notes = find_splits(str(write_files(tmp_path, files)), "").notes
    assert f"{tmp_path}/data.yaml: val: ../valid/images does not exist; the folder of this name is read" in notes


def test_only_the_label_of_an_image_loses_its_upload_prefix(tmp_path):
    write_files(tmp_path, {"classes.txt": "bolt\nnut\n", "images/0f1e2d3c-a.jpg": IMAGE, "labels/4b5a6978-a.txt": LINE})
    write_files(tmp_path, pairs("b", images="images/", labels="labels/"))
    problems = {image.image_id: image.problem and image.problem.reason for image in images_of(tmp_path)}
    assert problems == {"0f1e2d3c-a": None, "4b5a6978-a": "missing_image", "b": None}


# Counted with grep on the label files; see the README of the datasets.
@pytest.mark.parametrize(
    ("folder", "counts", "boxes"),
    [
        ("battery/aquarium", {"train": 448, "val": 127, "test": 63}, 4817),
        ("coco128", {"train": 128, "val": 128}, 1827),
    ],
)
def test_real_datasets_are_recognized_in_folders_above_them(shared_data, folder, counts, boxes):
    found = find_splits(str(shared_data / folder), "")
    assert {split: found.images[split] for split in found.names} == counts
    images = [image for split in counts for image in images_of(shared_data / folder, split)]
    assert sum(len(image.boxes) for image in images if image.problem is None) == boxes
    assert not any(box.problem for image in images for box in image.boxes)
