"""Records with their anchors: positives, ignored ones, mined negatives, and the objects that no anchor fits."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from ssd_dist.core.records import Record
from ssd_dist.report.dataset_facts import TargetMaker
from ssd_dist.report.framing import Frame, draw_frames

# More ignored anchors than this hide the picture.
MOST_IGNORED = 40


@dataclass(frozen=True)
class Picture:
    """A drawing with a caption; `badge` is a word about it."""

    drawing: Markup
    caption: str
    badge: str = ""


def draw_anchors(
    record: Record, maker: TargetMaker, classes: Sequence[str], negatives: np.ndarray | None = None
) -> Picture:
    """The record with its objects and the anchors that answer for them; `negatives` are indices of mined anchors."""
    objects, targets = record.objects, record.targets
    fits = maker.matcher.best_iou(objects.boxes) > maker.matching.positive_iou
    frames = [Frame(box, "plain ignored", hint="ignored anchor") for box in _spread(maker.anchors[targets.ignored])]
    if negatives is not None:
        frames += [Frame(box, "plain negative", hint="mined negative") for box in maker.anchors[negatives]]
    frames += [Frame(box, "plain positive", hint="positive anchor") for box in maker.anchors[targets.anchors]]
    for box, label, fit, crowd in zip(objects.boxes, objects.labels, fits, objects.is_crowd, strict=True):
        style = "crowd" if crowd else "truth" if fit else "wrong"
        frames.append(Frame(box, style, classes[label - 1] + (" (crowd)" if crowd else "")))
    unfit = int((~fits & ~objects.is_crowd).sum())
    parts = [f"{len(targets.anchors)} positive", f"{len(targets.ignored)} ignored"]
    if negatives is not None:
        parts.append(f"{len(negatives)} mined")
    image = Image.open(io.BytesIO(record.encoded))
    return Picture(
        drawing=draw_frames(image, frames, record.filename, (record.original_height, record.original_width)),
        caption=f"{record.filename}: {', '.join(parts)}",
        badge=f"{unfit} without a fitting anchor" if unfit else "",
    )


def _spread(boxes: np.ndarray) -> np.ndarray:
    if len(boxes) <= MOST_IGNORED:
        return boxes
    return boxes[np.linspace(0, len(boxes) - 1, MOST_IGNORED).round().astype(int)]
