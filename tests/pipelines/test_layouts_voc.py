"""Folders of Pascal VOC annotations through `ssd-prepare --input=DIR --output=OUT` alone."""

import io
import json
import posixpath
import unicodedata

import pytest
from PIL import Image
from raw_sets import jpeg, make_voc, voc_xml
from tool_exports import write

from pipelines.manifest_writer import read_manifest

# y 12 to 36 of 48 and x 8 to 24 of 64.
BOX = ("car", 12, 8, 36, 24)
CORNERS = [0.25, 0.125, 0.75, 0.375]


def write_pair(root, annotation, image, boxes=(BOX,), filename=None):
    """Writes an annotation and its image; the annotation names the image unless `filename` is given."""
    write(root, annotation, voc_xml(filename or image.rpartition("/")[2], boxes))
    write(root, image)


@pytest.fixture
def run(tmp_path, command):
    """Runs the command on tmp_path/raw: run(flags...) -> (manifest, output); fails unless it succeeds."""

    def run(*arguments, folder="raw"):
        output = tmp_path / "out"
        arguments = arguments or ("--split_by=none",)
        code, out, err = command(
            f"--input={tmp_path / folder}", f"--output={output}", "--set=model.input_size=64", *arguments
        )
        assert (code, err) == (0, ""), out + err
        return read_manifest(str(output)), out

    return run


