"""The summary of prepare prints hostile class names and image names as text of limited length."""

import io

import numpy as np
import pytest
from rich.console import Console

from pipelines import summary
from ssd_dist.core.config import Config
from ssd_dist.core.manifest import Leakage, Manifest, PositivesPerObject, Shard, Split, View, fingerprint, target_spec

NAMES = ("[red]cat[/red]", "a\x1b[31m", "b\nwarning: c", "x" * 10_000)


def make_manifest() -> Manifest:
    config = Config()
    statistics = PositivesPerObject(mean=1.0, minimum=1, maximum=1, histogram={1: 4})
    shard = Shard(file="train/x.tfrecord", examples=4, bytes=9, sha256="ab" * 32)
    view = View(examples=4, shards=(shard,), objects_per_class=dict.fromkeys(NAMES, 1), positives_per_object=statistics)
    split = Split(
        images_read=4, images=4, boxes_read=4, boxes=4, rejected_images={}, rejected_boxes={}, clipped_boxes=0,
        image_hashes="train/hashes", views=(view,),
    )  # fmt: skip
    return Manifest(
        classes=NAMES,
        fingerprint=fingerprint(config.anchors, config.matching, config.model.input_size),
        splits={"train": split},
        leakage=(Leakage(splits=("train", "val"), images=4, examples=NAMES),),
        **target_spec(config.anchors, config.matching, config.model.input_size),
    )


def test_augmented_copies_are_counted_together():
    split = make_manifest().splits["train"]
    (whole,) = split.views
    few, many = (
        whole.model_copy(update={"positives_per_object": PositivesPerObject(mean=0, minimum=0, maximum=0, histogram=h)})
        for h in ({0: 1, 2: 1}, {1: 1, 7: 1})
    )
    rows = list(summary.summary_rows(split.model_copy(update={"views": (whole, few, many)})))
    values = dict(rows)
    assert len(values) == len(rows)
    for count, value, copies in (("shards", 1, 2), ("bytes", 9, 18), ("records", 4, 8)):
        assert (values[count], values[f"augmented copies: {count}"]) == (str(value), str(copies))
    assert all(values[f"augmented copies: objects of {name}"] == "2" for name in NAMES)
    assert values["positives per object"] == "1.00 (min 1, max 1; fewer than two: 100.0%)"
    # Of 0, 2, 1 and 7 positives: the mean is 10 / 4, and two of four objects have fewer than two.
    assert values["augmented copies: positives per object"] == "2.50 (min 0, max 7; fewer than two: 50.0%)"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_names_are_escaped_and_shortened(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(summary, "load_hashes", lambda path: np.arange(4, dtype=np.uint64))
    table = io.StringIO()
    if is_terminal:
        options = {"file": table, "force_terminal": True, "no_color": True, "width": 300}
        monkeypatch.setattr(summary, "Console", lambda **given: Console(**given, **options))
    summary.print_summary(make_manifest(), "train", "OUT")
    lines = capsys.readouterr().out.splitlines()
    warning = lines[-1]
    assert all(f"{name}, " in warning for name in ("[red]cat[/red]", "a\\x1b[31m", "b\\nwarning: c"))
    assert warning.startswith("warning: 4 images are in both train and val")
    rows = table.getvalue() if is_terminal else "\n".join(lines[:-1])
    for name in ("[red]cat[/red]", "a\\x1b[31m", "b\\nwarning: c"):
        assert f"objects of {name}" in rows
    assert max(map(len, [*lines, *rows.splitlines()])) < 400
    assert sum(line.startswith("warning:") for line in lines) == 1
    assert "\x1b[31m" not in rows
