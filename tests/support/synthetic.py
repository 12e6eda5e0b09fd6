"""Writes small prepared datasets without Beam: colored rectangles on noise, for tests that read shards."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ssd_dist.core.config import Config
from ssd_dist.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    PositivesPerObject,
    Shard,
    Split,
    View,
    fingerprint,
    target_spec,
)
from ssd_dist.core.matching import Matcher
from ssd_dist.core.records import Objects, Record
from ssd_dist.core.tfrecord_io import frame_record

CLASSES = ("red", "green", "blue")


def draw_record(seed: int, name: str, config: Config, objects: int | None = None) -> Record:
    """Draws an image with up to three rectangles, each in the color of its class."""
    rng = np.random.default_rng(seed)
    size = config.model.input_size
    count = int(rng.integers(0, 4)) if objects is None else objects
    pixels = rng.integers(90, 130, (size, size, 3)).astype(np.uint8)
    boxes, labels = [], []
    for _ in range(count):
        sides = rng.uniform(0.2, 0.6, 2)
        corner = rng.uniform(0, 1 - sides)
        label = int(rng.integers(1, 4))
        box = np.concatenate([corner, corner + sides])
        y0, x0, y1, x1 = (box * size).astype(int)
        pixels[y0:y1, x0:x1] = 30
        pixels[y0:y1, x0:x1, label - 1] = 230
        boxes.append(box)
        labels.append(label)
    objects_ = Objects(
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=np.asarray(labels, np.int64),
        names=tuple(CLASSES[label - 1] for label in labels),
        difficult=np.zeros(count, bool),
        is_crowd=np.zeros(count, bool),
        area=np.asarray([(b[2] - b[0]) * (b[3] - b[1]) * size * size for b in boxes], np.float32),
    )
    matcher = Matcher(config.anchors, size, config.matching)
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=95)
    targets = matcher.match(objects_.boxes, objects_.labels)
    return Record(jpeg.getvalue(), size, size, size, size, name, f"{name}.jpg", objects_, targets)


def write_dataset(
    folder: Path, config: Config, sizes: dict[str, int], shards: int = 2, objects: int | list[int] | None = None
) -> Manifest:
    """Writes splits and the manifest; records are distributed over the shards in turn.

    Args:
      folder: the output folder.
      config: anchors, matching and input size.
      sizes: number of images of each split.
      shards: number of shards per split.
      objects: number of objects per image, for all images or for each; random by default.
    """
    splits = {}
    for split_number, (split, size) in enumerate(sizes.items()):
        counts = objects if isinstance(objects, list) else [objects] * size
        records = [draw_record(1000 * split_number + i, f"{split}{i}", config, counts[i]) for i in range(size)]
        (folder / split).mkdir(parents=True)
        written = []
        for shard in range(shards):
            data = b"".join(frame_record(record.to_bytes()) for record in records[shard::shards])
            file = f"{split}/view00-{shard:05d}-of-{shards:05d}.tfrecord"
            (folder / file).write_bytes(data)
            written.append(
                Shard(
                    file=file,
                    examples=len(records[shard::shards]),
                    bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                )
            )
        counts = {name: sum(r.objects.names.count(name) for r in records) for name in CLASSES}
        statistics = PositivesPerObject(mean=0.0, minimum=0, maximum=0, histogram={})
        images = {name: sum(name in r.objects.names for r in records) for name in CLASSES}
        view = View(
            examples=size, shards=tuple(written), objects_per_class=counts, images_per_class=images,
            positives_per_object=statistics,
        )  # fmt: skip
        total = sum(counts.values())
        splits[split] = Split(
            images_read=size, images=size, boxes_read=total, boxes=total, rejected_images={}, rejected_boxes={},
            clipped_boxes=0, image_hashes="", views=(view,),
        )  # fmt: skip
    size = config.model.input_size
    spec = target_spec(config.anchors, config.matching, size)
    manifest = Manifest(
        classes=CLASSES, fingerprint=fingerprint(config.anchors, config.matching, size), splits=splits, **spec
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return manifest
