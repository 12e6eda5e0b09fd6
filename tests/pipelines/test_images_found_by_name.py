"""COCO files whose names have folders of another machine: the images are found by the rest of their names."""

import json

import pytest
from raw_sets import jpeg, voc_xml

UPLOAD = "../../../label-studio/data/media/upload/1/0a1b2c3d-"
# Name in the annotations and place of the file, for images a to d.
PLACES = {
    "Label Studio": (UPLOAD + "{}.jpg", "images/0a1b2c3d-{}.jpg"),
    "Label Studio, original images": (UPLOAD + "{}.jpg", "images/{}.jpg"),
    "folders of another machine": ("dataset/raw/{}.jpg", "images/{}.jpg"),
    "names without folders": ("{}.jpg", "images/day_{0}/{0}.jpg"),
    "percent-encoded": ("photo%20{}%C3%9F.jpg", "images/photo {}ß.jpg"),
    "percent-encoded, in other folders": ("raw/photo%20{}%C3%9F.jpg", "images/day/photo {}ß.jpg"),
}


def write_coco(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    boxes = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [number, 2, 20, 30]}
        for number in range(len(names))
    ]
    path.write_text(json.dumps({"categories": [{"id": 1, "name": "cat"}], "images": images, "annotations": boxes}))


def write_images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number, width=64 + number))


@pytest.mark.parametrize(
    ("places", "annotations", "flags"),
    [
        *((places, "result.json", []) for places in PLACES),
        *((places, "annotations/a.json", ["--image_dir={}/images"]) for places in PLACES),
        ("folders of another machine", "Annotations/a.json", []),
        ("folders of another machine", "labels/a.json", []),
    ],
)
def test_every_image_gets_its_boxes(tmp_path, prepare_folder, records_of, places, annotations, flags):
    name, place = PLACES[places]
    write_coco(tmp_path / "raw" / annotations, [name.format(letter) for letter in "abcd"])
    write_images(tmp_path / "raw", [place.format(letter) for letter in "abcd"])
    manifest, _ = prepare_folder("--split_by=none", *(flag.format(tmp_path / "raw") for flag in flags))
    found = records_of(tmp_path / "out", manifest)
    # Image n is 64 + n pixels wide, and its box begins at x = n.
    assert {name: (record.original_width, record.objects.boxes[0, 1]) for name, record in found.items()} == {
        str(number): (64 + number, pytest.approx(number / (64 + number))) for number in range(4)
    }
    assert (tmp_path / "out/train/rejected.jsonl").read_text() == ""


def test_a_file_may_be_passed_from_a_folder_of_labels(tmp_path, command):
    write_coco(tmp_path / "raw/labels/a.json", ["a.jpg", "b.jpg"])
    write_images(tmp_path / "raw/images", ["a.jpg", "b.jpg"])
    file, out = tmp_path / "raw/labels/a.json", tmp_path / "out"
    code, _, err = command(f"--input={file}", f"--output={out}", "--split_by=none", "--set=model.input_size=64")
    assert (code, err) == (0, "")
    assert json.loads((out / "dataset.json").read_text())["splits"]["train"]["images"] == 2


def test_splits_are_searched_in_their_own_folders(tmp_path, prepare_folder):
    for split in ("train", "val"):
        write_coco(tmp_path / f"raw/{split}.json", ["x/a.jpg", "x/b.jpg"])
        write_images(tmp_path / "raw/pixels" / split, ["a.jpg", "b.jpg"])
    manifest, _ = prepare_folder()
    assert {name: (split.images, split.boxes) for name, split in manifest.splits.items()} == {
        "train": (2, 2), "val": (2, 2),
    }  # fmt: skip


def test_names_that_fit_several_files_are_rejected(tmp_path, prepare_folder):
    write_coco(tmp_path / "raw/a.json", ["x/a.jpg", "x/b.jpg", "x/missing.jpg"])
    write_images(tmp_path / "raw", ["day/a.jpg", "night/a.jpg", "day/b.jpg", "day/c.jpg"])
    manifest, _ = prepare_folder("--split_by=none", "--max_rejected_fraction=1")
    split = manifest.splits["train"]
    assert (split.images, split.boxes) == (1, 1)
    assert split.rejected_images == {"ambiguous_image": 1, "missing_image": 1, "not_annotated": 1}


# Django, on which Label Studio is built, encodes the names of uploaded files in their addresses.
ENCODED = {
    "YOLO": ("labels/0a1b2c3d-{}%C3%B6%20.txt", "images/0a1b2c3d-{}ö .jpg", "0 .5 .5 .25 .25\n"),
    "YOLO, original images": ("labels/0a1b2c3d-{}%C3%B6%20.txt", "images/{}ö .jpg", "0 .5 .5 .25 .25\n"),
    "VOC, names in the files": (
        "Annotations/{}_objects.xml",
        "images/{}ö .jpg",
        voc_xml("{}%C3%B6%20.jpg", [("cat", 8, 6, 40, 30)], None),
    ),
    "VOC": (
        "Annotations/{}%C3%B6%20.xml",
        "images/{}ö .jpg",
        voc_xml("{}%C3%B6%20.jpg", [("cat", 8, 6, 40, 30)], None),
    ),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_encoded_names_of_annotations_fit_their_images(tmp_path, prepare_folder, kind):
    annotation, image, text = ENCODED[kind]
    write_images(tmp_path / "raw", [image.format(letter) for letter in "abcd"])
    for letter in "abcd":
        path = tmp_path / "raw" / annotation.format(letter)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("{}", letter))
    (tmp_path / "raw/classes.txt").write_text("cat\n")
    manifest, _ = prepare_folder("--split_by=none")
    split = manifest.splits["train"]
    assert (split.images, split.boxes, split.rejected_images, split.rejected_boxes) == (4, 4, {}, {})
