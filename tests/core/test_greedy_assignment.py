"""Compares greedy matching with a literal implementation of its rule, and tests it on crowded images."""

import numpy as np
import pytest
from support.crowded_boxes import KINDS, crowded_boxes

from ssd_dist.core.anchor_iou import AnchorGrids
from ssd_dist.core.anchor_spots import TIE, AnchorSpots
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.assignment_turns import Turns
from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.greedy_assignment import GreedyAssignment
from ssd_dist.core.matching import Matcher

ANCHORS = AnchorConfig()


def assign_literally(boxes: np.ndarray, input_size: int) -> np.ndarray:
    """Applies the rule of the module's docstring: every object whose choice is taken chooses again at once."""
    anchors = generate_anchors(ANCHORS, input_size)
    iou = iou_matrix(boxes, anchors)
    wide, wide_anchors = boxes.astype(np.float64), anchors.astype(np.float64)
    centers = (wide[:, :2] + wide[:, 2:]) / 2
    anchor_centers = (wide_anchors[:, :2] + wide_anchors[:, 2:]) / 2
    distance = np.hypot(centers[:, None, 0] - anchor_centers[:, 0], centers[:, None, 1] - anchor_centers[:, 1])
    free = np.ones(len(anchors), bool)

    def choose(index: int) -> tuple[float, float, int]:
        top = iou[index, free].max()
        tied = np.flatnonzero(free & (iou[index] >= top - TIE))
        nearest = distance[index, tied].min()
        chosen = tied[distance[index, tied] <= nearest + TIE][0]
        return top, distance[index, chosen], int(chosen)

    assigned = np.full(len(boxes), -1)
    choices = {index: choose(index) for index in range(len(boxes))}
    while choices and free.any():
        top = max(choice[0] for choice in choices.values())
        rivals = {index: choice[1] for index, choice in choices.items() if choice[0] >= top - TIE}
        nearest = min(rivals.values())
        winner = min(index for index, value in rivals.items() if value <= nearest + TIE)
        anchor = assigned[winner] = choices.pop(winner)[2]
        free[anchor] = False
        if free.any():
            choices |= {index: choose(index) for index, choice in choices.items() if choice[2] == anchor}
    return assigned


def assign(boxes: np.ndarray, input_size: int) -> np.ndarray:
    """Returns the anchor of each object in a Matcher with one anchor per object, -1 for none."""
    config = MatchingConfig(policy="one_to_one")
    targets = Matcher(ANCHORS, input_size, config).match(boxes, np.ones(len(boxes), np.int64))
    assigned = np.full(len(boxes), -1)
    assigned[targets.objects] = targets.anchors
    return assigned


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("input_size", [32, 64, 128])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_literal_rule(kind, input_size, seed):
    rng = np.random.default_rng([seed, input_size])
    # At 32 pixels there are 108 anchors: often more objects than anchors.
    boxes = crowded_boxes(kind, int(rng.integers(2, {32: 150, 64: 120, 128: 60}[input_size])), rng)
    np.testing.assert_array_equal(assign(boxes, input_size), assign_literally(boxes, input_size))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_literal_rule_on_ssd300(kind):
    boxes = crowded_boxes(kind, 60, np.random.default_rng(0))
    np.testing.assert_array_equal(assign(boxes, 300), assign_literally(boxes, 300))


@pytest.mark.parametrize("kind", ["spread", "cluster", "specks"])
def test_thousands_of_objects_get_distinct_anchors(kind):
    # With a choice for each pair of similar objects this would take minutes.
    boxes = crowded_boxes(kind, 3000, np.random.default_rng(1))
    assigned = assign(boxes, 300)
    assert (assigned >= 0).all()
    assert len(set(assigned.tolist())) == 3000


def test_crowded_images_take_few_choices(monkeypatch):
    calls = {"rows": 0}
    compute = AnchorGrids.iou

    def count_rows(self, spans):
        calls["rows"] += len(spans.areas)
        return compute(self, spans)

    monkeypatch.setattr(AnchorGrids, "iou", count_rows)
    boxes = crowded_boxes("cluster", 1000, np.random.default_rng(3))
    assign(boxes, 300)
    # The literal rule computes about half a million rows.
    assert calls["rows"] < 10 * len(boxes)


def test_spread_objects_share_the_ranking_of_anchors(monkeypatch):
    rows = []
    compute = AnchorGrids.iou
    monkeypatch.setattr(AnchorGrids, "iou", lambda self, spans: rows.append(len(spans.areas)) or compute(self, spans))
    assign(crowded_boxes("spread", 3000, np.random.default_rng(3)), 300)
    # Without rankings, about every third object computes its IoU with all anchors.
    assert sum(rows) < 100


def test_images_in_one_batch_do_not_affect_each_other():
    matcher = Matcher(ANCHORS, 64, MatchingConfig())
    images = [crowded_boxes(kind, 70, np.random.default_rng(5)) for kind in KINDS]
    labels = [np.ones(len(boxes), np.int64) for boxes in images]
    crowds = [np.arange(len(boxes)) % 9 == 0 for boxes in images]
    for targets, boxes, crowd in zip(matcher.match_all(images, labels, crowds), images, crowds, strict=True):
        alone = matcher.match(boxes, labels[0][: len(boxes)], crowd)
        for name in ("anchors", "labels", "offsets", "ignored", "objects"):
            np.testing.assert_array_equal(getattr(targets, name), getattr(alone, name))


def test_an_unknown_first_choice_is_made_when_it_matters():
    # The Matcher does not compute IoUs of boxes far below a pixel; with them the result is the same.
    boxes = crowded_boxes("specks", 40, np.random.default_rng(2))
    anchors = generate_anchors(ANCHORS, 64)
    wide = anchors.astype(np.float64)
    spots = AnchorSpots(((wide[:, :2] + wide[:, 2:]) / 2).T)
    unknown = (np.full(40, -np.inf), np.zeros(40), np.zeros(40, np.int64))
    found = GreedyAssignment(Turns(AnchorGrids(anchors, ANCHORS, 64), spots, boxes, unknown)).run()
    np.testing.assert_array_equal(found, assign_literally(boxes, 64))
