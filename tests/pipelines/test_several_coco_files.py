"""Several COCO files in one folder: parts of a split are read together, repetitions are announced, nothing is lost."""

import json

import pytest
from raw_sets import write_files

from pipelines.readers.coco_layout import find_splits

STEMS = "abcdefgh"


def coco_json(stems, folder=""):
    """Returns annotations whose ids begin with 1; the box of each image begins at its own x."""
    images = [
        {"id": number, "file_name": f"{folder}{stem}.jpg", "height": 48, "width": 64}
        for number, stem in enumerate(stems, start=1)
    ]
    boxes = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [4 * STEMS.index(stem), 12, 16, 24]}
        for number, stem in enumerate(stems, start=1)
    ]
    return json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]})


def read_records(output, manifest, records_of):
    """Returns the stems of the images of each split, after checking that each image has its own box."""
    stems = {}
    for split in manifest.splits:
        records = records_of(output, manifest, split).values()
        for record in records:
            stem = record.filename.rpartition("/")[2][0]
            assert record.objects.boxes[:, 1].tolist() == [STEMS.index(stem) / 16]
        stems[split] = "".join(sorted(record.filename.rpartition("/")[2][0] for record in records))
    return stems


# Annotation files and the images that they describe; the images of each split; the images that are rejected, because no
# file that is read describes them; what is printed.
CASES = {
    "parts with other names": (
        {"day.json": "ab", "night.json": "cd"}, {"train": "abcd"}, "x",
        ["read together, because no image is in two of them: day.json, night.json"],
    ),
    "parts of one split": (
        {"annotations/instances_train.json": "ab", "annotations/train_annotations.json": "cd", "val.json": "e"},
        {"train": "abcd", "val": "e"}, "x", ["instances_train.json, train_annotations.json"],
    ),
    "a repetition of a split": (
        {"annotations/instances_train.json": "ab", "train.json": "abc"}, {"train": "abc"}, "x",
        ["instances_train.json is not read", "0 of its 2 images are in no file that is read"],
    ),
    "all images beside the splits": (
        {"annotations.json": "abcd", "train.json": "ab", "val.json": "c"}, {"train": "ab", "val": "c"}, "dx",
        ["annotations.json is not read", "1 of its 4 images are in none of them"],
    ),
    "other images beside a training split": (
        {"annotations.json": "cd", "train.json": "ab"}, {"train": "ab"}, "cdx",
        ["annotations.json is not read", "2 of its 2 images are in none of them"],
    ),
    "the training split without a name": (
        {"annotations.json": "ab", "val.json": "c"}, {"train": "ab", "val": "c"}, "x",
        ["annotations.json is the training split"],
    ),
    "a union of splits": (
        {"train.json": "ab", "trainval.json": "abc", "val.json": "c"}, {"train": "ab", "val": "c"}, "x",
        ["omitted, because they repeat images of other splits (--split selects them): trainval"],
    ),
    "parts and all of them": (
        {"all.json": "abcde", "day.json": "ab", "night.json": "cd"}, {"train": "abcde"}, "x",
        ["day.json is not read", "night.json is not read"],
    ),
    "a split of its own": (
        {"extra.json": "c", "train.json": "ab"}, {"train": "ab", "extra": "c"}, "x", ["extra, train images"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_files_in_one_folder(tmp_path, prepare_folder, records_of, name):
    files, splits, rejected, words = CASES[name]
    stems = sorted({*"".join(files.values()), "x"})
    write_files(
        tmp_path / "raw",
        {file: coco_json(own) for file, own in files.items()} | {f"images/{stem}.jpg": None for stem in stems},
    )
    manifest, out = prepare_folder("--split_by=none")
    assert read_records(tmp_path / "out", manifest, records_of) == splits, out
    lines = [line for path in (tmp_path / "out").rglob("rejected.jsonl") for line in path.read_text().splitlines()]
    reported = [(line["reason"], line["image"].rpartition("/")[2]) for line in map(json.loads, lines)]
    assert sorted(reported) == [("not_annotated", f"{stem}.jpg") for stem in rejected]
    assert all(word in out for word in words), out


def test_equal_ids_in_the_files_of_one_split(tmp_path, prepare_folder, records_of):
    splits = {"train": "ab", "val": "cd", "valid": "ef"}
    files = {f"{split}/_annotations.coco.json": coco_json(own) for split, own in splits.items()}
    files |= {f"{split}/{stem}.jpg": None for split, own in splits.items() for stem in own}
    write_files(tmp_path / "raw", files)
    manifest, _ = prepare_folder()
    assert read_records(tmp_path / "out", manifest, records_of) == {"train": "ab", "val": "cdef"}
    assert manifest.splits["val"].rejected_images == {}
    # The ids of the first file are those of the annotations.
    assert sorted(records_of(tmp_path / "out", manifest, "val")) == [
        "1", "2", "valid/_annotations.coco/1", "valid/_annotations.coco/2",
    ]  # fmt: skip


def test_different_ids_keep_their_values(tmp_path, prepare_folder, records_of):
    second = coco_json("cd").replace('"id": 1,', '"id": 3,').replace('"image_id": 1,', '"image_id": 3,')
    second = second.replace('"id": 2,', '"id": 4,').replace('"image_id": 2,', '"image_id": 4,')
    second = second.replace('{"id": 3, "name"', '{"id": 1, "name"')
    files = {"a.json": coco_json("ab"), "b.json": second}
    write_files(tmp_path / "raw", files | {f"images/{stem}.jpg": None for stem in "abcd"})
    manifest, _ = prepare_folder("--split_by=none")
    assert sorted(records_of(tmp_path / "out", manifest)) == ["1", "2", "3", "4"]


def test_a_part_can_be_selected(tmp_path, prepare_folder, records_of):
    write_files(tmp_path / "raw", {"day.json": coco_json("ab"), "night.json": coco_json("cd")})
    write_files(tmp_path / "raw", {f"images/{stem}.jpg": None for stem in "abcd"})
    manifest, _ = prepare_folder("--split=train", "--source_split=night")
    assert read_records(tmp_path / "out", manifest, records_of) == {"train": "cd"}
    assert find_splits(str(tmp_path / "raw"), "").names == []
