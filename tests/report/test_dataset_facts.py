"""Facts measured on records equal those counted by hand or by prepare."""

import json

import numpy as np
import pytest
from support.synthetic import write_dataset

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import Config
from ssd_dist.report.dataset_facts import TargetMaker, count_orphans, examine_split, read_rejections

CONFIG = Config.model_validate({"model": {"input_size": 64}})


def test_orphans_counted_by_hand():
    # Both objects have anchor 0 as their best; only the second also overlaps another anchor, 1, by more than 0.5.
    iou = np.array([[0.8, 0.1, 0.0], [0.7, 0.6, 0.0]])
    assert count_orphans(iou, "first") == 0
    assert count_orphans(iou, "last") == 1
    # In reverse order the other rule leaves an orphan.
    assert count_orphans(iou[::-1], "first") == 1
    assert count_orphans(iou[::-1], "last") == 0
    # Two objects at the same place: both rules leave one orphan.
    assert [count_orphans(np.array([[0.3, 0.2], [0.3, 0.2]]), rule) for rule in ("first", "last")] == [1, 1]
    assert count_orphans(np.array([[0.3, 0.2], [0.1, 0.4]]), "first") == 0


def test_the_facts_of_a_split(tmp_path):
    manifest = write_dataset(tmp_path, CONFIG, {"train": 12, "val": 3}, shards=2)
    maker = TargetMaker.from_manifest(manifest)
    facts = examine_split(str(tmp_path), "train", manifest.splits["train"], maker, 100)
    objects = facts.objects
    assert facts.examined == 12
    assert facts.objects_per_image.sum() == len(objects.labels) == manifest.splits["train"].boxes
    assert np.bincount(objects.labels, minlength=4)[1:].tolist() == list(
        manifest.splits["train"].views[0].objects_per_class.values()
    )
    assert objects.best_iou == pytest.approx(iou_matrix(objects.boxes, maker.anchors).max(axis=1), abs=1e-6)
    assert (objects.positives >= 1).all(), "every object has a positive anchor"
    # An object without a fitting anchor has exactly one positive anchor.
    assert (objects.positives[objects.best_iou <= maker.matching.positive_iou] == 1).all()


def test_the_number_of_records_read_is_limited(tmp_path):
    manifest = write_dataset(tmp_path, CONFIG, {"train": 12}, shards=2)
    facts = examine_split(str(tmp_path), "train", manifest.splits["train"], TargetMaker.from_manifest(manifest), 5)
    assert facts.examined == len(facts.objects_per_image) == 5


def test_up_to_five_rejections_are_read_per_reason(tmp_path):
    (tmp_path / "train").mkdir()
    lines = [{"reason": "unreadable", "image": f"{i}.jpg", "detail": "cut"} for i in range(9)]
    lines += [{"reason": "zero_area", "image": "x.jpg", "where": "object 3"}]
    text = "\n".join([*map(json.dumps, lines), '{"reason": "cut sho'])
    (tmp_path / "train" / "rejected.jsonl").write_text(text)
    found = read_rejections(str(tmp_path), "train")
    assert {reason: len(examples) for reason, examples in found.items()} == {"unreadable": 5, "zero_area": 1}
    assert read_rejections(str(tmp_path), "val") == {}
