"""Samples and renders the crops of augmented copies: copy 0 is the whole image, the others are SSD's random crops.

    hash(seed, image id, number of the copy) -> crop -> its pixels and boxes   (Liu et al. 2016, sections 2.2 and 3.6)

A crop is a box in units of the image. Where it extends beyond the image, the copy is filled with a mean color. Every
function depends only on its arguments, so a copy is the same on every worker and at every attempt.
"""

import hashlib
import math
import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ssd_dist.core.boxes import BoolArray, Float64Array, FloatArray
from ssd_dist.core.config import AugmentationConfig
from ssd_dist.core.crop_sampling import DRAWS, EXPAND_PROBABILITY, FILL, LARGEST_ASPECT, OVERLAPS, TRIALS
from ssd_dist.core.records import Objects

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Crop:
    """The region that an augmented copy shows, in units of the image: the whole image is (0, 0, 1, 1)."""

    ymin: float
    xmin: float
    ymax: float
    xmax: float

    @property
    def height(self) -> float:
        """Height as a fraction of the image height."""
        return self.ymax - self.ymin

    @property
    def width(self) -> float:
        """Width as a fraction of the image width."""
        return self.xmax - self.xmin

    def shift(self, boxes: FloatArray) -> FloatArray:
        """Converts boxes [N, 4] from units of the image to units of the crop, without clipping."""
        corner = np.array([self.ymin, self.xmin] * 2)
        size = np.array([self.height, self.width] * 2)
        return ((boxes.astype(np.float64) - corner) / size).astype(np.float32)


def sample_crop(seed: int, image_id: str, view: int, boxes: FloatArray, config: AugmentationConfig) -> Crop:
    """Samples the crop of an augmented copy.

    Copy 0 is the whole image. The others are expanded with probability 0.5, then cropped. A crop contains the center of
    at least one box, if there are any.

    Args:
      seed: seed of the experiment.
      image_id: id of the image.
      view: number of the copy.
      boxes: [N, 4], in units of the image.
      config: limits of expansion and crop.

    """
    if view == 0:
        return Crop(*WHOLE)
    digest = hashlib.sha256(f"{seed}|{view}|{image_id}".encode("utf-8", "surrogatepass")).digest()
    # Python guarantees the same random numbers in every version; NumPy does not.
    rng = random.Random(int.from_bytes(digest, "big"))
    canvas = _expand(rng, config.largest_expansion)
    for _ in range(DRAWS):
        overlap = OVERLAPS[int(rng.random() * len(OVERLAPS))]
        if overlap is None:
            return canvas
        crops = _crop(canvas, rng, config.smallest_crop)
        suitable = crops[_accept(crops, boxes.astype(np.float64), overlap)]
        if len(suitable):
            return Crop(*suitable[0].tolist())
    return canvas


