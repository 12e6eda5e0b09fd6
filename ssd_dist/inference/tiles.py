"""Detects objects in images of any size; small objects in large images are found in overlapping tiles.

image -> the whole image and N x N tiles, each resized to S x S -> detections of each -> those cut by a tile's edge are
  dropped -> coordinates of the image -> NMS over all

An object of 20 pixels in an image of 3,000 has 2 pixels at an input of 300, and 6 in one of 4 x 4 tiles. The method is
slicing aided hyper inference (Akyon et al. 2022), except that a tile does not contribute objects that its edge may cut:
a neighbor or the whole image shows them completely.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from PIL import Image

from ssd_dist.core.boxes import BoolArray, FloatArray
from ssd_dist.core.config import EvalConfig
from ssd_dist.core.images import resize_image
from ssd_dist.evaluation.detections import Detections, remove_padding, select_detections
from ssd_dist.inference.loaded_detector import LoadedDetector, detect_batch
from ssd_dist.model.postprocessing import non_max_suppression

# Part of a tile's side that it shares with the next tile; objects up to this size are complete in one of the two.
OVERLAP = 0.25
# A box that ends within this part of the tile's side from its edge may be cut. Boxes are a few percent off.
MARGIN = 0.02
KEYS = ("boxes", "labels", "scores")

# An image and a crop: top, left, bottom, right.
Part: TypeAlias = tuple[Image.Image, np.ndarray]
# Applies a function to each part, in parallel or one by one.
Mapper: TypeAlias = Callable[[Callable[[Part], np.ndarray], Iterable[Part]], Iterable[np.ndarray]]


def detect_images(
    detector: LoadedDetector, images: Sequence[Image.Image], names: Sequence[str], map_parts: Mapper = map
) -> Iterator[Detections]:
    """Yields the detections on RGB images of any size, with their ids `names`, in the coordinates of each image.

    Args:
      detector: the detector; its `tiles` is the number of tiles along each side.
      images: the images.
      names: the id of each image.
      map_parts: resizes the parts of the images; the `map` of a thread pool does it in parallel.
    """
    crops = [place_tiles(image.height, image.width, detector.tiles) for image in images]
    parts = [(image, crop) for image, rows in zip(images, crops, strict=True) for crop in rows]
    found: list[Detections] = []
    for start in range(0, len(parts), detector.batch_size):
        batch = parts[start : start + detector.batch_size]
        pixels = np.stack(list(map_parts(partial(_resize_part, size=detector.size), batch)))
        found.extend(detect_batch(detector, pixels, [""] * len(batch)))
    remaining = iter(found)
    for image, name, rows in zip(images, names, crops, strict=True):
        tiles = [next(remaining) for _ in rows]
        sides = np.array([image.height, image.width] * 2, np.float32)
        yield merge_tiles(name, tiles, (rows / sides).astype(np.float32), detector.nms)


def place_tiles(height: int, width: int, tiles: int) -> np.ndarray:
    """Returns the whole image, and for N above 1 its N x N tiles: int64 [1 or 1 + N * N, 4], in pixels.

    >>> place_tiles(100, 70, 2).tolist()
    [[0, 0, 100, 70], [0, 0, 58, 40], [0, 30, 58, 70], [42, 0, 100, 40], [42, 30, 100, 70]]
    """
    whole = [[0, 0, height, width]]
    if tiles == 1:
        return np.array(whole)
    vertical, horizontal = (_place_along(length, tiles) for length in (height, width))
    return np.array(whole + [[top, left, bottom, right] for top, bottom in vertical for left, right in horizontal])


def merge_tiles(name: str, found: Sequence[Detections], crops: FloatArray, nms: EvalConfig) -> Detections:
    """Merges the detections on the parts of an image.

    Args:
      name: the id of the image.
      found: the detections on each of the T parts, in coordinates of the part.
      crops: float32 [T, 4], the parts in coordinates of the image.
      nms: the IoU threshold and the maximum number of detections.
    """
    if len(found) == 1:
        return dataclasses.replace(found[0], source_id=name)
    parts = []
    for part, crop in zip(found, crops, strict=True):
        kept = select_detections(part, ~_is_cut(part.boxes, crop))
        start, sides = np.tile(crop[:2], 2), np.tile(crop[2:] - crop[:2], 2)
        parts.append(dataclasses.replace(kept, boxes=start + kept.boxes * sides))
    merged = {key: np.concatenate([getattr(part, key) for part in parts]) for key in KEYS}
    order = np.argsort(-merged["scores"], kind="stable")
    # One length for all images, so that TensorFlow compiles NMS once.
    length = len(found) * nms.max_detections
    boxes, labels, scores = (_pad_rows(merged[key][order], length) for key in KEYS)
    batch = non_max_suppression(boxes[None], tf.cast(labels, tf.int32)[None], scores[None], nms)
    return remove_padding(name, *(values[0].numpy() for values in batch))


def _pad_rows(values: np.ndarray, length: int) -> tf.Tensor:
    """Appends zeros to values [K, ...] until there are `length` rows."""
    return tf.constant(np.pad(values, [(0, length - len(values)), *[(0, 0)] * (values.ndim - 1)]))


def _resize_part(part: Part, size: int) -> np.ndarray:
    image, (top, left, bottom, right) = part
    return np.asarray(resize_image(image.crop((left, top, right, bottom)), size))


def _place_along(length: int, tiles: int) -> list[tuple[int, int]]:
    """Returns start and end of the tiles along a side of `length` pixels; neighbors share `OVERLAP` of their side."""
    side = -int(-length // (tiles - (tiles - 1) * OVERLAP))
    starts = [round(index * (length - side) / (tiles - 1)) for index in range(tiles)]
    return [(start, start + side) for start in starts]


def _is_cut(boxes: FloatArray, crop: FloatArray) -> BoolArray:
    """Returns which boxes [N, 4] of a part end at an edge of it that is not an edge of the image."""
    inner = np.concatenate([crop[:2] > 0, crop[2:] < 1])
    near = np.concatenate([boxes[:, :2] < MARGIN, boxes[:, 2:] > 1 - MARGIN], axis=1)
    return np.asarray((near & inner).any(axis=1))
