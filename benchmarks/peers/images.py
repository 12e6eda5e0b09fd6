"""Draws the batch that all programs train on: 16 images of noise with five colored rectangles each.

The content does not change the time of a step. Every image has objects, because qfgaohao/pytorch-ssd has no targets for
images without objects.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.coco_split import CocoSplit

SIZE = 300
IMAGES = 16
BOXES = 5
# As in PASCAL VOC, which both peers are written for.
CLASSES = 20


@dataclass(frozen=True)
class LabeledImages:
    """Images and their objects.

    Attributes:
      pixels: uint8 [16, 300, 300, 3].
      boxes: int32 [16, 5, 4], (xmin, ymin, xmax, ymax) in pixels.
      labels: int32 [16, 5], 1-based classes. Every class occurs.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def draw_images(seed: int = 0) -> LabeledImages:
    """Draws the images."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(256, size=(IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    sizes = generator.integers(40, 180, size=(IMAGES, BOXES, 2))
    corners = generator.integers(0, SIZE - sizes)
    boxes = np.concatenate([corners, corners + sizes], axis=-1).astype(np.int32)
    labels = np.arange(IMAGES * BOXES, dtype=np.int32).reshape(IMAGES, BOXES) % CLASSES + 1
    for image, its_boxes in zip(pixels, boxes, strict=True):
        for left, top, right, bottom in its_boxes:
            image[top:bottom, left:right] = generator.integers(256, size=3)
    return LabeledImages(pixels, boxes, labels)


def write_coco(images: LabeledImages, folder: Path) -> None:
    """Writes the images as a COCO dataset with the split `train`, the input of our own prepare."""
    (folder / "images" / "train").mkdir(parents=True)
    (folder / "annotations").mkdir()
    content = CocoSplit()
    for number, (pixels, boxes, labels) in enumerate(zip(images.pixels, images.boxes, images.labels, strict=True)):
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / "images" / "train" / name)
        content.add_image(name, SIZE, SIZE, zip(boxes.tolist(), labels.tolist(), strict=True))
    path = folder / "annotations" / "instances_train.json"
    content.write(path, (f"class {label}" for label in range(1, CLASSES + 1)))


def write_arrays(images: LabeledImages, path: Path) -> None:
    """Writes the images as NumPy arrays, with boxes as fractions of the image size, the input of the peers."""
    np.savez(path, pixels=images.pixels, boxes=(images.boxes / SIZE).astype(np.float32), labels=images.labels)