def render_crop(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """Renders the crop as a square image of `size` pixels."""
    rows = _pixels_inside(crop.ymin, crop.ymax, size)
    columns = _pixels_inside(crop.xmin, crop.xmax, size)
    # The part of the result that shows the image, in whole pixels, and the same part of the source image.
    low_y, high_y, top, bottom = *rows, *_source_range(rows, crop.ymin, crop.height, size, image.height)
    low_x, high_x, left, right = *columns, *_source_range(columns, crop.xmin, crop.width, size, image.width)
    part = image.resize((high_x - low_x, high_y - low_y), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    if part.size == (size, size):
        return part
    filled = Image.new("RGB", (size, size), FILL)
    filled.paste(part, (low_x, low_y))
    return filled


def crop_objects(objects: Objects, crop: Crop) -> Objects:
    """Returns the objects whose center lies in the crop, clipped to it and in units of the crop.

    A crowd is kept if any part of it is in the crop, because its pixels must not be trained as background.
    """
    if (crop.ymin, crop.xmin, crop.ymax, crop.xmax) == WHOLE:
        return objects
    shifted = crop.shift(objects.boxes)
    clipped = np.clip(shifted, 0, 1)
    area = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1)
    visible = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    centers = (shifted[:, :2] + shifted[:, 2:]) / 2
    keep = visible & (((centers > 0) & (centers < 1)).all(axis=1) | objects.is_crowd)
    share = area / np.prod(shifted[:, 2:] - shifted[:, :2], axis=1)
    return replace(
        objects,
        boxes=clipped[keep],
        labels=objects.labels[keep],
        names=tuple(name for name, kept in zip(objects.names, keep, strict=True) if kept),
        difficult=objects.difficult[keep],
        is_crowd=objects.is_crowd[keep],
        area=(objects.area * share)[keep].astype(np.float32),
    )


def _expand(rng: random.Random, largest: float) -> Crop:
    if rng.random() >= EXPAND_PROBABILITY:
        return Crop(*WHOLE)
    ratio = 1 + rng.random() * (largest - 1)
    ymin, xmin = -rng.random() * (ratio - 1), -rng.random() * (ratio - 1)
    return Crop(ymin, xmin, ymin + ratio, xmin + ratio)


def _crop(canvas: Crop, rng: random.Random, smallest: float) -> Float64Array:
    """Returns random crops [K, 4] of the canvas; omits crops that would exceed it because of their aspect ratio.

    Uses only operations that IEEE 754 rounds exactly, so that every processor gives the same result.
    """
    scale, turn, y, x = np.array([rng.random() for _ in range(4 * TRIALS)]).reshape(4, TRIALS)
    scale = smallest + scale * (1 - smallest)
    aspect = 1 + np.abs(2 * turn - 1) * (LARGEST_ASPECT - 1)
    aspect = np.where(turn < 0.5, 1 / aspect, aspect)
    height, width = scale / np.sqrt(aspect), scale * np.sqrt(aspect)
    ymin = canvas.ymin + y * (1 - height) * canvas.height
    xmin = canvas.xmin + x * (1 - width) * canvas.width
    crops = np.stack([ymin, xmin, ymin + height * canvas.height, xmin + width * canvas.width], axis=1)
    return np.asarray(crops[(height <= 1) & (width <= 1)])


def _accept(crops: Float64Array, boxes: Float64Array, overlap: float) -> BoolArray:
    """Returns bool [K]: the crops [K, 4] that overlap the image and are acceptable for its boxes [N, 4].

    If there are boxes, a crop must contain the center of a box and have an IoU of at least `overlap` with a box.
    """
    low, high = crops[:, None, :2], crops[:, None, 2:]
    shows_image = ((high > 0) & (low < 1)).all(axis=(1, 2))
    if not len(boxes):
        return np.asarray(shows_image)
    sides = np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=2)
    union = np.prod(high - low, axis=2) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - intersection
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    holds_center = np.asarray(((low < centers) & (centers < high)).all(axis=2)).any(axis=1)
    return np.asarray(shows_image & holds_center & ((intersection / union).max(axis=1) >= overlap))


def _pixels_inside(low: float, high: float, size: int) -> tuple[int, int]:
    """Returns the range of pixels, out of `size`, that show the image along one axis; at least one pixel."""
    first = math.ceil(max(0.0, -low / (high - low) * size))
    last = math.floor(min(float(size), (1 - low) / (high - low) * size))
    first = min(first, size - 1)
    return first, max(last, first + 1)


def _source_range(pixels: tuple[int, int], low: float, length: float, size: int, side: int) -> tuple[float, float]:
    """Converts a range of pixels of the crop to a range of an image of `side` pixels, along one axis."""
    ends = ((low + pixel / size * length) * side for pixel in pixels)
    first, last = (min(max(end, 0.0), float(side)) for end in ends)
    # Pillow needs a part of positive size, even if almost nothing of the image is visible.
    return (first, last) if last - first > 1e-3 else (max(0.0, min(first, side - 1.0)), min(float(side), first + 1.0))
