"""Recognition of the format and the splits of folders, and what the command prints about them."""

import json

import pytest
from raw_sets import jpeg, make_coco, make_voc, make_yolo
from tool_exports import BOX, vott_asset, write, write_per_folder, write_per_image

from pipelines import beam_storage
from pipelines.detection import FORMATS, describe_plan, detect_format
from pipelines.flags import INPUT_FORMATS
from pipelines.manifest_writer import read_manifest
from pipelines.readers.sources import assign_split
from pipelines.readers.splits import WHOLE, Found
from pipelines.split_plans import SplitPlan, plan_splits
from ssd_dist.core.errors import DataError

VOC_BOX = ("car", 12, 8, 36, 24)
SHARES = (("train", 0.8), ("val", 0.2))


@pytest.fixture
def run(tmp_path, command):
    """Runs the command on folders below tmp_path: run("raw", flags...) -> (manifest, output)."""

    def run(*inputs_and_flags, output="out"):
        flags = [flag for flag in inputs_and_flags if flag.startswith("--")]
        inputs = [f"--input={tmp_path / name}" for name in inputs_and_flags if not name.startswith("--")]
        code, out, err = command(*inputs, f"--output={tmp_path / output}", "--set=model.input_size=64", *flags)
        assert (code, err) == (0, ""), out + err
        return read_manifest(str(tmp_path / output)), out

    return run


def detect(*paths, image_dir="", input_format="auto"):
    return detect_format([str(path) for path in paths], image_dir, input_format)


def test_the_first_format_that_fits_is_read_and_the_others_are_printed(tmp_path, run):
    boxes = {stem: [VOC_BOX] for stem in "abc"}
    make_voc(tmp_path / "raw", boxes, {})
    lines = "".join(f"JPEGImages/{stem}.jpg,car,8,12,24,36\n" for stem in boxes)
    write(tmp_path / "raw", "labels.csv", f"filename,class,xmin,ymin,xmax,ymax\n{lines}")
    manifest, out = run("raw", "--split_by=none")
    assert out.startswith("recognized VOC")
    assert "the folder also fits csv; --input_format selects one of them" in out
    assert manifest.splits["train"].images == 3
    _, out = run("raw", "--split_by=none", "--input_format=csv", output="csv")
    assert "also fits" not in out


def test_formats_are_tried_in_the_documented_order():
    assert list(FORMATS)[-5:] == ["coco", "yolo", "voc", "csv", "tfrecord"]
    assert tuple(FORMATS) == INPUT_FORMATS


def test_split_by_none_writes_a_source_without_splits_as_train():
    found = Found("a tool", {WHOLE: (1,)}, {WHOLE: 5})
    assert plan_splits(found, is_divided=False) == [SplitPlan("train", WHOLE)]
    assert plan_splits(found) == [SplitPlan("train", WHOLE, SHARES), SplitPlan("val", WHOLE, SHARES, is_optional=True)]


def test_split_by_none_does_not_divide_train():
    found = Found("a tool", {"train": (1,), "test": (2,), WHOLE: (1, 2)})
    assert plan_splits(found, is_divided=False) == [SplitPlan("train", "train"), SplitPlan("test", "test")]
    assert plan_splits(found) == [
        SplitPlan("train", "train", SHARES),
        SplitPlan("val", "train", SHARES, is_optional=True),
        SplitPlan("test", "test"),
    ]


def test_unions_are_omitted():
    found = Found("a tool", {"train": (1,), "val": (2,), "trainval": (1, 2)}, unions=frozenset({"trainval"}))
    assert plan_splits(found) == [SplitPlan("train", "train"), SplitPlan("val", "val")]


def test_trainval_is_read_if_its_parts_are_missing(tmp_path, run):
    make_voc(tmp_path / "raw", {stem: [VOC_BOX] for stem in "abc"}, {"trainval": ["a", "b"], "test": ["c"]})
    manifest, _ = run("raw", "--split_by=none")
    assert {name: split.images for name, split in manifest.splits.items()} == {"trainval": 2, "test": 1}


def test_two_splits_with_one_name_in_the_output_keep_their_names(tmp_path, run):
    for split in ("train2014", "train2017", "val2017"):
        make_coco(tmp_path / "raw", {f"{split}.jpg": [(1, 12, 8, 36, 24)]}, {1: "car"}, split)
    manifest, out = run("raw", "--split_by=none")
    assert {name: split.images for name, split in manifest.splits.items()} == {"train2014": 1, "train2017": 1, "val": 1}
    assert "split val2017 of the source is written as val" in out


