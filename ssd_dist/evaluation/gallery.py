"""One PNG of predictions beside ground truth, drawn from the records of a split."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ssd_dist.core.config import Config
from ssd_dist.core.manifest import Split
from ssd_dist.data.shard_files import read_split
from ssd_dist.evaluation.detections import Detections
from ssd_dist.evaluation.visualization import compare, contact_sheet

TILES = 12
COLUMNS = 2
# What a person would call a detection; metrics use every score above `eval.score_threshold`.
SHOWN_SCORE = 0.4


def draw_gallery(
    config: Config, split: Split, detections: Sequence[Detections], classes: Sequence[str], title: str, subtitle: str
) -> Image.Image:
    """Twelve images spread evenly over the split, in their original proportions."""
    chosen = set(np.linspace(0, len(detections) - 1, min(TILES, len(detections))).round().astype(int).tolist())
    records = [record for index, record in enumerate(read_split(config.data, split)) if index in chosen]
    tiles = []
    for record, found in zip(records, (detections[index] for index in sorted(chosen)), strict=True):
        image = Image.open(io.BytesIO(record.encoded))
        scale = 360 / max(record.original_width, record.original_height)
        # A strip keeps at least one row.
        size = (max(1, round(record.original_width * scale)), max(1, round(record.original_height * scale)))
        shown = found.scores >= SHOWN_SCORE
        tiles.append(
            compare(
                image.resize(size, Image.Resampling.BICUBIC),
                (record.objects.boxes, record.objects.labels),
                (found.boxes[shown], found.labels[shown], found.scores[shown]),
                classes,
            )
        )
    return contact_sheet(tiles, COLUMNS, title, subtitle, classes)
