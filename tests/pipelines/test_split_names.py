"""Several names of one split, in one source and in several inputs: no image is dropped, overwritten or read twice."""

import zlib

import pytest
from raw_sets import jpeg, voc_xml
from tool_exports import BOX, write, write_per_image

from pipelines.manifest_writer import read_manifest
from pipelines.readers.splits import group_by_output


def write_voc(root, numbers):
    """Writes VOC files beside their images; `numbers` maps the folders of splits to numbers of images."""
    for split, count in numbers.items():
        for number in range(count):
            stem = f"{root.name}_{split}{number}"
            write(root / split, f"{stem}.jpg", jpeg(zlib.crc32(stem.encode()) % 2**16))
            write(root / split, f"{stem}.xml", voc_xml(f"{stem}.jpg", [("car", 12, 8, 36, 24)]))


@pytest.fixture
def prepare_inputs(tmp_path, command):
    """Prepares folders below tmp_path: prepare_inputs("a", "b", flags...) -> (images by split, printed text)."""

    def run(*words):
        flags = [word for word in words if word.startswith("--")]
        inputs = [f"--input={tmp_path / word}" for word in words if not word.startswith("--")]
        code, out, err = command(*inputs, f"--output={tmp_path / 'out'}", "--set=model.input_size=64", *flags)
        assert (code, err) == (0, ""), out + err
        splits = read_manifest(str(tmp_path / "out")).splits
        return {name: split.images for name, split in splits.items()}, out

    return run


def test_all_names_of_a_split_are_one_split(tmp_path, prepare_inputs):
    write_voc(tmp_path / "a", {"train": 3, "val": 1, "valid": 2, "validation": 2})
    images, out = prepare_inputs("a")
    assert images == {"train": 3, "val": 5}
    assert "the splits val and valid and validation of the source are written together as val" in out


def test_capital_letters_do_not_matter(tmp_path, prepare_inputs):
    write_voc(tmp_path / "a", {"Train": 3, "Val": 1, "TEST": 2})
    images, out = prepare_inputs("a")
    assert images == {"train": 3, "val": 1, "test": 2}
    assert "in none of these splits" not in out


def test_several_years_keep_their_names():
    names = ["train2014", "train2017", "val2017", "test"]
    assert group_by_output(names) == {
        "train2014": ["train2014"],
        "train2017": ["train2017"],
        "val": ["val2017"],
        "test": ["test"],
    }


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"train": 3, "val": 2}, {"train": 4, "valid": 1}, {"train": 7, "val": 3}),
        ({"train": 3, "val": 2, "test": 1}, {"train": 4, "val": 1}, {"train": 7, "val": 3, "test": 1}),
        ({"train": 3}, {"val": 2}, {"train": 3, "val": 2}),
        # The images of an input without splits belong to the training split, not to all splits.
        ({"train": 3, "val": 2}, {"": 6}, {"train": 9, "val": 2}),
        ({"test": 1, "val": 2}, {"": 6}, {"train": 6, "val": 2, "test": 1}),
    ],
)  # fmt: skip
def test_inputs_with_different_splits_are_merged(tmp_path, prepare_inputs, first, second, expected):
    write_voc(tmp_path / "a", first)
    write_voc(tmp_path / "b", second)
    images, out = prepare_inputs("a", "b")
    assert images == expected
    assert ("b has no splits, so its images belong to the split train" in out) == ("" in second)


def test_the_training_split_of_several_inputs_is_divided(tmp_path, prepare_inputs):
    write_voc(tmp_path / "a", {"train": 10, "test": 1})
    write_voc(tmp_path / "b", {"training": 12})
    images, _ = prepare_inputs("a", "b")
    assert images["train"] + images["val"] == 22
    assert images["val"] > 0
    assert images["test"] == 1


def test_layouts_of_other_formats_are_merged_too(tmp_path, prepare_inputs):
    for split, stems in (("train", "ab"), ("val", "c"), ("valid", "de")):
        boxes = {stem: [BOX] for stem in stems}
        write_per_image(tmp_path / "a", "labelme", f"{split}/{{}}.json", f"{split}/{{}}.jpg", boxes)
    assert prepare_inputs("a")[0] == {"train": 2, "val": 3}


@pytest.mark.parametrize(
    ("numbers", "flags", "warning"),
    [
        ({"test": 2}, [], "has no split train, which training reads, only test; add it with --split=train"),
        ({"train": 2, "test": 1}, ["--split_by=none"], "has no split val; training evaluates on the split test;"),
        ({"": 2}, ["--split_by=none"], "has no split val; training evaluates nothing"),
        ({"train": 2, "val": 1}, [], ""),
        # The other splits follow.
        ({"train": 2, "val": 1}, ["--split=val"], ""),
    ],
)  # fmt: skip
def test_a_split_that_training_needs_and_the_output_lacks_gives_a_warning(
    tmp_path, prepare_inputs, numbers, flags, warning
):
    write_voc(tmp_path / "a", numbers)
    _, out = prepare_inputs("a", *flags)
    assert warning in out
    assert ("has no split" in out) == bool(warning)