def test_the_validation_share_does_not_change_when_images_are_added(tmp_path, run):
    stems = [f"photo{number}" for number in range(12)]
    own = {name: {stem for stem in stems if assign_split(stem, SHARES) == name} for name, _ in SHARES}
    assert own["val"]
    write_per_image(tmp_path / "raw", "labelme", "{}.json", "{}.jpg", {key: [BOX] for key in stems[:8]})
    detected = detect(tmp_path / "raw")
    assert [(plan.name, plan.shares) for plan in plan_splits(detected.found)] == [("train", SHARES), ("val", SHARES)]
    write_per_image(tmp_path / "raw", "labelme", "{}.json", "{}.jpg", {key: [BOX] for key in stems})
    manifest, out = run("raw")
    assert {name: split.images for name, split in manifest.splits.items()} == {name: len(own[name]) for name in own}
    assert "the source is divided by train:0.8,val:0.2, because the dataset has no splits; --split_by=none" in out


def test_an_unknown_folder_is_described(tmp_path):
    for name in ("a.jpg", "b.jpg", "notes.md", "LICENSE"):
        write(tmp_path, name, b"text")
    with pytest.raises(DataError) as error:
        detect(tmp_path)
    message = str(error.value)
    assert message.startswith(
        f"--input={tmp_path}: no annotations were recognized; searched for the formats labelme, supervisely, "
    )
    assert message.endswith(
        "convert the annotations to COCO with datumaro or FiftyOne "
        "(docs/your_own_data.md#1-check-that-your-labels-are-recognized)"
    )
    assert len(message) - len(str(tmp_path)) < 600
    assert (
        "the folder contains 2 .jpg, 1 without suffix, 1 .md (for example LICENSE, a.jpg, b.jpg, notes.md)" in message
    )


def test_an_empty_folder_contains_no_files(tmp_path, command):
    (tmp_path / "empty").mkdir()
    code, _, err = command(f"--input={tmp_path / 'empty'}", f"--output={tmp_path / 'out'}")
    assert code == 3
    assert "the folder contains no files" in err or "does not exist or is empty" in err


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        detect(tmp_path / "missing")


@pytest.mark.parametrize("depth", [1, 3])
def test_a_dataset_may_be_below_other_folders(tmp_path, run, depth):
    root = "/".join(["raw", "repo-main", "dataset", "inner"][: depth + 1])
    make_yolo(tmp_path / root, {"a": ["0 0.5 0.5 0.2 0.2"], "b": [""]}, ["car"])
    write(tmp_path / "raw", "README.md", "the dataset is in a folder")
    manifest, _ = run("raw", "--split_by=none")
    assert (manifest.splits["train"].images, manifest.splits["train"].boxes) == (2, 1)


def test_several_inputs_of_one_format_are_one_dataset(tmp_path, run):
    write_per_image(tmp_path / "one", "labelme", "train/{}.json", "train/{}.jpg", {"a": [BOX]})
    write_per_image(tmp_path / "one", "labelme", "val/{}.json", "val/{}.jpg", {"b": [BOX]})
    for split, stems in (("train", "cd"), ("val", "e")):
        boxes = {stem: [BOX] for stem in stems}
        write_per_image(tmp_path / "two", "labelme", f"{split}/{{}}.json", f"{split}/{{}}.jpg", boxes)
    manifest, out = run("one", "two")
    assert out.startswith("recognized labelme annotations: train 3, val 2 images")
    assert {name: split.images for name, split in manifest.splits.items()} == {"train": 3, "val": 2}


def test_inputs_of_different_formats_are_refused(tmp_path):
    write_per_image(tmp_path / "one", "labelme", "{}.json", "{}.jpg", {"a": [BOX]})
    write_per_folder(tmp_path / "two", "cvat", "annotations.xml", "images/{}.jpg", {"a": [BOX]})
    with pytest.raises(DataError, match="one format: convert some of them"):
        detect(tmp_path / "one", tmp_path / "two")


def test_a_format_that_all_inputs_share_is_chosen(tmp_path):
    write_per_image(tmp_path / "one", "labelme", "{}.json", "{}.jpg", {"a": [BOX]})
    write_per_folder(tmp_path / "one", "cvat", "annotations.xml", "{}.jpg", {"a": [BOX]})
    write_per_folder(tmp_path / "two", "cvat", "annotations.xml", "images/{}.jpg", {"a": [BOX]})
    assert detect(tmp_path / "one", tmp_path / "two").input_format == "cvat"


def test_an_earlier_output_in_the_folder_is_ignored(tmp_path, run):
    write_per_image(tmp_path / "raw", "labelme", "{}.json", "{}.jpg", {key: [BOX] for key in "abc"})
    run("raw", "--split_by=none", output="raw/prepared")
    manifest, out = run("raw", "--split_by=none", output="again")
    assert out.startswith("recognized labelme annotations: 3 images")
    assert "also fits" not in out
    assert manifest.splits["train"].images_read == 3


