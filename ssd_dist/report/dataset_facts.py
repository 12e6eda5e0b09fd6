"""Collects the facts about a prepared dataset: counts of prepare, and measurements on its records.

dataset.json, rejected.jsonl, records -> per split: counts; per object: size, best IoU, number of positive anchors
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import tensorflow as tf

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import AnchorConfig, DataConfig, MatchingConfig
from ssd_dist.core.manifest import Manifest, Split
from ssd_dist.core.matching import Matcher
from ssd_dist.core.records import Record
from ssd_dist.core.storage import join
from ssd_dist.data.shard_files import read_split

REJECTED_NAME = "rejected.jsonl"
COPIES_NAME = "copies.jsonl"
EXAMPLES_PER_REASON = 5
# IoU of a positive anchor in TF OD API and in the PyTorch SSDs.
REFERENCE_IOU = 0.5


@dataclass(frozen=True)
class TargetMaker:
    """Anchors [A, 4] with the configuration and the matcher that assign them to objects."""

    anchor_config: AnchorConfig
    matching: MatchingConfig
    anchors: np.ndarray
    matcher: Matcher

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> "TargetMaker":
        """Returns the anchors and the matching that a dataset was prepared with."""
        keys = AnchorConfig.model_fields
        anchor_config = AnchorConfig(**{key: value for key, value in manifest.anchors.items() if key in keys})
        return cls.create(anchor_config, MatchingConfig(**manifest.matching), manifest.image_size)

    @classmethod
    def create(cls, anchor_config: AnchorConfig, matching: MatchingConfig, input_size: int) -> "TargetMaker":
        """Returns the anchors and the matching of a config, for a model input of `input_size` pixels."""
        anchors = generate_anchors(anchor_config, input_size)
        return cls(anchor_config, matching, anchors, Matcher(anchor_config, input_size, matching))


@dataclass(frozen=True)
class ExaminedObjects:
    """The objects of the records read, without crowds, in record order.

    Attributes:
      records: int64 [N], index of the record in the split.
      boxes: float32 [N, 4], normalized.
      labels: int64 [N], 1-based.
      pixels: float64 [N], square root of the area in pixels of the original image.
      best_iou: float64 [N], highest IoU with any anchor.
      positives: int64 [N], number of positive anchors.
    """

    records: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray
    best_iou: np.ndarray
    positives: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """float64 [N, 2]: width and height in shares of the image sides."""
        return (self.boxes[:, 2:] - self.boxes[:, :2])[:, ::-1].astype(np.float64)

    def select(self, mask: np.ndarray) -> "ExaminedObjects":
        """Returns the objects for which `mask` [N] is true."""
        return ExaminedObjects(**{name: values[mask] for name, values in vars(self).items()})


@dataclass(frozen=True)
class SplitFacts:
    """Facts about one split.

    Attributes:
      name: name of the split.
      split: its entry in the manifest.
      examined: number of records read.
      objects_per_image: int64 [examined], with crowds.
      objects: the objects read.
      orphans: for each matching rule of `count_orphans`, the number of objects without a positive anchor.
      rejections: a few lines of rejected.jsonl per reason.
      copies: file names of the images that have the same bytes, one list per group.
    """

    name: str
    split: Split
    examined: int
    objects_per_image: np.ndarray
    objects: ExaminedObjects
    orphans: dict[str, int]
    rejections: dict[str, list[dict[str, str]]]
    copies: list[list[str]]


def examine_split(folder: str, name: str, split: Split, maker: TargetMaker, limit: int) -> SplitFacts:
    """Reads the first `limit` records of a split.

    Prepare assigns records to shards in turn, so the first records are spread over the whole dataset.

    Raises:
      DataError: if a record is damaged.
    """
    tables: list[ExaminedObjects] = []
    counts: list[int] = []
    orphans = {"first": 0, "last": 0}
    for index, record in enumerate(islice(read_split(DataConfig(dir=folder), split), limit)):
        no_crowd = ~record.objects.is_crowd
        boxes, labels = record.objects.boxes[no_crowd], record.objects.labels[no_crowd]
        counts.append(len(record.objects.labels))
        targets = maker.matcher.match(boxes, labels)
        tables.append(
            ExaminedObjects(
                records=np.full(len(boxes), index),
                boxes=boxes,
                labels=labels,
                pixels=np.sqrt(record.objects.area[no_crowd].astype(np.float64)),
                best_iou=maker.matcher.best_iou(boxes),
                positives=np.bincount(targets.objects, minlength=len(boxes)),
            )
        )
        if len(boxes) > 1:
            iou = iou_matrix(boxes, maker.anchors)
            for rule in orphans:
                orphans[rule] += count_orphans(iou, rule)
    return SplitFacts(
        name=name,
        split=split,
        examined=len(counts),
        objects_per_image=np.array(counts, np.int64),
        objects=_concatenate(tables),
        orphans=orphans,
        rejections=read_rejections(folder, name),
        copies=[names for line in _read_objects(join(folder, name, COPIES_NAME)) if (names := _get_names(line))],
    )


def _get_names(line: dict[str, Any]) -> list[str]:
    names = line.get("images")
    return [str(name) for name in names] if isinstance(names, list) else []


def count_orphans(iou: np.ndarray, rule: str) -> int:
    """Counts orphans: objects that get no positive anchor under the matching rule of another program.

    Both rules assign an anchor to the object it overlaps most if their IoU is at least 0.5, and then assign the best
    anchor of each object to that object. They differ if two objects have the same best anchor.

    Args:
      iou: float [N, A], of objects and anchors.
      rule: `first` (TF OD API) or `last` (PyTorch SSDs): the object that keeps a shared best anchor.
    """
    owner = np.where(iou.max(axis=0) >= REFERENCE_IOU, iou.argmax(axis=0), -1)
    objects = range(len(iou)) if rule == "last" else range(len(iou) - 1, -1, -1)
    best = iou.argmax(axis=1)
    for index in objects:
        owner[best[index]] = index
    return len(iou) - len(np.unique(owner[owner >= 0]))


def read_rejections(folder: str, split: str) -> dict[str, list[dict[str, str]]]:
    """Reads a few lines of rejected.jsonl per reason; returns nothing if the file is missing."""
    path = join(folder, f"{split}/{REJECTED_NAME}")
    found: dict[str, list[dict[str, str]]] = {}
    for line in _read_objects(path):
        examples = found.setdefault(str(line.get("reason", "")), [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append({key: str(value) for key, value in line.items()})
    return found


def read_selected(config: DataConfig, split: Split, selected: set[int]) -> dict[int, Record]:
    """Reads the records of a split with the `selected` indices."""
    last = max(selected, default=-1)
    records = islice(read_split(config, split), last + 1)
    return {index: record for index, record in enumerate(records) if index in selected}


def _read_objects(path: str) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects of a file with one per line; skips other lines."""
    if not tf.io.gfile.exists(path):
        return
    with tf.io.gfile.GFile(path) as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def _concatenate(tables: list[ExaminedObjects]) -> ExaminedObjects:
    empty = ExaminedObjects(
        np.zeros(0, np.int64),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        np.zeros(0),
        np.zeros(0),
        np.zeros(0, np.int64),
    )
    return ExaminedObjects(**{name: np.concatenate([vars(t)[name] for t in (empty, *tables)]) for name in vars(empty)})
