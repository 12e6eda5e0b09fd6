"""Fitted anchors load as a config, never fit worse than the anchors before, and match the shapes of the objects."""

import numpy as np
import pytest

from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import DataError
from ssd_dist.report.anchor_fit import cluster_shapes, describe_anchors, fit_anchors, measure_fit

MATCHING = MatchingConfig()


def scatter(rng, count, height, width):
    """Returns boxes of nearly equal shape at random positions."""
    sides = np.array([height, width]) * rng.uniform(0.95, 1.05, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (1 - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def test_clusters_are_the_shapes_of_the_objects():
    rng = np.random.default_rng(0)
    shapes = np.array([[0.05, 0.1], [0.3, 0.3], [0.8, 0.4]])
    sides = np.concatenate([shape * rng.uniform(0.98, 1.02, (50, 2)) for shape in shapes])
    found = cluster_shapes(sides, 3)
    assert found[np.argsort(found.prod(axis=1))] == pytest.approx(shapes, rel=0.02)


def test_small_upright_objects_are_fitted(tmp_path):
    """Objects of 4 % by 24 %, ratio 6: the nearest default anchors, 7 % by 14 % and 12 % by 35 %, reach IoU 0.41."""
    rng = np.random.default_rng(1)
    boxes = scatter(rng, 200, 0.24, 0.04)
    current = AnchorConfig()
    found, before, after = fit_anchors(boxes, current, MATCHING, 300)
    assert before.share < 0.1
    assert after.share > 0.9
    assert measure_fit(boxes, found, MATCHING, 300) == after
    assert [len(level) for level in found.aspect_ratios] == [len(level) for level in current.aspect_ratios]
    path = tmp_path / "fitted.yaml"
    path.write_text(describe_anchors(found, before, after, "OUT\nanchors: x"))
    assert load_config(path).anchors == found


def test_fitting_never_makes_the_fit_worse():
    boxes = scatter(np.random.default_rng(2), 60, 0.2, 0.2)
    _, before, after = fit_anchors(boxes, AnchorConfig(), MATCHING, 64)
    assert after.score >= before.score


def test_too_few_objects_are_an_error():
    with pytest.raises(DataError, match="3 objects are too few; at least 20 are needed"):
        fit_anchors(np.zeros((3, 4), np.float32), AnchorConfig(), MATCHING, 64)
