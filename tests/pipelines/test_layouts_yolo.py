"""Layouts of YOLO datasets as annotation tools export them, and the lines of their label files."""

import json

import numpy as np
import pytest
from raw_sets import jpeg, write_files

from pipelines.annotations import Category, Image
from pipelines.detection import detect_format, plan_splits
from pipelines.manifest_writer import read_manifest
from pipelines.readers.sources import Source
from pipelines.readers.yolo import choose_layouts, find_splits, list_labels, read_label
from pipelines.readers.yolo_labels import are_labels, decode_text, parse_label
from pipelines.readers.yolo_places import list_tails
from ssd_dist.core.errors import DataError

IMAGE = None
# A box of class 1: y 0.4..0.6, x 0.2..0.4.
LINE = "1 0.3 0.5 0.2 0.2\n"
CORNERS = (0.4, 0.2, 0.6, 0.4)
NAMES = "names: [bolt, nut]\n"


def values_of(folder, split="train", image_dir="", **rest):
    source = Source((str(folder),), str(image_dir), output_split=split, **rest)
    entries = list(list_labels(choose_layouts(source), source))
    return [value for entry in entries for _, value in read_label(entry)]


def images_of(folder, split="train", image_dir="", **rest):
    return [value for value in values_of(folder, split, image_dir, **rest) if isinstance(value, Image)]


def classes_of(folder, split="train", image_dir=""):
    found = {value for value in values_of(folder, split, image_dir) if isinstance(value, Category)}
    return [category.name for category in sorted(found, key=lambda category: category.order)]


def pairs(*stems, images="", labels="", line=LINE):
    """Returns images and their label files."""
    files = {}
    for stem in stems:
        files |= {f"{images}{stem}.jpg": IMAGE, f"{labels}{stem}.txt": line}
    return files


DATA = "train: images/train\nval: images/val\n" + NAMES
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
def test_layouts_are_recognised_and_read_without_loss(tmp_path, name):
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
    assert "recognised Roboflow YOLO export: train 1, val 1, test 1 images" in output
    manifest = read_manifest(str(out))
    assert manifest.classes == ("bolt", "nut")
    for split, ids in expected.items():
        records = records_of(out, manifest, split)
        assert list(records) == ids
        np.testing.assert_allclose(records[ids[0]].objects.boxes, [CORNERS], atol=1e-6)


def test_classes_named_yes_and_no_stay_text(tmp_path):
    write_files(
        tmp_path,
        {"data.yaml": "train: images\nnames: [yes, no, on, 1.50]\n", **pairs("a", images="images/", labels="labels/")},
    )
    assert classes_of(tmp_path) == ["yes", "no", "on", "1.50"]


@pytest.mark.parametrize(
    ("files", "names", "note"),
    [
        ({"data.yaml": "train: images\nnc: 3\n"}, ["0", "1", "2"], "has no class names"),
        ({}, ["1"], "named by their numbers"),
        ({"data.yaml": "train: images\nnc: 3\n" + NAMES}, ["bolt", "nut"], "nc is 3, but names has 2"),
        ({"data.yaml": "train: images\nnames: my.names\n", "my.names": "bolt\nnut\n"}, ["bolt", "nut"], ""),
    ],
)
def test_classes_without_names_are_numbers(tmp_path, files, names, note):
    write_files(tmp_path, {**files, **pairs("a", images="images/", labels="labels/")})
    assert classes_of(tmp_path) == names
    assert note in " ".join(find_splits(str(tmp_path), "").notes)


def test_an_empty_line_within_the_class_names_is_rejected(tmp_path):
    write_files(tmp_path, {"classes.txt": "bolt\n\nnut\n", **pairs("a")})
    with pytest.raises(DataError, match=r"classes\.txt: line 2 is empty"):
        values_of(tmp_path)


def test_inputs_with_other_classes_are_merged_by_name(tmp_path, prepare, records_of):
    one = write_files(tmp_path / "one", {"classes.txt": "bolt\nnut\n", **pairs("a")})
    two = write_files(tmp_path / "two", {"classes.txt": "gear\nbolt\n", "x/b.jpg": jpeg(9), "x/b.txt": LINE})
    manifest = prepare("yolo", [one, two], tmp_path / "out")
    records = records_of(tmp_path / "out", manifest)
    assert {name: record.objects.names for name, record in records.items()} == {"a": ("nut",), "b": ("bolt",)}
    assert set(manifest.classes) == {"bolt", "nut", "gear"}


def test_class_files_of_each_split_may_differ(tmp_path):
    write_files(
        tmp_path, {"train/classes.txt": "bolt\nnut\n", "val/classes.txt": "nut\nbolt\n", **pairs("train/a", "val/b")}
    )
    assert classes_of(tmp_path, "train") == ["bolt", "nut"]
    assert classes_of(tmp_path, "val") == ["nut", "bolt"]


