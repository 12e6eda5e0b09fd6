"""Folders of annotation tools and public datasets through `ssd-prepare --input=DIR --output=OUT` alone."""

import json

import pytest
from raw_sets import jpeg
from tool_exports import (
    BOX,
    CORNERS,
    OTHER,
    PER_FOLDER,
    PER_IMAGE,
    cvat,
    label_studio,
    vott_asset,
    wider,
    write,
    write_per_folder,
    write_per_image,
)

from pipelines.manifest_writer import read_manifest

TWO = {"a": [BOX], "b": [BOX, OTHER]}
ONE = {"c": [BOX]}
EMPTY = {"d": []}


def split_set(write_one, *splits):
    """Returns a function that writes one set of images per split, with a format string for the split in its paths."""

    def make(root):
        for number, split in enumerate(splits):
            write_one(root, split, {f"{split}{stem}": boxes for stem, boxes in (TWO if not number else ONE).items()})

    return make


def per_image(input_format, annotation, image, *splits):
    """Returns a function that writes annotations of one image each; `@` in the paths is replaced by the split."""

    def write_one(root, split, boxes):
        write_per_image(root, input_format, annotation.replace("@", split), image.replace("@", split), boxes)

    return split_set(write_one, *splits) if splits else lambda root: write_one(root, "", {**TWO, **ONE})


def per_folder(input_format, annotation, image, *splits, prefix=""):
    """Returns a function that writes annotations of many images each; `@` in the paths is replaced by the split."""

    def write_one(root, split, boxes):
        write_per_folder(
            root,
            input_format,
            annotation.replace("@", split),
            image.replace("@", split),
            boxes,
            prefix.replace("@", split),
        )

    return split_set(write_one, *splits) if splits else lambda root: write_one(root, "", {**TWO, **ONE})


