"""The gallery shows the detections of each class from its own threshold."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ssd_dist.core.config import DataConfig
from ssd_dist.evaluation import gallery
from ssd_dist.evaluation.detections import Detections


@pytest.mark.parametrize(
    ("thresholds", "shown"),
    [
        ([0.3, 0.8], [0.9, 0.35]),
        (None, [0.9, 0.7, 0.5]),  # 0.4 for every class
    ],
)
def test_detections_from_the_threshold_of_their_class_are_shown(monkeypatch, thresholds, shown):
    encoded = io.BytesIO()
    Image.new("RGB", (40, 30)).save(encoded, "JPEG")
    objects = SimpleNamespace(boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64))
    record = SimpleNamespace(encoded=encoded.getvalue(), original_width=40, original_height=30, objects=objects)
    drawn = []

    def draw(image, ground_truth, detections, classes):
        drawn.extend(detections[2].tolist())
        return image

    monkeypatch.setattr(gallery, "read_split", lambda *_: [record])
    monkeypatch.setattr(gallery, "draw_comparison", draw)
    scores = np.float32([0.9, 0.7, 0.5, 0.35])
    found = Detections("a", np.tile(np.float32([0, 0, 1, 1]), (4, 1)), np.array([1, 2, 2, 1]), scores)
    gallery.draw_gallery(DataConfig(), None, [found], ("cat", "dog"), "title", "subtitle", thresholds)
    assert drawn == pytest.approx(shown)