def test_image_dir_may_be_the_parent_of_the_split_folders(tmp_path):
    write_files(
        tmp_path,
        {"set/config.yaml": NAMES, **pairs("a", images="photos/train/", labels="set/labels/train/")}
        | pairs("b", images="photos/val/", labels="set/labels/val/"),
    )
    for split, image_id in (("train", "a"), ("val", "b")):
        (image,) = images_of(tmp_path / "set", split, tmp_path / "photos")
        assert (image.image_id, image.path) == (image_id, str(tmp_path / f"photos/{split}/{image_id}.jpg"))
        assert len(image.boxes) == 1


def test_splits_that_share_the_images_take_those_with_labels(tmp_path):
    write_files(tmp_path, {"set/classes.txt": "bolt\nnut\n", "photos/c.jpg": IMAGE})
    for stem, split in (("a", "train"), ("b", "val")):
        write_files(tmp_path, pairs(stem, images="photos/", labels=f"set/labels/{split}/"))
    for split, image_id in (("train", "a"), ("val", "b")):
        assert [image.image_id for image in images_of(tmp_path / "set", split, tmp_path / "photos")] == [image_id]
    found = find_splits(str(tmp_path / "set"), str(tmp_path / "photos"))
    assert found.images == {"train": 1, "val": 1}
    assert any("1 images belong to no split" in note and "c.jpg" in note for note in found.notes)


def test_a_cvat_export_without_images_is_read_with_image_dir(tmp_path):
    write_files(tmp_path, {"set/obj.names": "bolt\nnut\n", "set/obj.data": OBJ_DATA, "photos/a.jpg": IMAGE})
    write_files(tmp_path, {"set/train.txt": "data/obj_train_data/a.jpg\n", "set/obj_train_data/a.txt": LINE})
    (image,) = images_of(tmp_path / "set", image_dir=tmp_path / "photos")
    assert (image.image_id, image.path, len(image.boxes)) == ("a", str(tmp_path / "photos/a.jpg"), 1)


def test_the_same_folder_for_train_and_val_is_divided(tmp_path):
    write_files(
        tmp_path,
        {"data.yaml": "train: images\nval: images\n" + NAMES, **pairs("a", images="images/", labels="labels/")},
    )
    found = find_splits(str(tmp_path), "")
    assert found.unions == {"val"}
    assert [(plan.name, plan.source_split) for plan in plan_splits(found)] == [("train", "train"), ("val", "train")]


def test_a_folder_whose_images_belong_to_other_splits_is_omitted(tmp_path):
    write_files(tmp_path, {"data.yaml": "train: images/train\nval: images\n" + NAMES})
    write_files(tmp_path, pairs("a", images="images/train/", labels="labels/train/"))
    found = find_splits(str(tmp_path), "")
    assert found.names == ["train"]
    assert any("split val is omitted" in note for note in found.notes)
    assert len(images_of(tmp_path, split_by=(("train", 1.0),))) == 1


def test_a_folder_that_replaces_a_missing_one_is_announced(tmp_path):
    files, _, _ = LAYOUTS["Roboflow, val in a folder of another name"]
    notes = find_splits(str(write_files(tmp_path, files)), "").notes
    assert f"{tmp_path}/data.yaml: val: ../valid/images does not exist; the folder of this name is read" in notes


def test_images_of_a_folder_elsewhere_are_announced(tmp_path):
    write_files(tmp_path, {"set/data.yaml": "train: ../all/images/train\n" + NAMES, "set/notes.txt": ""})
    write_files(tmp_path, pairs("a", images="all/images/train/", labels="all/labels/train/"))
    assert [len(image.boxes) for image in images_of(tmp_path / "set")] == [1]
    assert any(
        f"read from {tmp_path}/all/images/train" in note for note in find_splits(str(tmp_path / "set"), "").notes
    )


def test_one_task_of_several_is_selected_by_its_file(tmp_path):
    write_files(tmp_path, {"images/train/a.jpg": IMAGE})
    for task, line in (("det", LINE), ("seg", LINE * 2)):
        write_files(
            tmp_path, {f"{task}/config.yaml": "train: images/train\n" + NAMES, f"{task}/labels/train/a.txt": line}
        )
    with pytest.raises(DataError, match=r"several YOLO datasets \(det/config.yaml, seg/config.yaml\)"):
        values_of(tmp_path)
    for task, count in (("det", 1), ("seg", 2)):
        assert [len(image.boxes) for image in images_of(tmp_path / task / "config.yaml")] == [count]