@pytest.mark.parametrize("wrong", ["coco", "voc", "yolo", "csv", "tfrecord", "cvat"])
def test_a_wrong_format_names_the_right_one(tmp_path, wrong):
    write_per_image(tmp_path, "labelme", "labels/{}.json", "images/{}.jpg", {key: [BOX] for key in "abc"})
    with pytest.raises(DataError) as error:
        detect(tmp_path, input_format=wrong)
    assert str(error.value).endswith("it looks like labelme annotations: use --input_format=labelme")


def test_an_unknown_number_of_images_is_printed_as_such(tmp_path):
    make_voc(tmp_path, {"a": [VOC_BOX]}, {})
    detected = detect(tmp_path / "Annotations" / "*.xml", image_dir=str(tmp_path / "JPEGImages"))
    assert describe_plan(detected, plan_splits(detected.found))[0] == (
        "recognized VOC annotations: an unknown number of images"
    )


def test_files_of_version_control_are_ignored(tmp_path):
    write(tmp_path, ".git/a.json", json.dumps({"shapes": [], "version": "5"}))
    write(tmp_path, "__MACOSX/._a.json", json.dumps({"shapes": [], "version": "5"}))
    write(tmp_path, "a.jpg", jpeg())
    with pytest.raises(DataError, match=r"contains 1 \.jpg"):
        detect(tmp_path)


DATUMARO_ITEM = {"id": "a", "annotations": [{"type": "bbox", "bbox": [8, 12, 16, 24]}], "image": {"path": "a.jpg"}}
DATUMARO = {"dm_format_version": "1.0", "categories": {"label": {"labels": []}}, "items": [DATUMARO_ITEM]}
TRACK = '<track id="0" label="car"><box frame="0" xtl="8" ytl="12" xbr="24" ybr="36"/></track>'


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("annotations.xml", f"<annotations><version>1.1</version><meta/>{TRACK}</annotations>", "CVAT for video"),
        ("annotations/default.json", json.dumps(DATUMARO), "a Datumaro dataset"),
        ("annotations/default.json", json.dumps(DATUMARO, indent=2), "a Datumaro dataset"),
    ],
)
def test_unsupported_formats_are_named(tmp_path, name, content, expected, is_file):
    write(tmp_path, name, content)
    write(tmp_path, "images/default/a.jpg")
    with pytest.raises(DataError) as error:
        detect(tmp_path / name if is_file else tmp_path)
    assert f"no annotations were recognized; {tmp_path / name} is " in str(error.value)
    assert expected in str(error.value)
    assert "COCO" in str(error.value)


@pytest.mark.parametrize("damaged", [0, 5, 23])
def test_a_damaged_file_among_many_hides_no_other_file(tmp_path, damaged):
    for number in range(25):
        write(tmp_path, f"{number:02}.jpg")
        text = json.dumps(vott_asset(f"{number:02}.jpg", [BOX]))
        write(tmp_path, f"{number:02}-asset.json", "" if number == damaged else text)
    write(tmp_path, "settings.json", "{}")
    (layout,) = detect(tmp_path).found.splits[WHOLE]
    assert [path.rpartition("/")[2] for path in layout.files] == [f"{number:02}-asset.json" for number in range(25)]


def test_few_files_are_read_to_recognize_the_format(tmp_path, monkeypatch):
    for number in range(200):
        write_per_image(tmp_path, "labelme", "{}.json", "{}.jpg", {f"{number:03}": [BOX]})
    opened = []
    open_input = beam_storage.open_input
    monkeypatch.setattr(beam_storage, "open_input", lambda path: opened.append(path) or open_input(path))
    assert detect(tmp_path).input_format == "labelme"
    # Twenty files for each of the formats of JSON files, twice for those that are not in the format.
    assert len({*opened}) < 80
    assert len(opened) < 500


@pytest.mark.parametrize("input_format", ["label_studio", "labelme"])
def test_the_keys_of_a_format_may_be_far_from_the_beginning(tmp_path, input_format):
    write(tmp_path, "a.jpg")
    if input_format == "labelme":
        content = {"imageData": "A" * 100_000, "imagePath": "a.jpg", "shapes": [], "version": "5"}
    else:
        content = [{"annotations": [{"result": [], "note": "x" * 100_000}], "data": {"image": "a.jpg"}, "id": 1}]
    write(tmp_path, "a.json", json.dumps(content))
    assert detect(tmp_path).input_format == input_format
