"""Kinds of small datasets that once failed, and that no test of a layout (test_layouts_*) or a parser contains.

`test_shared_cases.py` reads the original files.
"""

import json

import pytest
from raw_sets import write_files
from tool_exports import BOX, PER_FOLDER, PER_IMAGE
from yolo_sets import DATA, LINE

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 12, 16, 24]}],
    "categories": [{"id": 1, "name": "bolt"}],
}
YOLO = {"data.yaml": DATA, "images/train/a.jpg": None}
POLYGON = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
# Files, flags (without --input: the folder), and the images and boxes in shards, or words of the refusal.
KINDS = {
    "12 classes written as 0.0": (
        YOLO | {"labels/train/a.txt": "0.0 0.3 0.5 0.2 0.2\n1.000000 0.3 0.5 0.2 0.2\n"},
        ["--input_format=yolo"], (1, 2),
    ),
    "10 polygons beside boxes": (YOLO | {"labels/train/a.txt": LINE + POLYGON}, ["--input_format=yolo"], (1, 2)),
    "26 labels.json as the input": ({"labels.json": json.dumps(COCO), "data/a.jpg": None}, ["labels.json"], (1, 1)),
    "44 semicolons of Excel": (
        {"train.csv": "filename;class;xmin;ymin;xmax;ymax\r\na.jpg;bolt;8,5;12;24;36\r\n", "a.jpg": None},
        ["train.csv", "--input_format=csv"], (1, 1),
    ),
    "49 pointers of Git LFS": (
        {"train.json": json.dumps(COCO), "train/a.jpg": LFS},
        ["--input_format=coco"], ["Git LFS pointer", "git lfs pull"],
    ),
    **{
        f"{number} {name} read as COCO": (
            {"export.json": PER_FOLDER[name]({"a.jpg": [BOX]}), "a.jpg": None}, ["--input_format=coco"],
            ["no coco dataset", f"--input_format={name}"],
        )
        for number, name in ((37, "create_ml"), (38, "via"), (41, "label_studio"))
    },
    "39 labelme read as COCO": (
        {"a.json": PER_IMAGE["labelme"]("a.jpg", [BOX]), "a.jpg": None}, ["--input_format=coco"],
        ["no coco dataset", "--input_format=labelme"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_input_is_read_or_refused_with_its_name(tmp_path, command, name):
    files, words, expected = KINDS[name]
    write_files(tmp_path / "raw", files)
    flags = [word for word in words if word.startswith("--")]
    inner = [f"/{word}" for word in words if not word.startswith("--")]
    code, _, err = command(
        f"--input={tmp_path}/raw{''.join(inner)}", f"--output={tmp_path}/out", "--split=train",
        "--set=model.input_size=64", *flags,
    )  # fmt: skip
    if isinstance(expected, list):
        assert (code, len(err.splitlines())) == (3, 1)
        assert all(word in err for word in expected), err
        return
    assert (code, err) == (0, "")
    split = json.loads((tmp_path / "out/dataset.json").read_text())["splits"]["train"]
    assert (split["images"], split["boxes"]) == expected
    assert (split["rejected_images"], split["rejected_boxes"]) == ({}, {})
