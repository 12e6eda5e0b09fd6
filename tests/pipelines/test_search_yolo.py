"""The search for YOLO datasets: class names, splits, folders and notes; text files that are not YOLO labels."""

import pytest
from raw_sets import jpeg, write_files
from yolo_sets import DATA, IMAGE, LINE, NAMES, classes_of, images_of, pairs, values_of

from pipelines.readers.yolo import find_splits
from pipelines.readers.yolo_places import list_tails
from pipelines.split_plans import plan_splits
from ssd_dist.core.errors import DataError


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
        images = images_of(tmp_path / "set", split, tmp_path / "photos")
        assert [image.image_id for image in images if image.problem is None] == [image_id]
        # The first split reports the image that no split labels.
        unlabeled = [(image.image_id, image.problem.reason) for image in images if image.problem]
        assert unlabeled == ([("c", "not_annotated")] if split == "train" else [])
    found = find_splits(str(tmp_path / "set"), str(tmp_path / "photos"))
    assert (found.images, found.notes) == ({"train": 1, "val": 1}, ())


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


@pytest.mark.parametrize("images", ["images/", ""])
def test_folders_of_labels_name_the_splits_of_a_shared_folder_of_images(tmp_path, images):
    files = {
        **pairs("a", "b", images=images, labels="labels/train/"),
        **pairs("c", images=images, labels="labels/val/"),
        "classes.txt": "bolt\nnut\n",
    }
    write_files(tmp_path, files)
    found = find_splits(str(tmp_path), "")
    assert {split: found.images[split] for split in found.names} == {"train": 2, "val": 1}
    for split, stems in (("train", ["a", "b"]), ("val", ["c"])):
        values = images_of(tmp_path, split)
        assert [image.path.rpartition("/")[2] for image in values] == [f"{stem}.jpg" for stem in stems]
        assert [len(image.boxes) for image in values] == [1] * len(stems)


def test_a_single_folder_of_labels_with_the_name_of_a_split_is_no_split(tmp_path):
    write_files(tmp_path, {**pairs("a", "b", images="images/", labels="labels/train/"), "classes.txt": "bolt\nnut\n"})
    assert find_splits(str(tmp_path), "").names == []
