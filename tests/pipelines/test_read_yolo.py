"""YOLO reader: layouts, label lines, images without labels and labels without images."""

import unicodedata

import pytest
import yaml
from raw_sets import jpeg, make_yolo

from pipelines.annotations import Category, Image, Listing
from pipelines.image_reading import read_image
from pipelines.readers.sources import Source
from pipelines.readers.yolo import choose_layouts, find_splits, list_labels, read_label
from pipelines.readers.yolo_labels import parse_label
from ssd_dist.core.errors import DataError


def elements_of(folder, split="train", **rest):
    source = Source((str(folder),), output_split=split, **rest)
    entries = list(list_labels(choose_layouts(source), source))
    return [value for entry in entries for _, value in read_label(entry)]


def images_of(folder, split="train", **rest):
    return {value.image_id: value for value in elements_of(folder, split, **rest) if isinstance(value, Image)}


def test_lines_become_normalized_corners():
    (box,) = parse_label("3 0.5 0.25 0.2 0.1\n\n")
    assert (box.category, box.where, box.normalized) == ("3", "line 1", True)
    assert box.corners == pytest.approx((0.2, 0.4, 0.3, 0.6))


@pytest.mark.parametrize(
    "line",
    ["1 0.5 0.5 0.1", "x 0.5 0.5 0.1 0.1", "1 .5 .5 .1 .1 .9 .5 1", "1 a b c d", "1.5 0 0 1 1", "1", "nan 0 0 1 1"],
)
def test_an_invalid_line_gives_a_box_with_a_problem(line):
    good, bad = parse_label(f"0 0.5 0.5 0.1 0.1\n{line}")
    assert good.problem is None
    assert bad.problem.reason == "broken_box"
    assert bad.where == "line 2"


def test_nan_and_infinity_are_left_to_validation():
    (box,) = parse_label("0 nan 0.5 0.1 inf")
    assert box.problem is None


def test_classes_keep_the_order_of_the_yaml(tmp_path):
    make_yolo(tmp_path, {"a": ["1 0.5 0.5 0.1 0.1"]}, ["zebra", "ant"])
    values = elements_of(tmp_path)
    assert values[:2] == [Category("0", 0, "zebra"), Category("1", 1, "ant")]
    assert values[-1].images == 1


def test_images_and_labels_are_matched_by_stem(tmp_path):
    make_yolo(tmp_path, {"b": ["0 0.5 0.5 0.1 0.1"], "a": None, "c": []}, ["x"])
    (tmp_path / "labels/train/ghost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "labels/train/broken.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "images/train/broken.png").write_bytes(jpeg())
    (tmp_path / "images/train/notes.md").write_text("not an image")
    images = images_of(tmp_path)
    assert list(images) == ["a", "b", "broken", "c", "ghost"]
    assert [len(images[name].boxes) for name in images] == [0, 1, 0, 0, 1]
    problems = {name: image.problem.reason for name, image in images.items() if image.problem}
    assert problems == {"broken": "broken_annotation", "ghost": "missing_image"}
    assert [image.row for image in images.values()] == list(range(5))


def test_an_image_with_a_broken_link_is_reported_as_missing(tmp_path, prepare):
    make_yolo(tmp_path, {"a": ["0 0.5 0.5 0.1 0.1"]}, ["x"])
    (tmp_path / "images/train/b.jpg").symlink_to(tmp_path / "nowhere.jpg")
    split = prepare("yolo", tmp_path, tmp_path / "out").splits["train"]
    assert (split.images_read, split.rejected_images) == (2, {"missing_image": 1})


