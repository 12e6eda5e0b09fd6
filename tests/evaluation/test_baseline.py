"""The AP of a constant box: known for images that all look alike, and absent where it has no meaning."""

import numpy as np
import pytest

from ssd_dist.core.records import Objects
from ssd_dist.evaluation.baseline import MAX_OBJECTS, evaluate_constant_box
from ssd_dist.evaluation.detections import GroundTruth

CENTER, CORNER = (0.25, 0.25, 0.75, 0.75), (0.0, 0.0, 0.2, 0.2)


def annotate(*boxes_of_images):
    ground_truths = []
    for index, boxes in enumerate(boxes_of_images):
        count = len(boxes)
        objects = Objects(
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            labels=np.ones(count, np.int64),
            names=("cell",) * count,
            difficult=np.zeros(count, bool),
            is_crowd=np.zeros(count, bool),
            area=np.full(count, 2500.0, np.float32),
        )
        ground_truths.append(GroundTruth(str(index), 100, 100, objects))
    return ground_truths


def test_the_most_frequent_place_is_chosen():
    # Precision is 3/4 at every recall up to 3/4, and 0 from there: 76 of COCO's 101 recall levels are reached.
    found = evaluate_constant_box(annotate([CENTER], [CORNER], [CENTER], [CENTER]), ("cell",))
    # The false positive is the second image: precisions 1, 1/2, 2/3, 3/4 have the envelope 1, 3/4, 3/4.
    expected = (26 * 1.0 + 50 * 0.75) / 101
    assert found == pytest.approx({"coco/AP": expected, "coco/AP50": expected})


def test_images_that_all_look_alike_have_a_perfect_constant_box():
    assert evaluate_constant_box(annotate([CENTER], [CENTER]), ("cell",))["coco/AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("images", "classes"),
    [
        ([[CENTER]], ("cell", "other")),
        ([[], []], ("cell",)),
        ([[CENTER] * (MAX_OBJECTS + 1)], ("cell",)),
        ([], ("cell",)),
    ],
)
def test_sets_for_which_it_has_no_meaning_have_no_baseline(images, classes):
    assert evaluate_constant_box(annotate(*images), classes) is None
