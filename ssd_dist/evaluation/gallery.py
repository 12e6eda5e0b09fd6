"""Draws one image of predictions next to ground truth, from the records of a split."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ssd_dist.core.config import DataConfig
from ssd_dist.core.manifest import Split
from ssd_dist.data.shard_files import read_split
from ssd_dist.evaluation.detections import Detections
from ssd_dist.evaluation.visualization import draw_comparison, draw_image_grid

TILES = 12
COLUMNS = 2
# Without thresholds, the gallery shows detections from this score; metrics use all above `eval.score_threshold`.
SHOWN_SCORE = 0.4


def draw_gallery(
    config: DataConfig,
    split: Split,
    detections: Sequence[Detections],
    classes: Sequence[str],
    title: str,
    subtitle: str,
    thresholds: Sequence[float] | None = None,
) -> Image.Image:
    """Draws twelve images, evenly spaced in the split, in their original proportions.

    Args:
      config: where and how to read the dataset.
      split: the split.
      detections: the detections on each image of the split, in its order.
      classes: class names in label order.
      title: the heading.
      subtitle: the line below the heading.
      thresholds: the score from which the detections of each class are shown; `SHOWN_SCORE` by default.
    """
    # Label 0 is background, which is never detected.
    lowest = np.array([1.0, *(thresholds or [SHOWN_SCORE] * len(classes))])
    selected = set(np.linspace(0, len(detections) - 1, min(TILES, len(detections))).round().astype(int).tolist())
    records = [record for index, record in enumerate(read_split(config, split)) if index in selected]
    tiles = []
    for record, found in zip(records, (detections[index] for index in sorted(selected)), strict=True):
        image = Image.open(io.BytesIO(record.encoded))
        scale = 360 / max(record.original_width, record.original_height)
        # At least one pixel, for very long images.
        size = (max(1, round(record.original_width * scale)), max(1, round(record.original_height * scale)))
        shown = found.scores >= lowest[found.labels]
        tiles.append(
            draw_comparison(
                image.resize(size, Image.Resampling.BICUBIC),
                (record.objects.boxes, record.objects.labels),
                (found.boxes[shown], found.labels[shown], found.scores[shown]),
                classes,
            )
        )
    return draw_image_grid(tiles, COLUMNS, title, subtitle, classes)