def test_other_yaml_files_do_not_matter(tmp_path):
    write_files(
        tmp_path,
        {
            **{"yolov5s.yaml": "nc: 80\nbackbone: [1]\n", "hyp.yaml": "lr0: 0.01\n", "broken.yaml": "a: [\n"},
            **{"data.yaml": DATA, "old.yaml": "train: images/train\nnames: [other]\n"},
            **pairs("a", images="images/train/", labels="labels/train/"),
        },
    )
    assert classes_of(tmp_path) == ["bolt", "nut"]
    notes = find_splits(str(tmp_path), "").notes
    assert any("data.yaml, old.yaml, the first one is used" in note for note in notes)
    assert any("val: images/val does not exist" in note for note in notes)


def test_a_split_without_labels_is_omitted_and_labels_of_another_split_are_not_used(tmp_path):
    write_files(tmp_path, {"data.yaml": "train: train/images\ntest: test/images\n" + NAMES, "test/images/a.jpg": IMAGE})
    write_files(tmp_path, pairs("a", images="train/images/", labels="train/labels/"))
    found = find_splits(str(tmp_path), "")
    assert found.names == ["train"]
    assert any("test/images is omitted" in note for note in found.notes)
    with pytest.raises(DataError, match=r"no split 'test'.*test/images is omitted"):
        values_of(tmp_path, "test")


def test_images_in_unsupported_formats_are_reported(tmp_path, prepare):
    write_files(
        tmp_path / "raw",
        {"data.yaml": DATA, "images/train/b.avif": b"x", "images/train/c.avif": b"x", "labels/train/c.txt": LINE}
        | {"images/train/d.tga": b"x", "labels/train/d.txt": LINE}
        | pairs("a", images="images/train/", labels="labels/train/"),
    )
    split = prepare("yolo", tmp_path / "raw", tmp_path / "out").splits["train"]
    assert (split.images_read, split.images) == (4, 1)
    assert split.rejected_images == {"unsupported_format": 3}
    assert (split.boxes_read, split.rejected_boxes) == (3, {"image_rejected": 2})


@pytest.mark.parametrize(
    "files",
    [
        {"a.jpg": IMAGE, "a.txt": "a caption\n"},
        {"images/a.jpg": IMAGE, "labels/a.txt": "0 100 100 20 20\n"},
        {"image_2/a.jpg": IMAGE, "label_2/a.txt": "Car 0.00 0 -1.57 1 2 3 4 5 6 7 8 9 10 11\n"},
        {"img1/1.jpg": IMAGE, "gt/gt.txt": "1,1,912,484,97,109,0,7,1\n"},
        {"a.jpg": IMAGE, "README.txt": "0 .5 .5 .1 .1\n"},
        {"Annotations/a.xml": "<annotation/>", "JPEGImages/a.jpg": IMAGE, "labels/a.txt": LINE},
        {"config.yaml": "model: {nc: 80}\n", "a.jpg": IMAGE},
    ],
)
def test_other_text_files_are_not_yolo(tmp_path, files):
    write_files(tmp_path, files)
    assert find_splits(str(tmp_path), "") is None
    with pytest.raises(DataError, match=r"no YOLO dataset: .+; pass the folder"):
        values_of(tmp_path)


def test_a_dataset_without_its_images_is_rejected(tmp_path):
    write_files(tmp_path, {"data.yaml": DATA, "labels/train/a.txt": LINE})
    with pytest.raises(DataError, match=r"train: images/train does not exist.*--image_dir"):
        find_splits(str(tmp_path), "")


@pytest.mark.parametrize(
    "text",
    [
        "0 0.3 0.5 0.2 0.2",
        "0.0 0.3 0.5 0.2 0.2",
        "0.000000e+00 3e-1 5e-1 2e-1 2e-1 ",
        "0\t0.3\t0.5\t0.2\t0.2\r\n\r\n",
        "0,0.3,0.5,0.2,0.2",
        "0, 0.3, 0.5, 0.2, 0.2",
        "0;0.3;0.5;0.2;0.2",
        "0 0,3 0,5 0,2 0,2",
        "0 0.3 0.5 0.2 0.2 0.91",
        "0 0.3 0.5 0.2 0.2 17",
        "0 0.2 0.4 0.4 0.4 0.4 0.6 0.2 0.6",
        "0 0.2 0.4 0.4 0.6 0.3 0.5",
    ],
)
def test_all_kinds_of_lines_become_the_same_box(text):
    (box,) = parse_label(text)
    assert (box.category, box.problem, box.normalized) == ("0", None, True)
    assert box.corners == pytest.approx(CORNERS)
    assert box.is_reduced == (len(text.split()) > 6)
    assert are_labels(text)


