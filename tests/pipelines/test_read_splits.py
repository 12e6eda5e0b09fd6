"""Splits by hash: of the shares asked for, stable as the data grows, alike in every format."""

import pytest
from raw_sets import make_coco, make_voc, make_yolo

from pipelines.readers.source import Source, hashed_split, locate_image, parse_split_by
from ssd_dist.core.errors import UsageError

SHARES = (("train", 0.8), ("val", 0.1), ("test", 0.1))


def test_shares_come_out_as_asked():
    assert parse_split_by("train:0.8,val:0.1,test:0.1") == SHARES
    found = [hashed_split(f"image {number}", SHARES) for number in range(5000)]
    for name, share in SHARES:
        assert found.count(name) / 5000 == pytest.approx(share, abs=0.02)


def test_an_image_stays_where_it_is():
    # Independent of everything but the id: these must never change, or validation images leak into training.
    # SHA-256 of "image 5" begins with cdcee5..., 0.804 of the range.
    expected = ["train"] * 5 + ["val"] + ["train"] * 2
    assert [hashed_split(f"image {number}", SHARES) for number in range(8)] == expected
    renamed = (("a", 0.8), ("b", 0.1), ("c", 0.1))
    assert [hashed_split(f"image {number}", renamed) for number in range(8)] == [
        {"train": "a", "val": "b", "test": "c"}[name] for name in expected
    ]


@pytest.mark.parametrize("text", ["train", "train:x", "train:0.5", "train:0.5,val:0.6", "train:1,val:0", ":1"])
def test_other_forms_are_refused(text):
    with pytest.raises(UsageError, match="split_by"):
        parse_split_by(text)
    assert parse_split_by("") == ()


@pytest.mark.parametrize("input_format", ["voc", "coco", "yolo", "csv"])
def test_the_splits_of_a_set_are_disjoint_and_whole(input_format, tmp_path, prepare, records_of):
    names = [f"{number:03d}" for number in range(30)]
    if input_format == "voc":
        source = make_voc(tmp_path / "raw", {name: [("x", 5, 5, 30, 30)] for name in names}, {})
    elif input_format == "coco":
        source = make_coco(tmp_path / "raw", {f"{name}.jpg": [(1, 5, 5, 30, 30)] for name in names}, {1: "x"}, "all")
        source = source / "annotations/instances_all.json"
    elif input_format == "yolo":
        source = (
            make_yolo(tmp_path / "raw", {name: ["0 0.5 0.5 0.2 0.2"] for name in names}, ["x"], "all") / "data.yaml"
        )
    else:
        make_voc(tmp_path / "raw", {name: [] for name in names}, {})
        source = tmp_path / "raw/JPEGImages/all.csv"
        lines = [f"{name}.jpg,x,5,5,30,30\n" for name in names]
        source.write_text("filename,class,xmin,ymin,xmax,ymax\n" + "".join(lines))
    image_dir = {"coco": str(tmp_path / "raw/all"), "yolo": str(tmp_path / "raw/images/all")}.get(input_format, "")
    shares = (("train", 0.6), ("val", 0.4))
    seen = []
    for split in ("train", "val"):
        manifest = prepare(input_format, source, tmp_path / "out", split, split_by=shares, image_dir=image_dir)
        seen.append(set(records_of(tmp_path / "out", manifest, split)))
        assert manifest.splits[split].boxes == manifest.splits[split].boxes_read == len(seen[-1])
    assert len(seen[0] & seen[1]) == 0
    assert len(seen[0] | seen[1]) == 30
    assert len(seen[0]) > len(seen[1]) > 3
    assert manifest.leakage == ()


def test_the_split_of_a_source_defaults_to_that_of_the_output():
    assert Source((), fallback_split="train").split_name == "train"
    assert Source((), split="train2017", fallback_split="train").split_name == "train2017"


@pytest.mark.parametrize("name", ["a.jpg", "sub/a.jpg", "./a.jpg", "sub\\a.jpg", "a b.jpg", "ü.jpg", "a..jpg"])
def test_names_inside_the_folder(name):
    assert locate_image("/images", name).path.startswith("/images/")


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/a.jpg", "sub/../../a.jpg", "..", ".", "a\0.jpg", "\\\\host\\a", "c:\\a"]
)
def test_names_outside_the_folder(name):
    assert locate_image("/images", name).problem.reason == "path_traversal"
