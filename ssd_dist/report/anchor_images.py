"""Records with their anchors: positives and ignored ones, mined negatives, and the objects that no anchor fits."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from ssd_dist.core.records import Record
from ssd_dist.report.box_overlay import Frame, draw_frames
from ssd_dist.report.dataset_facts import TargetMaker

# More ignored anchors than this hide the picture.
MOST_IGNORED = 40
# The hardest say most.
MOST_NEGATIVES = 30


@dataclass(frozen=True)
class Picture:
    """A drawing with a caption; `badge` is a word about it."""

    drawing: Markup
    caption: str
    badge: str = ""


def draw_anchors(record: Record, maker: TargetMaker, classes: Sequence[str]) -> Picture:
    """The record with its objects and the anchors that answer for them."""
    objects, targets = record.objects, record.targets
    fits = maker.matcher.best_iou(objects.boxes) > maker.matching.positive_iou
    frames = [Frame(box, "plain ignored", hint="ignored anchor") for box in _spread(maker.anchors[targets.ignored])]
    frames += [Frame(box, "plain positive", hint="positive anchor") for box in maker.anchors[targets.anchors]]
    for box, label, fit, crowd in zip(objects.boxes, objects.labels, fits, objects.is_crowd, strict=True):
        style = "crowd" if crowd else "truth" if fit else "wrong"
        frames.append(Frame(box, style, classes[label - 1] + (" (crowd)" if crowd else "")))
    unfit = int((~fits & ~objects.is_crowd).sum())
    return Picture(
        drawing=_draw(record, frames, record.filename),
        caption=f"{record.filename}: {len(targets.anchors)} positive, {len(targets.ignored)} ignored",
        badge=f"{unfit} without a fitting anchor" if unfit else "",
    )


def draw_negatives(record: Record, maker: TargetMaker, negatives: np.ndarray) -> Picture:
    """The record with its objects and the `negatives` that mining picked, indices of anchors, the hardest first."""
    frames = [
        Frame(maker.anchors[index], "plain negative", hint=f"mined negative, number {rank}")
        for rank, index in enumerate(negatives[:MOST_NEGATIVES].tolist(), start=1)
    ]
    frames += [Frame(box, "plain object") for box in record.objects.boxes]
    shown = f"the {MOST_NEGATIVES} hardest of {len(negatives)}" if len(negatives) > MOST_NEGATIVES else len(negatives)
    return Picture(_draw(record, frames, f"mined negatives of {record.filename}"), f"{shown} mined")


def _draw(record: Record, frames: Sequence[Frame], label: str) -> Markup:
    image = Image.open(io.BytesIO(record.encoded))
    return draw_frames(image, frames, label, (record.original_height, record.original_width))


def _spread(boxes: np.ndarray) -> np.ndarray:
    if len(boxes) <= MOST_IGNORED:
        return boxes
    return boxes[np.linspace(0, len(boxes) - 1, MOST_IGNORED).round().astype(int)]