def test_boxes_and_polygons_in_one_file_are_read_each_by_its_own_kind():
    box, polygon = parse_label("0 0.5 0.5 0.25 0.25\n1 0.2 0.1 0.6 0.1 0.6 0.7 0.4 0.7 0.2 0.5\n")
    assert box.corners == pytest.approx((0.375, 0.375, 0.625, 0.625))
    assert polygon.corners == pytest.approx((0.1, 0.2, 0.7, 0.6))
    assert (box.is_reduced, polygon.is_reduced) == (False, True)


def test_keypoints_are_ignored_if_the_yaml_file_defines_them(tmp_path):
    pose = "1 0.3 0.5 0.2 0.2 0.9 0.9 2 0.1 0.1 0\n"
    write_files(tmp_path, {"data.yaml": DATA + "kpt_shape: [2, 3]\n"})
    write_files(tmp_path, pairs("a", images="images/train/", labels="labels/train/", line=pose + LINE))
    (image,) = images_of(tmp_path)
    assert [box.corners for box in image.boxes] == [pytest.approx(CORNERS)] * 2
    assert not any(box.is_reduced for box in image.boxes)
    # Without kpt_shape, eleven numbers are a polygon, and eight are neither.
    assert next(parse_label(pose)).is_reduced
    assert "kpt_shape" in next(parse_label("1 0.3 0.5 0.2 0.2 0.9 0.9 2")).problem.detail


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.1", "4 numbers; expected 5"),
        ("bolt 0.5 0.5 0.1 0.1", "'bolt' is not a number"),
        ("0.5 0.5 0.5 0.1 0.1", "class '0.5' is not a whole number"),
        ("1e300 0.5 0.5 0.1 0.1", "class '1e300'"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "8 numbers are neither a box"),
    ],
)
def test_the_reason_for_an_invalid_line_names_what_is_expected(line, words):
    (box,) = parse_label(line)
    assert box.problem.reason == "broken_box"
    assert words in box.problem.detail


def test_a_polygon_with_a_number_that_is_not_finite_is_left_to_validation():
    (box,) = parse_label("0 0.1 0.1 nan 0.2 0.3 0.3")
    assert box.problem is None
    assert np.isnan(box.corners).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_label_files_in_several_encodings_are_read(encoding):
    assert decode_text(LINE.encode(encoding)) == LINE


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\xff\xfe\xff", "save it as UTF-8"), (b"version https://git-lfs.github.com/spec/v1", "git lfs")],
)
def test_other_label_files_are_rejected_with_a_reason(data, words):
    with pytest.raises(ValueError, match=words):
        decode_text(data)


def test_a_sixth_number_is_announced(tmp_path):
    write_files(tmp_path, {"data.yaml": DATA})
    write_files(tmp_path, pairs("a", images="images/train/", labels="labels/train/", line="0 0.3 0.5 0.2 0.2 0.9\n"))
    assert any("sixth number" in note for note in find_splits(str(tmp_path), "").notes)


def test_leading_folders_are_omitted_but_not_the_split():
    assert list_tails("/home/u/set/val/images") == [
        "home/u/set/val/images", "u/set/val/images", "set/val/images", "val/images",
    ]  # fmt: skip
    assert list_tails("./") == [""]
    assert list_tails("D:\\set\\train.txt") == ["set/train.txt", "train.txt"]


def test_folders_above_the_dataset_do_not_matter(tmp_path):
    root = write_files(tmp_path / "images/train/set", {"classes.txt": "bolt\nnut\n", **pairs("cam1/a", "cam2/b")})
    assert [image.image_id for image in images_of(root)] == ["cam1/a", "cam2/b"]
    assert find_splits(str(root), "").names == []


def test_a_damaged_data_yaml_is_an_error_only_in_a_yolo_dataset(tmp_path):
    write_files(tmp_path, {"data.yaml": "names: [x", "README.txt": "about", "images/a.jpg": IMAGE})
    assert find_splits(str(tmp_path), "") is None
    write_files(tmp_path, {"labels/a.txt": LINE})
    with pytest.raises(DataError, match=r"data\.yaml: not valid YAML: line 1"):
        find_splits(str(tmp_path), "")


def test_captions_beside_a_yaml_file_with_names_are_not_yolo(tmp_path):
    write_files(tmp_path, {"settings.yaml": NAMES, "a.jpg": IMAGE, "a.txt": "a caption\n"})
    assert find_splits(str(tmp_path), "") is None


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
def test_real_datasets_are_recognised_in_folders_above_them(shared_data, folder, counts, boxes):
    found = find_splits(str(shared_data / folder), "")
    assert {split: found.images[split] for split in found.names} == counts
    images = [image for split in counts for image in images_of(shared_data / folder, split)]
    assert sum(len(image.boxes) for image in images if image.problem is None) == boxes
    assert not any(box.problem for image in images for box in image.boxes)
