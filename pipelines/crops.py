"""Renderings of an image for training: view 0 is the whole of it, the others are SSD's random crops and expansions.

    hash(seed, image id, view) -> window -> pixels and boxes of that window       (Liu et al. 2016, section 2.2 and 3.6)

A window is a box in units of the image; where it reaches beyond, the view is filled with a mean colour. Nothing here
depends on anything but its arguments, so a view is the same on every worker and at every attempt.
"""

import hashlib
import math
import random
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ssd_dist.core.boxes import FloatArray
from ssd_dist.core.config import AugmentationConfig
from ssd_dist.core.crop_sampling import DRAWS, EXPAND_PROBABILITY, FILL, LARGEST_ASPECT, OVERLAPS, TRIALS
from ssd_dist.core.records import Objects

WHOLE = (0.0, 0.0, 1.0, 1.0)

Float64Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Crop:
    """The part of the plane a view shows, in units of the image: the whole image is (0, 0, 1, 1)."""

    ymin: float
    xmin: float
    ymax: float
    xmax: float

    @property
    def height(self) -> float:
        """Height in units of the image's."""
        return self.ymax - self.ymin

    @property
    def width(self) -> float:
        """Width in units of the image's."""
        return self.xmax - self.xmin

    def shift(self, boxes: FloatArray) -> FloatArray:
        """Boxes [N, 4] of the image in units of the window, not clipped."""
        corner = np.array([self.ymin, self.xmin] * 2)
        size = np.array([self.height, self.width] * 2)
        return ((boxes.astype(np.float64) - corner) / size).astype(np.float32)


def sample_crop(seed: int, image_id: str, view: int, boxes: FloatArray, config: AugmentationConfig) -> Crop:
    """The window of a view: the whole image for view 0, else an expansion (half the time) and a crop.

    A crop keeps the centre of at least one of boxes [N, 4], if there are any.
    """
    if view == 0:
        return Crop(*WHOLE)
    digest = hashlib.sha256(f"{seed}|{view}|{image_id}".encode("utf-8", "surrogatepass")).digest()
    # Python promises the same numbers in every version, NumPy does not.
    rng = random.Random(int.from_bytes(digest, "big"))
    canvas = _expand(rng, config.largest_expansion)
    for _ in range(DRAWS):
        overlap = OVERLAPS[int(rng.random() * len(OVERLAPS))]
        if overlap is None:
            return canvas
        crops = _crop(canvas, rng, config.smallest_crop)
        suitable = crops[_suit(crops, boxes.astype(np.float64), overlap)]
        if len(suitable):
            return Crop(*suitable[0].tolist())
    return canvas


def render_crop(image: Image.Image, window: Crop, size: int) -> Image.Image:
    """The window as a square of `size` pixels."""
    rows = _pixels(window.ymin, window.ymax, size)
    columns = _pixels(window.xmin, window.xmax, size)
    # The part of the view that shows the image, in whole pixels of the view, and the same part of the image.
    low_y, high_y, top, bottom = *rows, *_source(rows, window.ymin, window.height, size, image.height)
    low_x, high_x, left, right = *columns, *_source(columns, window.xmin, window.width, size, image.width)
    part = image.resize((high_x - low_x, high_y - low_y), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    if part.size == (size, size):
        return part
    view = Image.new("RGB", (size, size), FILL)
    view.paste(part, (low_x, low_y))
    return view


def crop_objects(objects: Objects, window: Crop) -> Objects:
    """The objects as the view shows them: those whose centre lies in the window, clipped to it.

    A crowd stays as far as it reaches in, for its pixels must not be taken for background.
    """
    if (window.ymin, window.xmin, window.ymax, window.xmax) == WHOLE:
        return objects
    shifted = window.shift(objects.boxes)
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
    """Random parts [K, 4] of the canvas; those whose aspect ratio would take them beyond it are left out.

    Only operations that IEEE 754 rounds exactly: another processor must draw the same.
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


def _suit(crops: Float64Array, boxes: Float64Array, overlap: float) -> npt.NDArray[np.bool_]:
    """Which of crops [K, 4] show some of the image and, if there are boxes [N, 4], a centre and enough of one."""
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


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """The whole pixels of a view of `size` that lie within the image, along one axis; one at least."""
    first = math.ceil(max(0.0, -low / (high - low) * size))
    last = math.floor(min(float(size), (1 - low) / (high - low) * size))
    first = min(first, size - 1)
    return first, max(last, first + 1)


def _source(pixels: tuple[int, int], low: float, length: float, size: int, side: int) -> tuple[float, float]:
    """Where those pixels lie in an image of `side` pixels along that axis."""
    ends = ((low + pixel / size * length) * side for pixel in pixels)
    first, last = (min(max(end, 0.0), float(side)) for end in ends)
    # Pillow wants a part of positive size, however little of the image is seen.
    return (first, last) if last - first > 1e-3 else (max(0.0, min(first, side - 1.0)), min(float(side), first + 1.0))