# Name: annotation, image, what is recognized, and the splits of the source; `@` is replaced by the split.
LAYOUTS = {
    "Kaggle": ("annotations/{}.xml", "images/{}.png", "VOC annotations", ()),
    "Label Studio": ("Annotations/{}.xml", "images/{}.jpg", "VOC annotations", ()),
    "makesense": ("labels_my-project_2024-03-01/{}.xml", "images/{}.jpg", "VOC annotations", ()),
    "makesense below split folders": (
        "@/labels_my-project/{}.xml",
        "@/photos/{}.jpg",
        "VOC annotations",
        ("train", "val"),
    ),
    "annotations in a folder with another name": ("my boxes/{}.xml", "camera/{}.jpg", "VOC annotations", ()),
    "LabelImg": ("{}.xml", "{}.jpg", "VOC annotations beside the images", ()),
    "Roboflow": ("@/{}.xml", "@/{}.jpg", "VOC annotations beside the images", ("train", "valid", "test")),
    "one folder per split": ("@/annots/{}.xml", "@/images/{}.jpg", "VOC annotations", ("train", "val")),
    "devkit without lists": (
        "Annotations/@/{}.xml",
        "JPEGImages/@/{}.jpg",
        "VOC annotations",
        ("train", "test", "val"),
    ),
    "devkit with splits of annotations only": (
        "Annotations/@/{}.xml",
        "JPEGImages/{}.jpg",
        "VOC annotations",
        ("train", "val"),
    ),
    "folders of classes": ("annotations/cars/{}.xml", "images/cars/{}.jpg", "VOC annotations", ()),
    "folders of classes beside the images": ("cars/{}.xml", "cars/{}.jpg", "VOC annotations beside the images", ()),
    "folders below a repository": ("repo/dataset/labels/{}.xml", "repo/dataset/imgs/{}.jpg", "VOC annotations", ()),
    "suffix in capitals": ("xmls/{}.XML", "photos/{}.JPG", "VOC annotations", ()),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_is_recognized_and_read(tmp_path, run, records_of, name):
    annotation, image, title, splits = LAYOUTS[name]
    for split in splits or ("",):
        for stem in (f"{split}1", f"{split}2"):
            paths = [path.format(stem).replace("@", split) for path in (annotation, image)]
            write_pair(tmp_path / "raw", *paths)
    manifest, out = run("--split_by=none")
    assert out.startswith(f"recognized {title}: ")
    assert ": 0 images" not in out
    outputs = {"valid": "val"}
    names = [outputs.get(split, split) for split in splits or ("train",)]
    assert {
        split: (own.images, own.boxes, own.rejected_images) for split, own in manifest.splits.items()
    } == dict.fromkeys(names, (2, 2, {}))
    for split in names:
        for record in records_of(tmp_path / "out", manifest, split).values():
            assert record.objects.boxes.tolist() == [CORNERS]


def test_the_root_of_the_devkit_contains_several_years(tmp_path, run, records_of):
    for year in ("VOC2007", "VOC2012"):
        images = {f"{year}{stem}": [BOX] for stem in ("a", "b")}
        splits = {"train": [f"{year}a"], "val": [f"{year}b"], "trainval": list(images), "car_train": [f"{year}a"]}
        make_voc(tmp_path / f"raw/VOCdevkit/{year}", images, splits)
    manifest, out = run()
    assert out.startswith("recognized VOC devkit with 2 datasets: train 2, val 2 images")
    assert "omitted, because they repeat images of other splits (--split selects them): car_train, trainval" in out
    assert sorted(records_of(tmp_path / "out", manifest)) == ["VOC2007a", "VOC2012a"]
    assert sorted(records_of(tmp_path / "out", manifest, "val")) == ["VOC2007b", "VOC2012b"]


def test_images_in_no_list_are_reported(tmp_path, run):
    splits = {"train": ["a"], "val": ["b"], "trainval": ["a", "b", "d"]}
    make_voc(tmp_path / "raw", {stem: [BOX] for stem in "abcd"}, splits)
    write(tmp_path / "raw", "JPEGImages/e.jpg")
    manifest, out = run()
    assert f"3 images in {tmp_path}/raw/JPEGImages are in no list of ImageSets/Main" in out
    # The first split reports them; d is only in a list that is not read, and e has no annotation.
    assert {name: (split.images, split.rejected_images) for name, split in manifest.splits.items()} == {
        "train": (1, {"not_annotated": 1, "not_listed": 2}), "val": (1, {}),
    }  # fmt: skip
    lines = (tmp_path / "out/train/rejected.jsonl").read_text().splitlines()
    assert sorted(posixpath.basename(json.loads(line)["image"]) for line in lines) == ["c.jpg", "d.jpg", "e.jpg"]
    manifest, _ = run("--split=all", "--split_by=all:1")
    assert (manifest.splits["all"].images, manifest.splits["all"].rejected_images) == (4, {"not_annotated": 1})


def test_a_list_that_names_another_xml_file_is_reported(tmp_path, run):
    make_voc(tmp_path / "raw", {"a": [BOX]}, {"train": ["a", "project"]})
    write(tmp_path / "raw", "Annotations/project.xml", "<project/>")
    manifest, _ = run()
    assert manifest.splits["train"].rejected_images == {"broken_annotation": 1}


def test_list_files_may_contain_paths_of_images(tmp_path, run):
    make_voc(tmp_path / "raw", {"a": [BOX], "b": [BOX]}, {})
    write(tmp_path / "raw", "ImageSets/Main/train.txt", "/home/other/JPEGImages/a.jpg\n")
    write(tmp_path / "raw", "ImageSets/Main/val.txt", "C:\\work\\b.jpg\n")
    manifest, _ = run()
    assert {name: (split.images, split.rejected_images) for name, split in manifest.splits.items()} == {
        "train": (1, {}), "val": (1, {}),
    }  # fmt: skip


def test_images_without_annotation_and_annotations_without_image_are_reported(tmp_path, run):
    write_pair(tmp_path / "raw", "train/a.xml", "train/a.jpg")
    for stem in "bcd":
        write(tmp_path / "raw", f"train/{stem}.jpg")
    write(tmp_path / "raw", "train/e.xml", voc_xml("e.jpg", [BOX]))
    split = run()[0].splits["train"]
    assert split.rejected_images == {"not_annotated": 3, "missing_image": 1}
    assert (split.images_read, split.images, split.boxes) == (5, 1, 1)


def test_objects_in_a_list_are_read(tmp_path, run):
    text = voc_xml("a.jpg", [BOX, ("bolt", 6, 30, 42, 60)])
    write(
        tmp_path / "raw",
        "train/a.xml",
        text.replace("<object>", "<objects><object>", 1).replace("</annotation>", "</objects></annotation>"),
    )
    write(tmp_path / "raw", "train/a.jpg")
    manifest, _ = run()
    assert manifest.classes == ("bolt", "car")
    assert manifest.splits["train"].boxes == 2


SHAPES = {
    # The center of 32, 24 with 24 x 16 pixels, turned by a quarter: 16 x 24 pixels.
    "roLabelImg": (
        "<type>robndbox</type><robndbox><cx>32</cx><cy>24</cy><w>24</w><h>16</h><angle>1.5707963267948966</angle></robndbox>",
        [12 / 48, 24 / 64, 36 / 48, 40 / 64],
    ),
    "Roboflow polygon": (
        "<polygon><x1>8</x1><y1>20</y1><x2>24</x2><y2>12</y2><x3>16</x3><y3>36</y3></polygon>",
        CORNERS,
    ),
    "Roboflow polygon and box": (
        "<bndbox><xmin>8</xmin><xmax>24</xmax><ymin>12</ymin><ymax>36</ymax></bndbox>"
        "<polygon><x1>1</x1><y1>1</y1><x2>2</x2><y2>2</y2></polygon>",
        CORNERS,
    ),
    "FAIR1M": (
        "<points><point>8,20</point><point>24,12</point><point>24,36</point><point>8,36</point><point>8,20</point></points>",
        CORNERS,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_become_the_upright_box_around_them(tmp_path, run, records_of, shape):
    content, corners = SHAPES[shape]
    name = "<possibleresult><name>car</name></possibleresult>" if shape == "FAIR1M" else "<name>car</name>"
    text = f"<annotation><filename>a.jpg</filename><object>{name}{content}</object></annotation>"
    write(tmp_path / "raw", "a.xml", text)
    write(tmp_path / "raw", "a.jpg")
    manifest, _ = run()
    (record,) = records_of(tmp_path / "out", manifest).values()
    assert record.objects.boxes[0].tolist() == pytest.approx(corners)
    assert manifest.splits["train"].reduced_boxes == ("bndbox" not in content.replace("robndbox", ""))


def test_the_name_in_the_annotation_may_differ_from_its_stem(tmp_path, run, records_of):
    for number in (1, 2):
        write_pair(tmp_path / "raw", f"annotations/label{number}.xml", f"images/image{number}.jpg")
    manifest, _ = run()
    assert manifest.splits["train"].rejected_images == {}
    records = records_of(tmp_path / "out", manifest)
    assert {name: record.filename for name, record in records.items()} == {
        "label1": "image1.jpg", "label2": "image2.jpg",
    }  # fmt: skip


NAMES = {
    "case of letters": ("Photo.JPG", "photo.jpg"),
    "suffix": ("a.png", "a.jpg"),
    "no suffix": ("a", "a.jpg"),
    "NFD on disk": (unicodedata.normalize("NFC", "écrou.jpg"), unicodedata.normalize("NFD", "écrou.jpg")),
    "NFC on disk": (unicodedata.normalize("NFD", "écrou.jpg"), unicodedata.normalize("NFC", "écrou.jpg")),
    "absolute path": ("/home/other/x/a.jpg", "a.jpg"),
    "absolute path with a drive": ("D:\\x\\a.jpg", "a.jpg"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_differ_from_those_of_the_files(tmp_path, run, case):
    written, on_disk = NAMES[case]
    write_pair(tmp_path / "raw", "annotations/1.xml", f"images/{on_disk}", filename=written)
    split = run()[0].splits["train"]
    assert (split.images_read, split.images, split.rejected_images) == (1, 1, {})


def test_a_png_with_the_suffix_of_a_jpeg_is_read(tmp_path, run):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg())).save(buffer, "PNG")
    write_pair(tmp_path / "raw", "a.xml", "a.jpg")
    write(tmp_path / "raw", "a.jpg", buffer.getvalue())
    assert run()[0].splits["train"].images == 1


def test_fractions_are_refused_with_their_reason(tmp_path, command):
    for stem in "abc":
        write_pair(tmp_path / "raw", f"train/{stem}.xml", f"train/{stem}.jpg", [("car", 0.2, 0.1, 0.7, 0.5)])
    code, _, err = command(f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}", "--split_by=none")
    assert code == 3
    assert "fractions" in err


def test_the_xml_of_cvat_is_read_as_such(tmp_path, command):
    write(tmp_path / "raw", "images/a.jpg")
    box = '<box label="car" xtl="8" ytl="12" xbr="24" ybr="36"/>'
    image = f'<image id="0" name="a.jpg" width="64" height="48">{box}</image>'
    write(tmp_path / "raw", "annotations.xml", f"<annotations><version>1.1</version>{image}</annotations>")
    arguments = (f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}", "--set=model.input_size=64")
    code, _, err = command(*arguments, "--input_format=voc", "--split=train")
    assert code == 3
    assert "it looks like CVAT for images export: use --input_format=cvat" in err
    code, out, err = command(*arguments, "--split_by=none")
    assert (code, err) == (0, "")
    assert out.startswith("recognized CVAT for images export: 1 image\n")


def test_other_files_beside_the_annotations_are_ignored(tmp_path, run):
    write_pair(tmp_path / "raw", "a.xml", "a.jpg")
    write(tmp_path / "raw", "0_project.xml", "<project><module/></project>")
    write(tmp_path / "raw", "classes.txt", "car\n")
    write(tmp_path / "raw", "package.json", "{}")
    manifest, out = run()
    assert out.startswith("recognized VOC annotations beside the images")
    assert (manifest.splits["train"].images_read, manifest.splits["train"].images) == (1, 1)


def test_several_folders_of_annotations_share_a_folder_of_images(tmp_path, run):
    for number, folder in enumerate(("labels_monday", "labels_tuesday")):
        write_pair(tmp_path / "raw", f"{folder}/{number}.xml", f"images/{number}.jpg")
    manifest, _ = run("--split_by=none")
    assert (manifest.splits["train"].images, manifest.splits["train"].rejected_images) == (2, {})
