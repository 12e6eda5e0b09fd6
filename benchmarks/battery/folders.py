"""Builds the folders of the battery: labeled datasets of links to the originals, with the splits of each protocol.

`dev` has the training images alone, or with the official validation split; settings are chosen on it. `test` also has
the official test split, which is evaluated once, at the end.
"""

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

# The ten most frequent classes in the labels of coco128's train2017.
COCO_CLASSES = {
    0: "person", 2: "car", 26: "handbag", 41: "cup", 44: "spoon", 45: "bowl", 51: "carrot", 56: "chair",
    73: "book", 77: "teddy bear",
}  # fmt: skip


def build_folder(name: str, protocol: str, data: Path, folder: Path) -> Path:
    """Builds the folder of a dataset unless it exists, and returns it.

    Args:
      name: name of the dataset, a key of `SETS` or `SMALL_SETS`.
      protocol: `dev` or `test`.
      data: the folder with the originals.
      folder: the parent of the new folder.
    """
    target = folder / f"{name}_{protocol}"
    if not target.exists():
        building = target.with_suffix(".building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        (SETS | SMALL_SETS)[name](data.resolve(), building, protocol == "test")
        building.rename(target)
    return target


def build_bccd(data: Path, folder: Path, with_test: bool, train_images: int | None = None) -> None:
    """VOC with list files: train and val, or trainval and test; `train_images` limits the training images."""
    source, lists = data / "bccd" / "BCCD", folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in ("JPEGImages", "Annotations"):
        (folder / name).symlink_to(source / name)
    splits = {"train": "trainval", "test": "test"} if with_test else {"train": "train", "val": "val"}
    for split, original in splits.items():
        names = (source / "ImageSets" / "Main" / f"{original}.txt").read_text().split()
        if split == "train" and train_images is not None:
            # Larger subsets contain the smaller ones.
            names = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:train_images]
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def build_aquarium(data: Path, folder: Path, with_test: bool) -> None:
    """Roboflow YOLO with three splits."""
    source = data / "battery" / "aquarium" / "dataset" / "aquarium_pretrain"
    link_children(source, folder, ["data.yaml", "train", "valid", *["test"] * with_test])


def build_chess(data: Path, folder: Path, with_test: bool) -> None:
    """Roboflow COCO with three splits."""
    link_children(data / "battery" / "chess", folder, ["train", "valid", *["test"] * with_test])


def build_playing_cards(data: Path, folder: Path, with_test: bool) -> None:
    """VOC files beside the images; the validation split is a share of train."""
    link_children(data / "battery" / "playing_cards" / "images", folder, ["train", *["test"] * with_test])


def build_plates(data: Path, folder: Path, with_test: bool) -> None:
    """VOC with two splits; the official `valid` is the test split, and the validation split is a share of train."""
    source = data / "battery" / "plates_ro" / "dataset"
    (folder / "train").symlink_to(source / "train")
    if with_test:
        (folder / "test").symlink_to(source / "valid")


def build_coco10(data: Path, folder: Path, with_test: bool) -> None:
    """YOLO labels of the ten most frequent classes; the first images of val2017 are the test split."""
    numbers = {original: number for number, original in enumerate(COCO_CLASSES)}
    for split, original in (("train", "train2017"), ("test", "val2017"))[: 1 + with_test]:
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / split).symlink_to(data / "coco128" / "images" / original)
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        for image in (data / "coco128" / "images" / original).iterdir():
            path = data / "coco128" / "object_detection" / "labels" / original / f"{image.stem}.txt"
            rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
            kept = [[str(numbers[int(row[0])]), *row[1:]] for row in rows if int(row[0]) in numbers]
            (labels / path.name).write_text("".join(" ".join(row) + "\n" for row in kept))
    names = "".join(f"  {number}: {COCO_CLASSES[original]}\n" for original, number in numbers.items())
    splits = "train: images/train\n" + "test: images/test\n" * with_test
    (folder / "data.yaml").write_text(f"path: .\n{splits}names:\n{names}")


def link_children(source: Path, folder: Path, names: list[str]) -> None:
    """Links the named children of a folder into another one."""
    for name in names:
        (folder / name).symlink_to(source / name)


SETS: dict[str, Callable[[Path, Path, bool], None]] = {
    "aquarium": build_aquarium,
    "plates": build_plates,
    "chess": build_chess,
    "playing_cards": build_playing_cards,
    "bccd": build_bccd,
    "coco10": build_coco10,
}
# Not part of the battery's means: how the accuracy depends on the number of training images.
SMALL_SETS: dict[str, Callable[[Path, Path, bool], None]] = {
    f"bccd_{images}": partial(build_bccd, train_images=images) for images in (25, 50, 100)
}
# The detector from which a run starts was trained on three of these.
SOURCES = ("aquarium", "plates", "chess", "playing_cards")


def choose_sources(dataset: str) -> tuple[str, ...]:
    """Returns the three datasets whose detector is the start for a dataset.

    >>> choose_sources("plates"), choose_sources("bccd_50")
    (('aquarium', 'chess', 'playing_cards'), ('aquarium', 'plates', 'chess'))
    """
    return tuple(name for name in SOURCES if name != dataset)[:3]
