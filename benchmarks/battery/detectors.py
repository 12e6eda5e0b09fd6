"""Merges datasets of the battery into one, to train the detector from which `model.init_from` starts on another one.

The shards of the datasets -> a COCO folder with images, boxes and class names of all.
"""

import json
from pathlib import Path

from ssd_dist.core.config import DataConfig
from ssd_dist.data.shard_files import load_manifest, read_split

SOURCES = ("aquarium", "plates", "chess", "playing_cards")
SPLITS = ("train", "val")


def choose_sources(dataset: str) -> tuple[str, ...]:
    """Returns the three datasets whose detector is the start for a dataset.

    >>> choose_sources("plates")
    ('aquarium', 'chess', 'playing_cards')
    """
    return tuple(name for name in SOURCES if name != dataset)[:3]


def merge_datasets(prepared: dict[str, Path], folder: Path) -> None:
    """Writes a folder that `ssd-fit` recognizes: for each split, images and `_annotations.coco.json`.

    Args:
      prepared: the output of prepare of each dataset, by name.
      folder: the new folder.
    """
    classes: list[str] = []
    for split in SPLITS:
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        (folder / split).mkdir(parents=True)
        for name, data in prepared.items():
            config = DataConfig(dir=str(data))
            for record in read_split(config, load_manifest(config).split(split, config.dir)):
                file_name = f"{name}_{len(images)}.jpg"
                (folder / split / file_name).write_bytes(record.encoded)
                size = {"width": record.width, "height": record.height}
                images.append({"id": len(images), "file_name": file_name, **size})
                for box, label in zip(record.objects.boxes.tolist(), record.objects.names, strict=True):
                    # Datasets may use one name for different things.
                    label = f"{name} {label}"
                    classes += [label] * (label not in classes)
                    top, left, bottom, right = box
                    corner = [left * record.width, top * record.height]
                    sides = [(right - left) * record.width, (bottom - top) * record.height]
                    annotations.append({
                        "id": len(annotations), "image_id": images[-1]["id"], "category_id": classes.index(label),
                        "bbox": corner + sides, "area": sides[0] * sides[1], "iscrowd": 0,
                    })  # fmt: skip
        categories = [{"id": number, "name": label} for number, label in enumerate(classes)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(document))