@pytest.mark.parametrize(("image_form", "label_form"), [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("content", [{}, {"train": "train.txt"}])
def test_names_are_matched_in_any_unicode_form(tmp_path, image_form, label_form, content):
    image, label = (unicodedata.normalize(form, "é") for form in (image_form, label_form))
    make_yolo(tmp_path, {image: None, "b": []}, ["x"])
    (tmp_path / f"labels/train/{label}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    # The list file uses the Unicode form of the labels.
    (tmp_path / "train.txt").write_text(f"images/train/{label}.jpg\nimages/train/b.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": ["x"], **content}))
    images = images_of(tmp_path)
    assert {name: len(found.boxes) for name, found in images.items()} == {label if content else image: 1, "b": 0}
    assert all(isinstance(read_image(found), bytes) for found in images.values())


def test_names_that_differ_only_in_unicode_form_keep_their_own_labels(tmp_path):
    one, two = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    make_yolo(tmp_path, {one: ["0 .5 .5 .5 .5"], two: ["0 .5 .5 .5 .5"] * 2}, ["x"])
    assert {name: len(image.boxes) for name, image in images_of(tmp_path).items()} == {one: 1, two: 2}


def make_layout(root, images, labels, config, content):
    (root / images).mkdir(parents=True)
    (root / labels).mkdir(parents=True)
    (root / images / "a.jpg").write_bytes(jpeg())
    (root / labels / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (root / config).write_text(yaml.safe_dump({"names": {0: "x"}, **content}))


@pytest.mark.parametrize(
    ("images", "labels", "config", "content", "split"),
    [
        ("images/train", "labels/train", "data.yaml", {}, "train"),
        ("images/train2017", "labels/train2017", "data.yaml", {"train": "images/train2017"}, "train"),
        ("train/images", "train/labels", "data.yaml", {"train": "../train/images"}, "train"),
        ("images/train", "task/labels/train", "task/config.yaml", {"train": "images/train"}, "train"),
        ("images/t17", "task/labels/t17", "task/config.yaml", {"train": "images/t17"}, "t17"),
    ],
)
def test_layouts_are_found(tmp_path, images, labels, config, content, split):
    make_layout(tmp_path, images, labels, config, content)
    for given in (tmp_path, tmp_path / config):
        if given != tmp_path and config != "data.yaml":
            continue
        found = images_of(given, split)
        assert [len(image.boxes) for image in found.values()] == [1]
        assert found["a"].path == str(tmp_path / images / "a.jpg")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"names": ["a", "a"]}, "twice"),
        ({"names": {0: "a", 2: "b"}}, "indices"),
        ({"names": "a"}, "list of class names"),
        ({"nc": 3}, "names"),
    ],
)
def test_invalid_yaml_is_rejected(tmp_path, content, words):
    make_yolo(tmp_path, {"a": []}, ["x"])
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match=words):
        elements_of(tmp_path)


def test_missing_splits_are_rejected(tmp_path):
    make_yolo(tmp_path, {"a": []}, ["x"])
    with pytest.raises(DataError, match="'val'"):
        elements_of(tmp_path, "val")
    (tmp_path / "data.yaml").write_text("names: [x")
    with pytest.raises(DataError, match="not valid YAML"):
        elements_of(tmp_path)


def test_the_listing_ends_with_its_length(tmp_path):
    make_yolo(tmp_path, {"a": [], "b": []}, ["x"])
    end = elements_of(tmp_path)[-1]
    assert isinstance(end, Listing)
    assert end.images == 2


def test_images_in_subfolders_have_their_path_as_id(tmp_path):
    make_yolo(tmp_path, {"a": ["0 0.5 0.5 0.1 0.1"]}, ["x"])
    for camera in ("cam1", "cam2"):
        for name in ("images", "labels"):
            (tmp_path / name / "train" / camera).mkdir()
        (tmp_path / "images/train" / camera / "a.jpg").write_bytes(jpeg())
        (tmp_path / "labels/train" / camera / "a.TXT").write_text("0 0.5 0.5 0.1 0.1\n0 0.2 0.2 0.1 0.1\n")
    (tmp_path / "labels/train/cam1/ghost.txt").write_text("")
    (tmp_path / "images/train/bare.PPM").write_bytes(b"P6")
    images = images_of(tmp_path)
    assert {name: len(image.boxes) for name, image in images.items()} == {
        "a": 1, "bare": 0, "cam1/a": 2, "cam1/ghost": 0, "cam2/a": 2,
    }  # fmt: skip
    assert images["cam1/a"].path == str(tmp_path / "images/train/cam1/a.jpg")
    assert images["cam1/ghost"].problem.reason == "missing_image"


def test_a_dataset_without_splits_is_divided_by_hash(tmp_path):
    make_layout(tmp_path, "images", "labels", "data.yaml", {})
    shares = (("train", 0.5), ("val", 0.5))
    found = [list(images_of(tmp_path, split, split_by=shares)) for split in ("train", "val")]
    assert sorted(found) == [[], ["a"]]


def test_subfolders_of_other_splits_are_omitted(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name / "val").mkdir(parents=True)
    for below in ("a", "val/b"):
        (tmp_path / f"images/{below}.jpg").write_bytes(jpeg())
        (tmp_path / f"labels/{below}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "labels/val/classes.txt").write_text("x\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "images", "val": "images/val", "names": ["x"]}))
    assert list(images_of(tmp_path, "train")) == ["a"]
    assert list(images_of(tmp_path, "val")) == ["b"]


