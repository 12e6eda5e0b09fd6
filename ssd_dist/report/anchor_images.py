"""Draws records with their anchors: positive and ignored anchors, mined negatives, and objects that no anchor fits."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from ssd_dist.core.records import Record
from ssd_dist.report.box_overlay import OverlayBox, draw_overlay
from ssd_dist.report.dataset_facts import TargetMaker

# More ignored anchors than this would hide the image.
MAX_IGNORED = 40
# Only the hardest negatives are drawn.
MAX_NEGATIVES = 30


@dataclass(frozen=True)
class CaptionedImage:
    """A drawing with a caption; `warning` is a highlighted addition to the caption."""

    drawing: Markup
    caption: str
    warning: str = ""


def draw_anchors(record: Record, maker: TargetMaker, classes: Sequence[str]) -> CaptionedImage:
    """Draws the objects of a record with their positive anchors and with ignored anchors."""
    objects, targets = record.objects, record.targets
    fits = maker.matcher.best_iou(objects.boxes) > maker.matching.positive_iou
    boxes = [
        OverlayBox(box, "plain ignored", tooltip="ignored anchor")
        for box in _sample_evenly(maker.anchors[targets.ignored], MAX_IGNORED)
    ]
    boxes += [OverlayBox(box, "plain positive", tooltip="positive anchor") for box in maker.anchors[targets.anchors]]
    for box, label, fit, crowd in zip(objects.boxes, objects.labels, fits, objects.is_crowd, strict=True):
        style = "crowd" if crowd else "ground-truth" if fit else "wrong"
        boxes.append(OverlayBox(box, style, classes[label - 1] + (" (crowd)" if crowd else "")))
    unfit = int((~fits & ~objects.is_crowd).sum())
    return CaptionedImage(
        drawing=_draw(record, boxes, record.filename),
        caption=f"{record.filename}: {len(targets.anchors)} positive anchors, {len(targets.ignored)} ignored",
        warning=f"{unfit} {'object' if unfit == 1 else 'objects'} without a fitting anchor" if unfit else "",
    )


def draw_negatives(record: Record, maker: TargetMaker, negatives: np.ndarray) -> CaptionedImage:
    """Draws the objects of a record with its mined `negatives`, anchor indices in order of decreasing hardness."""
    boxes = [
        OverlayBox(maker.anchors[index], "plain negative", tooltip=f"mined negative, rank {rank}")
        for rank, index in enumerate(negatives[:MAX_NEGATIVES].tolist(), start=1)
    ]
    boxes += [OverlayBox(box, "plain object") for box in record.objects.boxes]
    count = f"{len(negatives)} mined negatives"
    caption = f"the {MAX_NEGATIVES} hardest of {count}" if len(negatives) > MAX_NEGATIVES else count
    return CaptionedImage(_draw(record, boxes, f"mined negatives of {record.filename}"), caption)


def _draw(record: Record, boxes: Sequence[OverlayBox], description: str) -> Markup:
    image = Image.open(io.BytesIO(record.encoded))
    return draw_overlay(image, boxes, description, (record.original_height, record.original_width))


def _sample_evenly(boxes: np.ndarray, count: int) -> np.ndarray:
    """Returns at most `count` of the boxes [N, 4], evenly spread over their order."""
    if len(boxes) <= count:
        return boxes
    return boxes[np.linspace(0, len(boxes) - 1, count).round().astype(int)]