SPLITS = ("train", "val", "test")
# Name: format, title, and the function that writes the folder. A layout with splits has 2 images with 3 boxes in the
# first split and 1 image with 1 box in each of the others; one without has 3 images with 4 boxes.
LAYOUTS = {
    "labelme beside the images": ("labelme", per_image("labelme", "{}.json", "{}.jpg"), ()),
    "labelme in two folders": ("labelme", per_image("labelme", "annotations/{}.json", "images/{}.png"), ()),
    "labelme with split folders": ("labelme", per_image("labelme", "@/{}.json", "@/{}.jpg", *SPLITS), SPLITS),
    "labelme with split folders below": (
        "labelme",
        per_image("labelme", "labels/@/{}.json", "images/@/{}.jpg", "train", "val"),
        ("train", "val"),
    ),
    "Supervisely": ("supervisely", per_image("supervisely", "parts/ds0/ann/{}.jpg.json", "parts/ds0/img/{}.jpg"), ()),
    "Supervisely with datasets as splits": (
        "supervisely",
        per_image("supervisely", "@/ann/{}.jpg.json", "@/img/{}.jpg", *SPLITS),
        SPLITS,
    ),
    "Supervisely, names without the suffix of the image": (
        "supervisely",
        per_image("supervisely", "ann/{}.json", "img/{}.png"),
        (),
    ),
    "KITTI": ("kitti", per_image("kitti", "training/label_2/{}.txt", "training/image_2/{}.png", "training"), ()),
    "KITTI without the folder of the split": ("kitti", per_image("kitti", "label_2/{}.txt", "image_2/{}.png"), ()),
    "KITTI with split folders": ("kitti", per_image("kitti", "@/labels/{}.txt", "@/images/{}.jpg", *SPLITS), SPLITS),
    "DOTA": ("dota", per_image("dota", "@/labelTxt/{}.txt", "@/images/{}.png", "train", "val"), ("train", "val")),
    "DOTA with a version": (
        "dota",
        per_image("dota", "@/labelTxt-v1.5/DOTA-v1.5_@/{}.txt", "@/images/{}.png", "train", "val"),
        ("train", "val"),
    ),
    "DOTA tiles": ("dota", per_image("dota", "labelTxt/{}__1__0___0.txt", "images/{}__1__0___0.png"), ()),
    "VisDrone": (
        "visdrone",
        per_image(
            "visdrone", "VisDrone2019-DET-@/annotations/{}.txt", "VisDrone2019-DET-@/images/{}.jpg", "train", "val"
        ),
        ("train", "val"),
    ),
    "VisDrone without splits": ("visdrone", per_image("visdrone", "annotations/{}.txt", "images/{}.jpg"), ()),
    "VisDrone beside the images": ("visdrone", per_image("visdrone", "{}.txt", "{}.jpg"), ()),
    "Create ML": ("create_ml", per_folder("create_ml", "annotations.json", "{}.jpg"), ()),
    "Create ML of Roboflow": (
        "create_ml",
        per_folder("create_ml", "@/_annotations.createml.json", "@/{}.jpg", "train", "valid", "test"),
        SPLITS,
    ),
    "Create ML in two folders": ("create_ml", per_folder("create_ml", "annotations/all.json", "images/{}.jpg"), ()),
    "VIA": ("via", per_folder("via", "via_region_data.json", "{}.jpg"), ()),
    "VIA with split folders": (
        "via",
        per_folder("via", "@/via_region_data.json", "@/{}.jpg", "train", "val"),
        ("train", "val"),
    ),
    "VIA with names of splits": (
        "via",
        per_folder("via", "annotations/via_@.json", "images/@/{}.png", "train", "val"),
        ("train", "val"),
    ),
    "VIA 3": ("via3", per_folder("via3", "via_project_1Jan2024_10h00m00s.json", "{}.jpg"), ()),
    "VIA 3 in two folders": ("via3", per_folder("via3", "parts.json", "images/{}.jpg", prefix="images/"), ()),
    "VIA 3 with split folders": (
        "via3",
        per_folder("via3", "@/project.json", "@/{}.jpg", "train", "val"),
        ("train", "val"),
    ),
    "VoTT": ("vott", per_folder("vott", "vott-json-export/parts-export.json", "vott-json-export/{}.jpg"), ()),
    "VoTT beside a folder of images": ("vott", per_folder("vott", "parts-export.json", "source/{}.jpg"), ()),
    "VoTT with split folders": (
        "vott",
        per_folder("vott", "@/parts-export.json", "@/{}.jpg", "train", "test"),
        ("train", "test"),
    ),
    "Label Studio": (
        "label_studio",
        per_folder("label_studio", "project-1-at-2024-01-01.json", "images/0a1b2c3d-{}.jpg"),
        (),
    ),
    "Label Studio with the names before the upload": (
        "label_studio",
        per_folder("label_studio", "export.json", "images/{}.jpg"),
        (),
    ),
    "Label Studio with split folders": (
        "label_studio",
        per_folder("label_studio", "@/result.json", "@/images/{}.jpg", "train", "val"),
        ("train", "val"),
    ),
    "CVAT": ("cvat", per_folder("cvat", "annotations.xml", "images/{}.jpg"), ()),
    "CVAT with subfolders in the names": (
        "cvat",
        per_folder("cvat", "annotations.xml", "images/cam1/{}.jpg", prefix="cam1/"),
        (),
    ),
    "CVAT project with subsets": (
        "cvat",
        per_folder("cvat", "@/annotations.xml", "@/images/{}.jpg", "train", "val"),
        ("train", "val"),
    ),
    "WIDER FACE": (
        "wider",
        per_folder(
            "wider",
            "wider_face_split/wider_face_@_bbx_gt.txt",
            "WIDER_@/images/0--Parade/{}.jpg",
            "train",
            "val",
            prefix="0--Parade/",
        ),
        ("train", "val"),
    ),
    "WIDER FACE without splits": ("wider", per_folder("wider", "faces.txt", "images/{}.jpg"), ()),
    "Keras YOLO": ("keras_yolo", per_folder("keras_yolo", "annotations.txt", "images/{}.jpg", prefix="images/"), ()),
    "Keras YOLO of Roboflow": (
        "keras_yolo",
        per_folder("keras_yolo", "@/_annotations.txt", "@/{}.jpg", "train", "valid", "test"),
        SPLITS,
    ),
    "Keras YOLO with absolute paths": (
        "keras_yolo",
        per_folder("keras_yolo", "train.txt", "data/{}.jpg", prefix="/home/other/data/"),
        (),
    ),
}
# Layouts with a training split and no other.
ONE_SPLIT = ("KITTI",)
TITLES = {
    "labelme": "labelme annotations",
    "supervisely": "Supervisely annotations",
    "kitti": "KITTI labels",
    "dota": "DOTA labels",
    "visdrone": "VisDrone annotations",
    "create_ml": "Create ML annotations",
    "via": "VIA annotations",
    "via3": "VIA 3 project",
    "vott": "VoTT export",
    "label_studio": "Label Studio export",
    "cvat": "CVAT for images export",
    "wider": "WIDER FACE annotations",
    "keras_yolo": "Keras YOLO annotations",
}
CLASSES = {"wider": "face", "keras_yolo": "0"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_is_recognized_and_read(tmp_path, prepare_folder, records_of, name):
    input_format, make, splits = LAYOUTS[name]
    make(tmp_path / "raw")
    # Whether three images divided by hash give a validation split depends on their names.
    manifest, out = prepare_folder("--split_by=none")
    assert out.startswith(f"recognized {TITLES[input_format]}: ")
    assert manifest.classes == (CLASSES.get(input_format, "car"),)
    counts = {split: (own.images, own.boxes, own.rejected_images) for split, own in manifest.splits.items()}
    if len(splits) > 1:
        assert counts == {split: ((2, 3, {}) if split == "train" else (1, 1, {})) for split in splits}
    else:
        assert counts == {"train": (2, 3, {}) if name in ONE_SPLIT else (3, 4, {})}
    records = {}
    for split in manifest.splits:
        records |= records_of(tmp_path / "out", manifest, split)
    assert all(record.objects.boxes[0].tolist() == CORNERS for record in records.values())


# Files that tools and users add to a folder.
UNRELATED = {
    "README.roboflow.txt": "parts - v1\nExported via roboflow.com on January 1, 2024\n",
    "README.dataset.txt": "10 images of 2 cars\n",
    "0_notes.txt": "to do: label 5 more\n",
    "package.json": '{"name": "viewer", "version": "1.0.0", "files": ["a"]}',
    "0_settings.json": '{"shapes": "none"}',
    ".vscode/settings.json": '{"objects": 1, "size": 2}',
    "pom.xml": "<project><version>1</version></project>",
    "0_project.xml": "<project/>",
}


@pytest.mark.parametrize("input_format", [*PER_IMAGE, *PER_FOLDER])
def test_other_files_extra_images_and_missing_images(tmp_path, prepare_folder, input_format):
    root = tmp_path / "raw"
    if input_format in PER_IMAGE:
        write_per_image(
            root,
            input_format,
            "{}.jpg.json"
            if input_format == "supervisely"
            else "{}" + (".json" if input_format == "labelme" else ".txt"),
            "{}.jpg",
            {**TWO, **ONE, **EMPTY},
        )
    else:
        suffix = {"cvat": "xml", "wider": "txt", "keras_yolo": "txt"}.get(input_format, "json")
        write_per_folder(root, input_format, f"list.{suffix}", "{}.jpg", {**TWO, **ONE, **EMPTY})
    for name, content in UNRELATED.items():
        write(root, name, content)
    (root / "c.jpg").unlink()
    write(root, "extra.jpg")
    write(root, "extra.heic", b"\0\0\0\0ftypheic")
    manifest, _ = prepare_folder("--split_by=none")
    split = manifest.splits["train"]
    assert split.rejected_images == {"not_annotated": 2, "missing_image": 1}
    assert (split.images_read, split.images, split.boxes) == (6, 3, 3)


def test_equal_names_in_several_datasets_are_different_images(tmp_path, prepare_folder, records_of):
    for number, dataset in enumerate(("ds0", "ds1")):
        write_per_image(tmp_path / "raw", "supervisely", f"{dataset}/ann/{{}}.jpg.json", f"{dataset}/img/{{}}.jpg", TWO)
        write(tmp_path / "raw", f"{dataset}/img/a.jpg", jpeg(number))
        write(tmp_path / "raw", f"{dataset}/img/b.jpg", jpeg(number + 2))
    manifest, _ = prepare_folder("--split_by=none")
    assert manifest.splits["train"].rejected_images == {}
    assert sorted(records_of(tmp_path / "out", manifest)) == [
        "ds0/ann/a.jpg",
        "ds0/ann/b.jpg",
        "ds1/ann/a.jpg",
        "ds1/ann/b.jpg",
    ]


@pytest.mark.parametrize("prefix", ["", "0--Parade/"])
def test_wider_face_has_one_folder_per_event(tmp_path, prepare_folder, records_of, prefix):
    names = ["0--Parade/a.jpg", "1--Handshaking/a.jpg", "1--Handshaking/b.jpg"]
    for name in names:
        write(tmp_path / "raw", f"WIDER_train/images/{name}")
    write(tmp_path / "raw", "wider_face_split/wider_face_train_bbx_gt.txt", wider({name: [BOX] for name in names}))
    manifest, _ = prepare_folder("--split_by=none")
    assert manifest.splits["train"].rejected_images == {}
    assert sorted(records_of(tmp_path / "out", manifest)) == names


def test_an_image_is_found_in_a_subfolder_by_the_end_of_its_path(tmp_path, prepare_folder):
    for name in ("front/1.jpg", "back/1.jpg", "back/2.jpg"):
        write(tmp_path / "raw", f"images/{name}")
    images = {"D:\\work\\front\\1.jpg": [BOX], "D:\\work\\back\\1.jpg": [BOX], "2.jpg": [BOX], "3.jpg": [BOX]}
    write(tmp_path / "raw", "annotations.xml", cvat(images))
    manifest, _ = prepare_folder("--split_by=none")
    assert manifest.splits["train"].rejected_images == {"missing_image": 1}
    assert manifest.splits["train"].images == 3


def test_names_of_images_do_not_decide_the_split(tmp_path, prepare_folder):
    boxes = {f"{word}_{number}": [BOX] for word in ("train", "val", "test") for number in range(2)}
    write_per_image(tmp_path / "raw", "labelme", "{}.json", "{}.jpg", boxes)
    manifest, out = prepare_folder("--split_by=none")
    assert "labelme annotations: 6 images" in out
    assert manifest.splits["train"].images == 6


def test_an_image_without_annotations_in_another_folder_is_announced(tmp_path, prepare_folder):
    write_per_image(tmp_path / "raw", "kitti", "training/label_2/{}.txt", "training/image_2/{}.png", TWO)
    for number in range(3):
        write(tmp_path / "raw", f"testing/image_2/{number}.png")
    manifest, out = prepare_folder("--split_by=none")
    assert "images without annotations, which are not read: 3 in testing/image_2" in out
    assert manifest.splits["train"].images_read == 2


def test_annotations_above_a_folder_of_other_annotations_describe_their_own_images(tmp_path, prepare_folder):
    write_per_folder(tmp_path / "raw", "via", "via_project.json", "{}.jpg", TWO)
    write_per_folder(tmp_path / "raw", "via", "more/via_project.json", "more/{}.jpg", ONE)
    write(tmp_path / "raw", "extra.jpg")
    manifest, _ = prepare_folder("--split_by=none")
    assert manifest.splits["train"].rejected_images == {"not_annotated": 1}
    assert manifest.splits["train"].images == 3


def test_keras_yolo_classes_are_named_by_a_file(tmp_path, prepare_folder):
    for split in ("train", "valid"):
        write_per_folder(
            tmp_path / "raw",
            "keras_yolo",
            f"{split}/_annotations.txt",
            f"{split}/{{}}.jpg",
            {f"{split}1": [BOX], f"{split}0": []},
        )
        write(tmp_path / "raw", f"{split}/_classes.txt", "bolt\nnut\n")
    manifest, _ = prepare_folder()
    assert manifest.classes == ("bolt",)
    assert {name: (split.images, split.boxes) for name, split in manifest.splits.items()} == {
        "train": (2, 1), "val": (2, 1),
    }  # fmt: skip


def test_a_list_of_images_without_boxes_at_its_start_is_recognized(tmp_path, prepare_folder):
    write_per_folder(tmp_path / "raw", "keras_yolo", "list.txt", "{}.jpg", {**EMPTY, **TWO})
    manifest, out = prepare_folder("--split_by=none")
    assert out.startswith("recognized Keras YOLO annotations")
    assert manifest.splits["train"].images == 3


def test_the_files_of_vott_assets_are_read(tmp_path, prepare_folder):
    for name, boxes in (("a.jpg", [BOX]), ("b.jpg", [BOX, OTHER])):
        write(tmp_path / "raw", name)
        write(tmp_path / "raw", f"id{name}-asset.json", json.dumps(vott_asset(name, boxes)))
    write(tmp_path / "raw", "parts.vott", json.dumps({"name": "parts", "assets": {}, "tags": []}))
    manifest, _ = prepare_folder("--split_by=none")
    assert (manifest.splits["train"].images, manifest.splits["train"].boxes) == (2, 3)


def test_a_file_or_a_pattern_may_be_the_input(tmp_path, command):
    write_per_image(tmp_path / "raw", "labelme", "{}.json", "{}.jpg", TWO)
    write(tmp_path / "raw", "label.json", label_studio({"a.jpg": [BOX]}))
    for number, (path, images) in enumerate({"raw/*.json": 2, "raw/b.json": 1, "raw/label.json": 1}.items()):
        output = tmp_path / f"out{number}"
        code, out, err = command(
            f"--input={tmp_path / path}", f"--output={output}", "--set=model.input_size=64", "--split_by=none"
        )
        assert (code, err) == (0, ""), out + err
        assert read_manifest(str(output)).splits["train"].images == images
