"""Folders that are almost what prepare expects: what is read all the same, and what the message explains otherwise."""

import io
import json
import zipfile

import pytest
from PIL import Image
from raw_sets import jpeg, write_files

# The EXIF tag of the orientation.
ORIENTATION = 274
HEADER = "filename,class,xmin,ymin,xmax,ymax\n"
BOXES = HEADER + "".join(f"{name}.jpg,cat,10,12,50,36\n" for name in "abcd")
LABEL = "0 .5 .5 .25 .25\n"
LABEL_STUDIO = "image,id,label,annotator,annotation_id,created_at,updated_at,lead_time\n/data/a.jpg,1,[],1,1,x,x,1\n"
COCO = json.dumps(
    {
        "categories": [{"id": 1, "name": "cat"}],
        "images": [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate("abcd")],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 12, 40, 24]} for n in range(4)],
    }
)
DARWIN = {"version": "2.0", "item": {"name": "a.jpg", "slots": []}, "annotations": []}


def write(tmp_path, files, images="images/{}.jpg"):
    write_files(tmp_path / "raw", files | {images.format(name): jpeg(number) for number, name in enumerate("abcd")})


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        ({"LABELS.CSV": BOXES}, ("cat",)),
        ({"ANNOTATIONS.JSON": COCO}, ("cat",)),
        ({"DATA.YAML": "names: [cat]\n", **{f"labels/{name}.TXT": LABEL for name in "abcd"}}, ("cat",)),
        ({"Classes.txt": "cat\n", **{f"Labels/{name}.txt": LABEL for name in "abcd"}}, ("cat",)),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_names_may_be_in_any_case(tmp_path, prepare_folder, files, classes):
    write(tmp_path, files)
    manifest, _ = prepare_folder("--split_by=none")
    split = manifest.splits["train"]
    assert (manifest.classes, split.images, split.boxes) == (classes, 4, 4)


def test_a_format_that_cannot_be_read_does_not_hide_the_one_that_fits(tmp_path, prepare_folder, command):
    # The YOLO export of Roboflow with rotated boxes: a data.yaml beside labels of DOTA.
    for split in ("train", "valid"):
        labels = {f"{split}/labelTxt/{name}.txt": "10 12 50 12 50 36 10 36 cat 0\n" for name in "abcd"}
        write(tmp_path, labels, f"{split}/images/{{}}.jpg")
    (tmp_path / "raw/data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 1\nnames: [cat]\n")
    manifest, out = prepare_folder()
    assert {name: (split.images, split.boxes) for name, split in manifest.splits.items()} == {
        "train": (4, 4), "val": (4, 4),
    }  # fmt: skip
    assert "note: not read as yolo: " in out
    # Annotations of a few of the images do not replace the ones that cannot be read.
    for path in [*(tmp_path / "raw").glob("*/labelTxt/*.txt")][3:]:
        path.unlink()
    code, _, err = command(f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'other'}")
    assert code == 3
    assert "data.yaml: no images with label files were found" in err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.json": json.dumps(DARWIN)}, "a.json is a file of Darwin (V7), which is not supported; export COCO"),
        ({"results.csv": BOXES}, "results.csv has the name of a file of results; pass it as --input to read it"),
        ({"result.csv": LABEL_STUDIO}, "a CSV export of Label Studio, which is not supported; export JSON"),
        ({"labels/1.txt": LABEL, "classes.txt": "cat\n"}, "as YOLO labels: none of 4 images has a label file"),
        (
            {"classes.txt": "cat\n", **{f"labels/{name}.txt": "0 20 20 30 30\n" for name in "abcd"}},
            "'0 20 20 30 30' is not a line of YOLO: class x_center y_center width height as fractions",
        ),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_the_message_explains_what_the_folder_contains(tmp_path, command, files, message):
    write(tmp_path, files)
    code, _, err = command(f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}")
    assert code == 3
    assert message in err


@pytest.mark.parametrize("path", ["raw", "raw/export.zip"])
def test_an_archive_must_be_unpacked(tmp_path, command, path):
    (tmp_path / "raw").mkdir()
    with zipfile.ZipFile(tmp_path / "raw/export.zip", "w") as archive:
        archive.writestr("a.jpg", jpeg())
    code, _, err = command(f"--input={tmp_path / path}", f"--output={tmp_path / 'out'}")
    assert code == 3
    assert f"{tmp_path / 'raw/export.zip'} is an archive; unpack it, and pass the folder" in err


def test_class_numbers_that_begin_with_1_are_explained(tmp_path, prepare_folder):
    labels = {f"labels/{name}.txt": "1 .3 .3 .2 .2\n2 .6 .6 .3 .3\n" for name in "abcd"}
    write(tmp_path, {"classes.txt": "cat\ndog\n", **labels})
    manifest, out = prepare_folder("--split_by=none", "--max_rejected_fraction=0.5")
    assert manifest.splits["train"].rejected_boxes == {"unknown_class": 4}
    assert "no split contains an object of cat, and boxes of unknown classes were rejected; if these are YOLO" in out


def test_pixels_in_yolo_labels_are_rejected(tmp_path, command):
    # Around the center (10, 12), such a box reaches over the whole image.
    labels = {f"labels/{name}.txt": "0 10 12 40 48\n" for name in "abcd"}
    write(tmp_path, {"data.yaml": "train: images\nnames: [cat]\n", **labels})
    code, _, err = command(f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}", "--split_by=none")
    assert code == 3
    assert "all 4 boxes were rejected; most frequent reason: outside (4)" in err
    assert "its coordinates are probably pixels" in err


def test_classes_that_differ_in_case_only_are_reported(tmp_path, prepare_folder):
    rows = "a.jpg,cat,10,12,50,36\nb.jpg,Cat,10,12,50,36\nc.jpg,dog,10,12,50,36\nd.jpg,dog,10,12,50,36\n"
    write(tmp_path, {"labels.csv": HEADER + rows})
    manifest, out = prepare_folder("--split_by=none")
    assert manifest.classes == ("Cat", "cat", "dog")
    assert "warning: the classes Cat and cat differ in case only" in out


def test_images_that_were_annotated_before_their_rotation_cast_doubt_on_the_others(tmp_path, prepare_folder):
    def rotated():
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        file = io.BytesIO()
        Image.new("RGB", (96, 72)).save(file, "JPEG", exif=exif)
        return file.getvalue()

    write_files(tmp_path / "raw", {f"images/{name}.jpg": rotated() for name in "ab"})
    # The stored image is 96 x 72 pixels. The first box fits only it; the second one fits the upright image, too.
    boxes = [[60, 10, 30, 30], [10, 10, 30, 40]]
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 96, "height": 72} for n, name in enumerate("ab")]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": boxes[n]} for n in range(2)]
    content = {"categories": [{"id": 1, "name": "cat"}], "images": images, "annotations": annotations}
    (tmp_path / "raw/a.json").write_text(json.dumps(content))
    manifest, out = prepare_folder("--split_by=none", "--max_rejected_fraction=0.5")
    assert manifest.splits["train"].rejected_images == {"rotated_image": 1}
    assert "1 images were annotated before their EXIF rotation; other rotated images" in out
