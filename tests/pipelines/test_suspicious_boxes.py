"""Warnings about annotations that were probably misread; no warning for ordinary datasets."""

import numpy as np
import pytest
from raw_sets import labeled_images, make_voc

from pipelines.suspicious_boxes import SuspiciousBoxes, add_up, count_suspicious, find_causes


def count(boxes, height=480, width=640):
    # Half of the boxes are in an image of their own, between two images without boxes.
    rows, none = np.array(boxes, np.float32).reshape(-1, 4), np.zeros([0, 4], np.float32)
    half = len(rows) // 2
    return count_suspicious([(each, height, width) for each in (none, rows[:half], none, rows[half:])])


RNG = np.random.default_rng(0)
ORDINARY = [[y, x, y + 0.2, x + 0.1] for y, x in RNG.uniform(0.05, 0.7, (40, 2))]


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[0.2, 0.3, 0.2 + 1 / 500, 0.3 + 1 / 700]] * 20, "smaller than one pixel"),
        ([[0, 0, 1, 1]] * 25, "cover the whole image"),
        ([[0, 0, 0.1 + 0.01 * n, 0.5] for n in range(30)], "touch two or three borders"),
        ([[0.25, 0.25, 0.5, 0.75]] * 30, "at the same place"),
    ],
)
def test_a_frequent_error_gives_a_warning_with_its_cause(boxes, words):
    messages = list(find_causes(count(boxes), len(boxes)))
    assert any(words in message for message in messages), messages
    # The same boxes among many ordinary ones are no reason for a warning.
    many = [*boxes[:4], *ORDINARY]
    assert list(find_causes(count(many), len(many))) == []


def test_a_side_is_measured_in_pixels_of_its_own_image():
    box = np.array([[0.1, 0.1, 0.2, 0.15]], np.float32)
    found = count_suspicious([(box, 100, 100), (box, 100, 15), (box, 9, 100)])
    assert found.sub_pixel == 2


def test_a_shard_without_images_has_no_suspicious_boxes():
    assert count_suspicious([]) == SuspiciousBoxes()


def test_few_boxes_give_no_warning():
    assert list(find_causes(count([[0, 0, 1, 1]] * 19), 19)) == []


def test_the_sum_does_not_depend_on_the_shards():
    boxes = [*ORDINARY, *[[0.25, 0.25, 0.5, 0.75]] * 30]
    whole = count(boxes)
    assert add_up(count(boxes[start::4]) for start in range(4)) == whole
    assert whole.same_corners == {"0.25 0.25 0.5 0.75": 30}


def test_a_split_names_the_cause_in_the_manifest_and_the_summary(tmp_path, command):
    ordinary = {f"i{number}": [("cat", 5, 5, 30, 40)] for number in range(24)}
    make_voc(tmp_path / "voc", ordinary)
    code, out, err = command(
        f"--input={tmp_path / 'voc'}", f"--output={tmp_path / 'out'}", "--split=train", "--set=model.input_size=64"
    )
    assert (code, err) == (0, "")
    assert "warning: 24 of 24 boxes are at the same place" in out
    assert "at the same place" in (tmp_path / "out/dataset.json").read_text()
    make_voc(tmp_path / "varied", labeled_images(40))
    code, out, _ = command(
        f"--input={tmp_path / 'varied'}", f"--output={tmp_path / 'out2'}", "--split=train", "--set=model.input_size=64"
    )
    assert code == 0
    assert "warning" not in out
