"""Tests the survey of a dataset that ssd-fit makes its choices from."""

import json

import numpy as np
from PIL import Image

from pipelines.survey import SAMPLED_IMAGES, choose_stride
from ssd_dist.core.images import DRAWN_BOXES


def test_the_survey_counts_each_split_and_measures_boxes_as_shares_of_the_image(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 4), ("val", 1)):
        (tmp_path / f"data/images/{split}").mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            pixels = np.full((80, 160, 3), 50 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"data/images/{split}/{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": 80, "width": 160})
            box = {"image_id": number, "category_id": 1, "bbox": [10, 20, 16, 40], "iscrowd": 0}
            annotations += [box | {"id": 2 * number}, box | {"id": 2 * number + 1, "bbox": [200, 0, 5, 5]}]
        # One image has a second class, twice.
        annotations += [box | {"id": 100 + copy, "image_id": 0, "category_id": 2} for copy in range(2)]
        categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "lid"}]
        path = tmp_path / f"data/annotations/instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    # No annotation describes this image, so it is not counted.
    (tmp_path / "data/images/train/unlisted.png").write_bytes(b"damaged")
    (tmp_path / "data/images/train/2.png").write_bytes(b"damaged")
    Image.new("RGB", (160, 80)).save(tmp_path / "data/images/train/3.png", "JPEG", comment=DRAWN_BOXES)

    code, _, err = command("--input=data", "--output=shards", "--survey=survey.json")
    assert (code, err) == (0, "")
    assert not (tmp_path / "shards").exists()
    survey = json.loads((tmp_path / "survey.json").read_text())
    assert survey["classes"] == ["cup", "lid"]
    assert {name: (split["images"], split["boxes"]) for name, split in survey["splits"].items()} == {
        "train": (4, 10), "val": (1, 4),
    }  # fmt: skip
    # The damaged image, the one with drawn boxes, and the boxes outside of their images are not measured.
    assert survey["splits"]["train"]["sizes"] == [[80, 160]] * 2
    assert survey["splits"]["train"]["box_sizes"] == [[0.5, 0.1]] * 4
    assert survey["splits"]["train"]["images_per_class"] == {"cup": 2, "lid": 1}


def test_a_large_dataset_is_sampled():
    for images, shards in ((1, 1), (100, 8), (250, 8), (4096, 8), (4096, 64)):
        sampled = shards * len(range(0, images, choose_stride(images, shards)))
        assert min(images * shards, SAMPLED_IMAGES // 2) <= sampled <= SAMPLED_IMAGES + shards
