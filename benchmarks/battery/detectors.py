"""Merges datasets of the battery into one, to train the detector from which `model.init_from` starts on another one.

The shards of the datasets -> a COCO folder with images, boxes and class names of all.
"""

from pathlib import Path

import numpy as np

from benchmarks.coco_split import CocoSplit
from ssd_dist.core.config import DataConfig
from ssd_dist.data.shard_files import load_manifest, read_split

SPLITS = ("train", "val")


def merge_datasets(prepared: dict[str, Path], folder: Path) -> None:
    """Writes a folder that `ssd-fit` recognizes: for each split, images and `_annotations.coco.json`.

    Args:
      prepared: the output of prepare of each dataset, by name.
      folder: the new folder.
    """
    classes: dict[str, int] = {}
    for split in SPLITS:
        content = CocoSplit()
        (folder / split).mkdir(parents=True)
        for name, data in prepared.items():
            config = DataConfig(dir=str(data))
            for number, record in enumerate(read_split(config, load_manifest(config).split(split, config.dir))):
                file_name = f"{name}_{number}.jpg"
                (folder / split / file_name).write_bytes(record.encoded)
                boxes = record.objects.boxes[:, [1, 0, 3, 2]] * np.tile([record.width, record.height], 2)
                # Datasets may use one name for different things.
                names = [f"{name} {label}" for label in record.objects.names]
                categories = [classes.setdefault(label, len(classes) + 1) for label in names]
                content.add_image(file_name, record.width, record.height, zip(boxes.tolist(), categories, strict=True))
        content.write(folder / split / "_annotations.coco.json", classes)
