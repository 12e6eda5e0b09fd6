"""Four real datasets, read by `--input` and `--output` alone; the counts are those of independent scripts.

`pytest -s -m slow tests/pipelines/test_battery_sets.py` prints the images and boxes of each split.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

IMAGES = (".jpg", ".jpeg", ".png")


def count_coco(folder):
    counts = {}
    for split in ("train", "valid", "test"):
        content = json.loads((folder / split / "_annotations.coco.json").read_text())
        counts[split] = len(content["images"]), len(content["annotations"])
    return counts


def count_yolo(folder):
    """Returns (number of images, number of non-empty label lines) of each split."""
    counts = {}
    for split in ("train", "valid", "test"):
        images = [path for path in (folder / split / "images").iterdir() if path.suffix.lower() in IMAGES]
        labels = [folder / split / "labels" / f"{path.stem}.txt" for path in images]
        counts[split] = len(images), sum(len(path.read_text().split("\n")) for path in labels if path.exists())
        empty = sum(1 for path in labels if path.exists() for line in path.read_text().split("\n") if not line.strip())
        counts[split] = counts[split][0], counts[split][1] - empty
    return counts


def count_voc(annotations):
    counts = {}
    for split, folder in annotations.items():
        files = list(folder.glob("*.xml"))
        counts[split] = len(files), sum(len(ElementTree.parse(path).getroot().findall("object")) for path in files)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aquarium", "chess", "playing_cards", "plates_ro"])
def test_a_real_dataset_is_read_without_flags(tmp_path, command, shared_data, name):
    folder = shared_data / "battery" / name
    code, out, err = command(f"--input={folder}", f"--output={tmp_path}", "--set=model.input_size=64")
    assert (code, err) == (0, "")
    if name == "aquarium":
        expected = count_yolo(folder / "dataset/aquarium_pretrain")
    elif name == "chess":
        expected = count_coco(folder)
    elif name == "playing_cards":
        expected = count_voc({split: folder / "images" / split for split in ("train", "test")})
    else:
        expected = count_voc({split: folder / "dataset" / split / "annots" for split in ("train", "valid")})
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    splits = manifest["splits"]
    found = {split: (entry["images_read"], entry["boxes_read"]) for split, entry in splits.items()}
    if name == "playing_cards":
        # There is no validation split, so it is a share of the training split.
        parts = [found.pop("val"), found["train"]]
        found["train"] = tuple(map(sum, zip(*parts, strict=True)))
    print(f"{name}: {found}")
    assert found == {"val" if split == "valid" else split: counts for split, counts in expected.items()}
    for entry in splits.values():
        assert entry["images_read"] == entry["images"] + sum(entry["rejected_images"].values())
        assert entry["boxes_read"] == entry["boxes"] + sum(entry["rejected_boxes"].values())
        assert sum(entry["views"][0]["objects_per_class"].values()) == entry["boxes"]
    objects = Counter()
    for entry in splits.values():
        objects.update(entry["views"][0]["objects_per_class"])
    # Roboflow's category 0 of the chess set has no boxes and is no class.
    assert len(manifest["classes"]) == {"aquarium": 7, "chess": 13, "playing_cards": 6, "plates_ro": 1}[name]
    assert all(objects[class_name] for class_name in manifest["classes"])
    assert "recognized " in out
