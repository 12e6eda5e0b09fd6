"""Detects objects in images of any size; small objects in large images are found in overlapping tiles.

image -> the whole image and N x N tiles, each resized to S x S -> detections of each -> those that a tile's edge may
  cut are dropped -> coordinates of the image -> NMS over all

An object of 20 pixels in an image of 3,000 has 2 pixels at an input of 300, and 6 in one of 4 x 4 tiles. The method is
slicing aided hyper inference (Akyon et al. 2022), except that a tile does not contribute objects that its edge may cut.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Integral
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from PIL import Image

from ssd_dist.core.boxes import BoolArray, FloatArray, IntArray
from ssd_dist.core.config import EvalConfig
from ssd_dist.core.errors import UsageError
from ssd_dist.core.file_kinds import MOST_TILES
from ssd_dist.core.images import resize_image
from ssd_dist.evaluation.detections import Detections, remove_padding, select_detections
from ssd_dist.inference.loaded_detector import LoadedDetector, detect_batch
from ssd_dist.model.postprocessing import non_max_suppression

# Share of a tile's side that the next tile contains, too. Objects up to a fifth of the side are complete in at least
# one tile and not near its edges.
OVERLAP = 0.25
# A box closer to a tile's edge than this share of the tile's side is treated as cut, because predicted boxes are
# inexact.
MARGIN = 0.02
# Threads decode, resize and draw in parallel: Pillow releases the interpreter lock.
THREADS = 8

# An image and a part of it in pixels: top, left, bottom, right.
Part: TypeAlias = tuple[Image.Image, IntArray]


def detect_images(
    detector: LoadedDetector, images: Sequence[Image.Image], names: Sequence[str], tiles: int = 1
) -> Iterator[Detections]:
    """Yields the detections on RGB images of any size, with their ids `names`, in the coordinates of each image.

    Args:
      detector: the detector; its batches contain images and tiles.
      images: the images.
      names: the id of each image.
      tiles: N; above 1, objects are also detected in N x N overlapping tiles of each image.

    Raises:
      UsageError: if `tiles` is not a whole number from 1 to `MOST_TILES`.
    """
    _count_parts(tiles)
    placed = [place_tiles(image.height, image.width, tiles) for image in images]
    parts = [(image, part) for image, rows in zip(images, placed, strict=True) for part in rows]
    found: list[Detections] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(parts), detector.batch_size):
            batch = parts[start : start + detector.batch_size]
            pixels = np.stack(list(pool.map(partial(_resize_part, size=detector.size), batch)))
            found.extend(detect_batch(detector, pixels, [""] * len(batch)))
    remaining = iter(found)
    for image, name, rows in zip(images, names, placed, strict=True):
        sides = np.array([image.height, image.width] * 2)
        yield merge_tiles(name, [next(remaining) for _ in rows], (rows / sides).astype(np.float32), detector.nms)


def count_images_per_batch(batch_size: int, tiles: int) -> int:
    """Returns how many images to read at once, so that they and their tiles fill a batch.

    Raises:
      UsageError: if `tiles` is not a whole number from 1 to `MOST_TILES`.
    """
    return max(batch_size // _count_parts(tiles), 1)


def place_tiles(height: int, width: int, tiles: int) -> IntArray:
    """Places N x N tiles in an image of a size in pixels.

    Returns:
      int64 [T, 4], rows of top, left, bottom and right in pixels: the whole image, and for N above 1 its tiles. T is 1
      or 1 + N * N; small images have fewer different tiles.

    >>> place_tiles(100, 70, 2).tolist()
    [[0, 0, 100, 70], [0, 0, 58, 40], [0, 30, 58, 70], [42, 0, 100, 40], [42, 30, 100, 70]]
    """
    placed = [(0, 0, height, width)]
    if tiles > 1:
        vertical, horizontal = (_place_along(length, tiles) for length in (height, width))
        placed += [(top, left, bottom, right) for top, bottom in vertical for left, right in horizontal]
    return np.array(list(dict.fromkeys(placed)), np.int64)


def merge_tiles(name: str, found: Sequence[Detections], tiles: FloatArray, nms: EvalConfig) -> Detections:
    """Merges the detections on an image and its tiles; keeps up to T times as many as on one image.

    Args:
      name: the id of the image.
      found: the detections on each of the T parts, in coordinates of the part.
      tiles: float32 [T, 4], the parts in coordinates of the image.
      nms: the IoU threshold, and the maximum number of detections on one part.
    """
    if len(found) == 1:
        return dataclasses.replace(found[0], source_id=name)
    moved = [_move_to_image(part, tile) for part, tile in zip(found, tiles, strict=True)]
    scores = np.concatenate([part.scores for part in moved])
    order = np.argsort(-scores, kind="stable")
    boxes = np.concatenate([part.boxes for part in moved])[order]
    labels = np.concatenate([part.labels for part in moved])[order].astype(np.int32)
    # One length for all images, so that TensorFlow compiles NMS once.
    length = len(found) * nms.max_detections
    limit = nms.model_copy(update={"max_detections": length})
    boxes, labels, scores = (_pad_rows(values, length)[None] for values in (boxes, labels, scores[order]))
    batch = non_max_suppression(boxes, labels, scores, limit)
    return remove_padding(name, *(values[0].numpy() for values in batch))


def _count_parts(tiles: int) -> int:
    """Returns 1, or with N x N tiles 1 + N * N, and checks N."""
    if not isinstance(tiles, Integral) or not 1 <= tiles <= MOST_TILES:
        raise UsageError(f"tiles={tiles} is not valid; give a whole number from 1 to {MOST_TILES}")
    return 1 if tiles == 1 else 1 + tiles**2


def _place_along(length: int, tiles: int) -> list[tuple[int, int]]:
    """Returns start and end of the tiles along a side of `length` pixels; neighbors share `OVERLAP` of their side."""
    side = -int(-length // (tiles - (tiles - 1) * OVERLAP))
    starts = [round(index * (length - side) / (tiles - 1)) for index in range(tiles)]
    return [(start, start + side) for start in starts]


def _resize_part(part: Part, size: int) -> np.ndarray:
    image, (top, left, bottom, right) = part
    is_whole = (right - left, bottom - top) == image.size
    return np.asarray(resize_image(image if is_whole else image.crop((left, top, right, bottom)), size))


def _move_to_image(part: Detections, tile: FloatArray) -> Detections:
    """Returns the detections that the edges of a tile do not cut, in coordinates of the image."""
    kept = select_detections(part, ~_is_cut(part.boxes, tile))
    start, sides = np.tile(tile[:2], 2), np.tile(tile[2:] - tile[:2], 2)
    return dataclasses.replace(kept, boxes=start + kept.boxes * sides)


def _is_cut(boxes: FloatArray, tile: FloatArray) -> BoolArray:
    """Returns which boxes [N, 4] of a tile are near an edge of it that is not an edge of the image."""
    is_inner = np.concatenate([tile[:2] > 0, tile[2:] < 1])
    is_near = np.concatenate([boxes[:, :2] < MARGIN, boxes[:, 2:] > 1 - MARGIN], axis=1)
    return np.asarray((is_near & is_inner).any(axis=1))


def _pad_rows(values: np.ndarray, length: int) -> tf.Tensor:
    """Appends zeros to values [K, ...] until there are `length` rows."""
    return tf.constant(np.pad(values, [(0, length - len(values)), *[(0, 0)] * (values.ndim - 1)]))
