"""What there is to know about a prepared data set: counted by prepare, or measured here on its records.

dataset.json, rejected.jsonl, records -> for each split: counts, and of each object its size, best IoU, positives
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import tensorflow as tf

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import AnchorConfig, DataConfig, MatchingConfig
from ssd_dist.core.manifest import Manifest, Split
from ssd_dist.core.matching import Matcher
from ssd_dist.core.records import Record
from ssd_dist.data.shard_files import join, read_split

REJECTED_NAME = "rejected.jsonl"
EXAMPLES_PER_REASON = 5
# What TF OD API and the PyTorch SSDs call a match.
OTHERS_IOU = 0.5


@dataclass(frozen=True)
class TargetMaker:
    """The anchors [A, 4] and the matching that a data set was prepared for."""

    anchor_config: AnchorConfig
    matching: MatchingConfig
    anchors: np.ndarray
    matcher: Matcher

    @classmethod
    def of(cls, manifest: Manifest) -> "TargetMaker":
        """Those of a manifest."""
        keys = AnchorConfig.model_fields
        anchor_config = AnchorConfig(**{key: value for key, value in manifest.anchors.items() if key in keys})
        return cls.create(anchor_config, MatchingConfig(**manifest.matching), manifest.image_size)

    @classmethod
    def create(cls, anchor_config: AnchorConfig, matching: MatchingConfig, input_size: int) -> "TargetMaker":
        """Those of a config."""
        anchors = generate_anchors(anchor_config, input_size)
        return cls(anchor_config, matching, anchors, Matcher(anchors, anchor_config, matching))


@dataclass(frozen=True)
class ExaminedObjects:
    """Objects other than crowds of the records examined, image after image.

    Attributes:
      records: int64 [N], which record of the split each belongs to.
      boxes: float32 [N, 4].
      labels: int64 [N], 1-based.
      pixels: float64 [N], the square root of the area in the original image.
      best_iou: float64 [N], the highest that any anchor reaches.
      positives: int64 [N], anchors that answer for it.
    """

    records: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray
    best_iou: np.ndarray
    positives: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """float64 [N, 2]: width and height in shares of the image."""
        return (self.boxes[:, 2:] - self.boxes[:, :2])[:, ::-1].astype(np.float64)


@dataclass(frozen=True)
class SplitFacts:
    """One split.

    Attributes:
      name: of the split.
      split: what the manifest says.
      examined: records read.
      objects_per_image: int64 [examined], crowds included.
      objects: the objects read.
      orphans: objects left without a positive under other programs' rules, by the rule's name.
      rejections: for each reason a few lines of rejected.jsonl.
    """

    name: str
    split: Split
    examined: int
    objects_per_image: np.ndarray
    objects: ExaminedObjects
    orphans: dict[str, int]
    rejections: dict[str, list[dict[str, str]]]


def examine_split(folder: str, name: str, split: Split, maker: TargetMaker, most: int) -> SplitFacts:
    """Reads at most `most` records of a split; shards are filled in turn, so the first records are a fair sample.

    Raises:
      DataError: naming shard and record if one is damaged.
    """
    tables: list[ExaminedObjects] = []
    counts: list[int] = []
    orphans = {"first": 0, "last": 0}
    for index, record in enumerate(islice(read_split(DataConfig(dir=folder), split), most)):
        real = ~record.objects.is_crowd
        boxes, labels = record.objects.boxes[real], record.objects.labels[real]
        counts.append(len(record.objects.labels))
        targets = maker.matcher.match(boxes, labels)
        tables.append(
            ExaminedObjects(
                records=np.full(len(boxes), index),
                boxes=boxes,
                labels=labels,
                pixels=np.sqrt(record.objects.area[real].astype(np.float64)),
                best_iou=maker.matcher.best_iou(boxes),
                positives=np.bincount(targets.objects, minlength=len(boxes)),
            )
        )
        if len(boxes) > 1:
            iou = iou_matrix(boxes, maker.anchors)
            for winner in orphans:
                orphans[winner] += count_orphans(iou, winner)
    return SplitFacts(
        name=name,
        split=split,
        examined=len(counts),
        objects_per_image=np.array(counts, np.int64),
        objects=_concatenate(tables),
        orphans=orphans,
        rejections=read_rejections(folder, name),
    )


def count_orphans(iou: np.ndarray, winner: str) -> int:
    """Objects of iou [N, A] without a positive, if of several with one best anchor the `first` or the `last` has it.

    The rule of TF OD API (first) and of the PyTorch SSDs (last): an anchor goes to the object it overlaps most if
    their IoU is 0.5 or more, and the best anchor of each object goes to that object.
    """
    owner = np.where(iou.max(axis=0) >= OTHERS_IOU, iou.argmax(axis=0), -1)
    objects = range(len(iou)) if winner == "last" else range(len(iou) - 1, -1, -1)
    best = iou.argmax(axis=1)
    for index in objects:
        owner[best[index]] = index
    return len(iou) - len(np.unique(owner[owner >= 0]))


def read_rejections(folder: str, split: str) -> dict[str, list[dict[str, str]]]:
    """A few lines of rejected.jsonl for each reason; none if it is missing."""
    path = join(folder, f"{split}/{REJECTED_NAME}")
    found: dict[str, list[dict[str, str]]] = {}
    for line in _lines(path):
        examples = found.setdefault(str(line.get("reason", "")), [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append({key: str(value) for key, value in line.items()})
    return found


def read_chosen(config: DataConfig, split: Split, chosen: set[int]) -> dict[int, Record]:
    """The records of a split whose numbers are `chosen`."""
    last = max(chosen, default=-1)
    records = islice(read_split(config, split), last + 1)
    return {index: record for index, record in enumerate(records) if index in chosen}


def _lines(path: str) -> Iterator[dict]:
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
