"""CVAT for images: the subsets of a project are its splits, and their images may have equal names."""

import re

import pytest
from raw_sets import jpeg
from tool_exports import BOX, OTHER, cvat, write

from pipelines.manifest_writer import read_manifest

# Number of boxes per image in each subset. Two subsets contain an image of the same name.
SUBSETS = {"Validation": {"frame_0.jpg": 1}, "Train": {"frame_0.jpg": 2, "frame_1.jpg": 0}}


def write_project(root, place, subsets=SUBSETS):
    """Writes the export of a CVAT project; `place` is a format string for the path of an image."""
    nodes = ""
    for subset, images in subsets.items():
        text = cvat({name: [BOX, OTHER][:count] for name, count in images.items()})
        nodes += "".join(re.findall("<image.*</image>", text)).replace("<image ", f'<image subset="{subset}" ')
        for name in images:
            write(root, place.format(subset=subset, name=name), jpeg(len(name + subset) * 9))
    write(root, "annotations.xml", f"<annotations><version>1.1</version><meta/>{nodes}</annotations>")


@pytest.mark.parametrize("place", ["images/{subset}/{name}", "{subset}/{name}"])
def test_the_subsets_of_a_cvat_project_are_its_splits(tmp_path, prepare_folder, records_of, place):
    write_project(tmp_path / "raw", place)
    write(tmp_path / "raw", place.format(subset="Train", name="extra.jpg"))
    manifest, out = prepare_folder()
    assert out.startswith("recognized CVAT for images export: Train 3, Validation 1 images\n")
    assert "are not read" not in out
    counts = {name: (split.images, split.boxes, split.rejected_images) for name, split in manifest.splits.items()}
    assert counts == {"train": (2, 2, {"not_annotated": 1}), "val": (1, 1, {})}
    assert {*records_of(tmp_path / "out", manifest, "train")} == {"Train/frame_0.jpg", "Train/frame_1.jpg"}
    assert {*records_of(tmp_path / "out", manifest, "val")} == {"Validation/frame_0.jpg"}
    manifest, _ = prepare_folder("--split_by=train:1", name="all")
    assert (manifest.splits["train"].images, manifest.splits["train"].boxes) == (3, 3)


def test_the_images_of_a_cvat_project_may_be_in_one_folder(tmp_path, prepare_folder):
    subsets = {"Train": {"a.jpg": 2, "b.jpg": 1}, "Validation": {"c.jpg": 1}, "default": {"d.jpg": 1}}
    write_project(tmp_path / "raw", "images/{name}", subsets)
    write(tmp_path / "raw", "images/extra.jpg")
    manifest, out = prepare_folder()
    assert out.startswith("recognized CVAT for images export: Train, Validation, default images\n")
    counts = {name: (split.images, split.boxes, split.rejected_images) for name, split in manifest.splits.items()}
    assert counts == {"train": (2, 3, {"not_annotated": 1}), "val": (1, 1, {}), "default": (1, 1, {})}


def test_an_image_of_another_subset_is_not_read_for_a_missing_one(tmp_path, prepare_folder):
    write_project(tmp_path / "raw", "images/{subset}/{name}", {**SUBSETS, "Validation": {"frame_0.jpg": 1, "b.jpg": 1}})
    (tmp_path / "raw/images/Validation/frame_0.jpg").unlink()
    manifest, _ = prepare_folder()
    assert manifest.splits["val"].rejected_images == {"missing_image": 1}
    assert (manifest.splits["train"].images, manifest.splits["val"].images) == (2, 1)


def test_a_cvat_project_with_the_default_subset_has_no_splits(tmp_path, prepare_folder, records_of):
    write_project(tmp_path / "raw", "images/{subset}/{name}", {"default": {"a.jpg": 1, "b.jpg": 2}})
    manifest, out = prepare_folder("--split_by=none")
    assert out.startswith("recognized CVAT for images export: 2 images\n")
    assert {*records_of(tmp_path / "out", manifest)} == {"a.jpg", "b.jpg"}


def test_the_annotation_file_of_a_cvat_project_may_be_the_input(tmp_path, command):
    write_project(tmp_path / "raw", "images/{subset}/{name}")
    file, output = tmp_path / "raw/annotations.xml", tmp_path / "out"
    code, out, err = command(f"--input={file}", f"--output={output}", "--set=model.input_size=64")
    assert (code, err) == (0, ""), out + err
    assert {name: split.images for name, split in read_manifest(str(output)).splits.items()} == {"train": 2, "val": 1}
