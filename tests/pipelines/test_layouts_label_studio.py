"""Label Studio: the names of images before their upload, which may fit several files; tasks without annotations."""

import json

import pytest
from raw_sets import jpeg
from tool_exports import BOX, label_studio, write


@pytest.mark.parametrize(
    ("stored", "original"),
    [
        ("Site_photo_000.jpg", "Site photo 000.jpg"),
        ("Site_photo_1.jpg", "Site_photo (1).jpg"),
        ("Site photo.jpg", "Site_photo.jpg"),
    ],
)
def test_files_have_their_names_before_the_upload_to_label_studio(tmp_path, prepare_folder, stored, original):
    write(tmp_path / "raw", "export.json", label_studio({stored: [BOX], "b.jpg": [BOX]}))
    write(tmp_path / "raw", f"images/{original}", jpeg(1))
    write(tmp_path / "raw", "images/b.jpg", jpeg(2))
    manifest, _ = prepare_folder("--split_by=none")
    split = manifest.splits["train"]
    assert (split.images_read, split.images, split.rejected_images) == (2, 2, {})


def test_a_task_without_an_annotation_is_rejected_once(tmp_path, prepare_folder):
    tasks = json.loads(label_studio({"a_1.jpg": [BOX], "b.jpg": [BOX]}))
    tasks[0]["annotations"] = []
    write(tmp_path / "raw", "export.json", json.dumps(tasks))
    for seed, name in enumerate(("a 1.jpg", "b.jpg")):
        write(tmp_path / "raw", f"images/{name}", jpeg(seed))
    manifest, _ = prepare_folder("--split_by=none")
    split = manifest.splits["train"]
    assert (split.images_read, split.images, split.rejected_images) == (2, 1, {"not_annotated": 1})


def test_an_image_with_several_possible_files_is_rejected_once(tmp_path, prepare_folder):
    write(tmp_path / "raw", "export.json", label_studio({"a_1.jpg": [BOX], "b.jpg": [BOX]}))
    for seed, name in enumerate(("a_1.jpg", "a 1.jpg", "b.jpg", "extra.jpg")):
        write(tmp_path / "raw", f"images/{name}", jpeg(seed))
    manifest, _ = prepare_folder("--split_by=none")
    split = manifest.splits["train"]
    assert (split.images_read, split.rejected_images) == (3, {"missing_image": 1, "not_annotated": 1})
    rejected = (tmp_path / "out/train/rejected.jsonl").read_text()
    assert "a_1.jpg may be any of these files: " in rejected