@pytest.mark.parametrize(("images", "labels"), [("images_train", "labels_train"), ("flat", "flat")])
def test_labels_of_listed_images_are_next_to_or_among_the_images(tmp_path, images, labels):
    for name in {images, labels}:
        (tmp_path / name).mkdir()
    (tmp_path / images / "a.jpg").write_bytes(jpeg())
    (tmp_path / labels / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "train.txt").write_text(f"{images}/a.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train.txt", "names": ["x"]}))
    assert [len(image.boxes) for image in images_of(tmp_path).values()] == [1]


@pytest.mark.parametrize("folder", ["train/", "train/img_cam1/", ""])
@pytest.mark.parametrize("name", ["IMG_0001", "img_1", "image_1", "imgs", "Images-2"])
def test_labels_of_listed_images_with_names_like_image_folders_are_found(tmp_path, folder, name):
    for kind in ("images", "labels"):
        (tmp_path / kind / folder).mkdir(parents=True)
    for stem in (name, "a"):
        (tmp_path / f"images/{folder}{stem}.jpg").write_bytes(jpeg())
        (tmp_path / f"labels/{folder}{stem}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "train.txt").write_text(f"images/{folder}a.jpg\n./images/{folder}{name}.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train.txt", "names": ["x"]}))
    assert {name: len(image.boxes) for name, image in images_of(tmp_path).items()} == {"a": 1, name: 1}


def test_absolute_listed_paths_are_found_by_their_end(tmp_path):
    make_yolo(tmp_path, {"a": ["0 .5 .5 .5 .5"], "b": []}, ["x"])
    make_yolo(tmp_path, {"b": [], "c": []}, ["x"], "val")
    # b.jpg is in two folders; c.jpg is in val, so train/c.jpg is another image.
    lines = [
        "/elsewhere/images/a.jpg",
        "C:\\sets\\images\\train\\b.jpg",
        "/elsewhere/b.jpg",
        "/x/train/c.jpg",
        "../d.jpg",
    ]
    (tmp_path / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train.txt", "names": ["x"]}))
    found = [value for value in elements_of(tmp_path) if isinstance(value, Image)]
    assert [image.path for image in found[:2]] == [str(tmp_path / f"images/train/{name}.jpg") for name in "ab"]
    assert [len(image.boxes) for image in found] == [1, 0, 0, 0, 0]
    problems = [image.problem and image.problem.reason for image in found]
    assert problems == [None, None, "missing_image", "missing_image", "path_traversal"]
    assert "--image_dir" in found[2].problem.detail


@pytest.mark.parametrize("given", [".", "data.yaml"])
def test_labels_of_listed_images_are_found_with_relative_inputs(tmp_path, given, monkeypatch):
    make_yolo(tmp_path, {"a": ["0 0.5 0.5 0.1 0.1"]}, ["x"])
    (tmp_path / "train.txt").write_text("images/train/a.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train.txt", "names": ["x"]}))
    monkeypatch.chdir(tmp_path)
    assert [len(image.boxes) for image in images_of(given).values()] == [1]


def test_a_list_file_without_any_label_is_rejected(tmp_path):
    make_yolo(tmp_path, {"a": ["0 0.5 0.5 0.1 0.1"]}, ["x"])
    (tmp_path / "images").rename(tmp_path / "photos")
    (tmp_path / "train.txt").write_text("photos/train/a.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train.txt", "names": ["x"]}))
    with pytest.raises(DataError, match=r"train\.txt: none of 1 images has a label file"):
        elements_of(tmp_path)


@pytest.mark.parametrize("content", [{}, {"train": "train.txt"}])
def test_a_missing_image_folder_is_rejected(tmp_path, content):
    make_yolo(tmp_path, {"a": ["0 0.5 0.5 0.1 0.1"]}, ["x"])
    (tmp_path / "train.txt").write_text("images/train/a.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": ["x"], **content}))
    with pytest.raises(DataError, match="typo"):
        choose_layouts(Source((str(tmp_path),), image_dir=str(tmp_path / "typo"), output_split="train"))


