"""What is measured on records equals what is counted by hand or by prepare."""

import json

import numpy as np
import pytest
from support.synthetic import write_dataset

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import Config
from ssd_dist.report.dataset_facts import TargetMaker, count_orphans, examine_split, read_rejections

CONFIG = Config.model_validate({"model": {"input_size": 64}})


def test_orphans_by_hand():
    # Two objects share their best anchor, 0; the second has anchor 1 above 0.5, the first nothing else.
    iou = np.array([[0.8, 0.1, 0.0], [0.7, 0.6, 0.0]])
    assert count_orphans(iou, "first") == 0
    assert count_orphans(iou, "last") == 1
    # Turned round, the other rule loses one.
    assert count_orphans(iou[::-1], "first") == 1
    assert count_orphans(iou[::-1], "last") == 0
    # Two objects on one spot: somebody is lost in either.
    assert [count_orphans(np.array([[0.3, 0.2], [0.3, 0.2]]), rule) for rule in ("first", "last")] == [1, 1]
    assert count_orphans(np.array([[0.3, 0.2], [0.1, 0.4]]), "first") == 0


def test_the_facts_of_a_split(tmp_path):
    manifest = write_dataset(tmp_path, CONFIG, {"train": 12, "val": 3}, shards=2)
    maker = TargetMaker.of(manifest)
    facts = examine_split(str(tmp_path), "train", manifest.splits["train"], maker, 100)
    objects = facts.objects
    assert facts.examined == 12
    assert facts.objects_per_image.sum() == len(objects.labels) == manifest.splits["train"].boxes
    assert np.bincount(objects.labels, minlength=4)[1:].tolist() == list(
        manifest.splits["train"].views[0].objects_per_class.values()
    )
    assert objects.best_iou == pytest.approx(iou_matrix(objects.boxes, maker.anchors).max(axis=1), abs=1e-6)
    assert (objects.positives >= 1).all(), "no object is ever lost"
    # An object that many anchors fit has at least one positive for each it overlaps most; one that none fits has one.
    assert (objects.positives[objects.best_iou <= maker.matching.positive_iou] == 1).all()


def test_at_most_so_many_records_are_read(tmp_path):
    manifest = write_dataset(tmp_path, CONFIG, {"train": 12}, shards=2)
    facts = examine_split(str(tmp_path), "train", manifest.splits["train"], TargetMaker.of(manifest), 5)
    assert facts.examined == len(facts.objects_per_image) == 5


def test_a_few_rejections_of_each_reason(tmp_path):
    (tmp_path / "train").mkdir()
    lines = [{"reason": "unreadable", "image": f"{i}.jpg", "detail": "cut"} for i in range(9)]
    lines += [{"reason": "zero_area", "image": "x.jpg", "where": "object 3"}]
    text = "\n".join([*map(json.dumps, lines), '{"reason": "cut sho'])
    (tmp_path / "train" / "rejected.jsonl").write_text(text)
    found = read_rejections(str(tmp_path), "train")
    assert {reason: len(examples) for reason, examples in found.items()} == {"unreadable": 5, "zero_area": 1}
    assert read_rejections(str(tmp_path), "val") == {}