def test_a_list_file_defines_the_images_and_their_order(tmp_path):
    make_yolo(tmp_path, {"a": ["0 0.5 0.5 0.1 0.1"], "b": None, "c": []}, ["x"])
    (tmp_path / "train.txt").write_text("./images/train/c.jpg\nimages/train/a.jpg\n\nimages/train/b.jpg\n../x.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"path": ".", "train": "train.txt", "names": ["x"]}))
    images = images_of(tmp_path)
    assert list(images) == ["c", "a", "b", "x"]
    assert [len(image.boxes) for image in images.values()] == [0, 1, 0, 0]
    assert images["a"].path == str(tmp_path / "images/train/a.jpg")
    assert [image.problem and image.problem.reason for image in images.values()] == [None, None, None, "path_traversal"]
    (tmp_path / "train.txt").unlink()
    assert list(images_of(tmp_path)) == ["a", "b", "c"]
    assert f"{tmp_path}/data.yaml: train: train.txt does not exist; the folder of this name is read" in (
        find_splits(str(tmp_path), "").notes
    )
    (tmp_path / "images/train").rename(tmp_path / "images/other")
    with pytest.raises(DataError, match=r"train: train\.txt does not exist"):
        elements_of(tmp_path)


def test_listed_images_in_different_folders_have_their_path_as_id(tmp_path):
    make_yolo(tmp_path, {"a": ["0 .5 .5 .5 .5"]}, ["x"], "x")
    for folder in ("images/y/cam", "labels/y/cam"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "images/y/cam/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "labels/y/cam/a.txt").write_text("0 .5 .5 .5 .5\n" * 2)
    (tmp_path / "train.txt").write_text("./images/x/a.jpg\nimages/y/cam/a.jpg\n../a.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train.txt", "names": ["x"]}))
    assert {name: len(image.boxes) for name, image in images_of(tmp_path).items()} == {"x/a": 1, "y/cam/a": 2, "a": 0}


def test_images_without_a_label_file_are_announced_per_split(tmp_path):
    make_yolo(tmp_path, {"a": ["0 .5 .5 .5 .5"], "b": None, "c": None, "d": []}, ["x"])
    make_yolo(tmp_path, {"e": ["0 .5 .5 .5 .5"]}, ["x"], "val")
    content = {"train": "images/train", "val": "images/val", "names": ["x"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    note = (
        "train: 2 images have no label file and are read as images without objects "
        f"(e.g. {tmp_path}/images/train/b.jpg)"
    )
    assert find_splits(str(tmp_path), "").notes == (note,)
    for split in ("train", "val"):
        names = sorted(path.name for path in (tmp_path / "images" / split).iterdir())
        (tmp_path / f"{split}.txt").write_text("".join(f"images/{split}/{name}\n" for name in names))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train.txt", "val": "val.txt", "names": ["x"]}))
    assert find_splits(str(tmp_path), "").notes == (note,)


def test_text_files_that_may_be_labels_of_listed_images_are_announced(tmp_path):
    make_yolo(tmp_path, {"a": ["0 .5 .5 .5 .5"], "b": ["0 .5 .5 .5 .5"], "c": None}, ["x"])
    (tmp_path / "labels/train/b.txt").rename(tmp_path / "labels/train/b_label.txt")
    (tmp_path / "labels/train/classes.txt").write_text("x\n")
    (tmp_path / "train.txt").write_text("images/train/a.jpg\nimages/train/b.jpg\nimages/train/c.jpg\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train.txt", "names": ["x"]}))
    missing, unused = find_splits(str(tmp_path), "").notes
    assert missing.startswith("train: 2 images have no label file")
    assert unused == (
        f"train: 1 text files beside the labels belong to no listed image (e.g. {tmp_path}/labels/train/b_label.txt); "
        "check that images and labels have the same names"
    )
    (tmp_path / "train.txt").write_text("images/train/a.jpg\n")
    assert find_splits(str(tmp_path), "").notes == ()


def test_the_path_of_the_yaml_file_is_searched(tmp_path):
    make_yolo(tmp_path / "sets/one", {"a": ["0 0.5 0.5 0.1 0.1"]}, ["x"])
    (tmp_path / "sets/one/data.yaml").unlink()
    config = {"path": "sets/one", "train": "images/train", "names": ["x"]}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(config))
    assert list(images_of(tmp_path / "one.yaml")) == ["a"]


def test_a_split_may_have_several_folders(tmp_path):
    make_yolo(tmp_path, {"a": ["0 .5 .5 .5 .5"]}, ["x"], "one")
    make_yolo(tmp_path, {"a": ["0 .5 .5 .5 .5"] * 2, "b": None}, ["x"], "two")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": ["images/one", "images/two"], "names": ["x"]}))
    boxes = {name: len(image.boxes) for name, image in images_of(tmp_path).items()}
    assert boxes == {"one/a": 1, "two/a": 2, "two/b": 0}


def test_all_images_of_the_folder_are_listed(tmp_path, prepare):
    make_yolo(tmp_path, {"a": ["0 0.5 0.5 0.1 0.1"], "classes": []}, ["x"])
    (tmp_path / "images/train/a.png").write_bytes(jpeg(5))
    (tmp_path / "images/train/b.Jpg").write_bytes(jpeg(6))
    (tmp_path / "labels/train/classes.txt").write_text("")
    split = prepare("yolo", tmp_path, tmp_path / "out").splits["train"]
    assert (split.images_read, split.images, split.rejected_images) == (4, 3, {"duplicate_id": 1})
