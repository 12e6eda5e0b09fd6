"""Splits by hash: shares as requested, stable when the dataset grows, alike in every format."""

import pytest
from raw_sets import jpeg, make_coco, make_voc, make_yolo, voc_xml

from pipelines.readers.sources import Source, assign_split, locate_image, parse_split_by
from pipelines.readers.tfrecord import find_files
from pipelines.readers.yolo import choose_layouts
from pipelines.split_folder import contains_only_output
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.tfrecord_io import frame_record

SMALL = Config.model_validate({"model": {"input_size": 64}})

SHARES = (("train", 0.8), ("val", 0.1), ("test", 0.1))


def test_splits_have_the_requested_shares():
    assert parse_split_by("train:0.8,val:0.1,test:0.1") == SHARES
    found = [assign_split(f"image {number}", SHARES) for number in range(5000)]
    for name, share in SHARES:
        assert found.count(name) / 5000 == pytest.approx(share, abs=0.02)


def test_the_split_of_an_image_never_changes():
    # If these values changed, validation images would move into the training split.
    # SHA-256 of "image 5" begins with cdcee5..., 0.804 of the range.
    expected = ["train"] * 5 + ["val"] + ["train"] * 2
    assert [assign_split(f"image {number}", SHARES) for number in range(8)] == expected
    renamed = (("a", 0.8), ("b", 0.1), ("c", 0.1))
    assert [assign_split(f"image {number}", renamed) for number in range(8)] == [
        {"train": "a", "val": "b", "test": "c"}[name] for name in expected
    ]


@pytest.mark.parametrize("text", ["train", "train:x", "train:0.5", "train:0.5,val:0.6", "train:1,val:0", ":1"])
def test_invalid_values_of_split_by_are_rejected(text):
    with pytest.raises(UsageError, match="split_by"):
        parse_split_by(text)
    assert parse_split_by("") == ()


@pytest.mark.parametrize("input_format", ["voc", "coco", "yolo", "csv"])
def test_splits_are_disjoint_and_complete(input_format, tmp_path, prepare, records_of):
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


def test_the_source_split_defaults_to_the_output_split():
    assert Source((), output_split="train").split_name == "train"
    assert Source((), split="train2017", output_split="train").split_name == "train2017"
    # All shares must be taken from the same set, so the name of the output split is not used.
    assert Source((), output_split="train", split_by=SHARES).split_name == ""
    assert Source((), split="all", output_split="train", split_by=SHARES).split_name == "all"


def add_split(kind, folder, split, numbers):
    """Adds a split to a dataset, which may contain others."""
    stems = [f"{number:03d}" for number in numbers]
    boxes = {f"{stem}.jpg": [(1, 5, 5, 30, 30)] for stem in stems}
    if kind == "yolo":
        make_yolo(folder, {stem: ["0 0.5 0.5 0.2 0.2"] for stem in stems}, ["x"], split)
    elif kind == "coco":
        make_coco(folder, boxes, {1: "x"}, split)
    elif kind == "csv":
        make_coco(folder / "made", boxes, {1: "x"}, split)
        (folder / "made" / split).rename(folder / split)
        lines = "".join(f"{name},x,5,5,30,30\n" for name in boxes)
        (folder / f"{split}_labels.csv").write_text(f"filename,class,xmin,ymin,xmax,ymax\n{lines}")
    else:
        make_voc(folder, {}, {})
        annotations = folder / "Annotations" / split if kind == "voc" else folder / split
        images = folder / "JPEGImages" / split if kind == "voc" else folder / split
        for path in (annotations, images):
            path.mkdir(parents=True, exist_ok=True)
        for number, stem in enumerate(stems):
            (annotations / f"{stem}.xml").write_text(voc_xml(f"{stem}.jpg", [("x", 5, 5, 30, 30)]))
            (images / f"{stem}.jpg").write_bytes(jpeg(number))
        if kind == "voc_flat":
            (folder / "Annotations").rmdir()


@pytest.mark.parametrize(
    ("kind", "splits", "source_split", "count"),
    [
        ("yolo", ["train"], "", 20),
        ("yolo", ["train", "val"], "", 40),
        ("yolo", ["train", "val"], "val", 20),
        ("voc", ["train", "val"], "", 40),
        ("voc", ["train", "val"], "train", 20),
        ("voc_flat", ["train", "val"], "", 0),
        ("voc_flat", ["train", "val"], "val", 20),
        ("coco", ["train"], "", 20),
        ("coco", ["train", "val"], "", 0),
        ("coco", ["train", "val"], "val", 20),
        ("csv", ["train"], "", 20),
        ("csv", ["train", "val"], "", 0),
        ("csv", ["train", "val"], "val", 20),
    ],
)
def test_a_source_with_splits_is_divided_as_a_whole_or_rejected(
    tmp_path, prepare, records_of, kind, splits, source_split, count
):
    for split in splits:
        add_split(kind, tmp_path / "raw", split, range(20))
    seen = []
    for split in ("train", "val"):
        rest = {"split_by": (("train", 0.6), ("val", 0.4)), "source_split": source_split, "config": SMALL}
        if not count:
            with pytest.raises(DataError, match="source_split"):
                prepare(kind.partition("_")[0], tmp_path / "raw", tmp_path / "out", split, **rest)
            continue
        manifest = prepare(kind.partition("_")[0], tmp_path / "raw", tmp_path / "out", split, **rest)
        seen.append(set(records_of(tmp_path / "out", manifest, split)))
        assert manifest.splits[split].boxes == len(seen[-1])
    if count:
        assert len(seen[0] & seen[1]) == 0
        assert len(seen[0] | seen[1]) == count


def test_tfrecord_files_of_all_splits_are_divided_together(tmp_path):
    for name in ("train-0-of-1", "val-0-of-1"):
        (tmp_path / name).write_bytes(frame_record(b"a record"))
    (tmp_path / "label_map.pbtxt").write_bytes(b"")
    found = [
        [file.path for file in find_files(Source((str(tmp_path),), output_split=split, split_by=SHARES))]
        for split in ("train", "val")
    ]
    assert found == [[str(tmp_path / "train-0-of-1"), str(tmp_path / "val-0-of-1")]] * 2


def test_yolo_list_files_of_all_splits_are_divided_together(tmp_path):
    make_yolo(tmp_path, {"a": [""], "b": [""]}, ["x"])
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / f"{split}.txt").write_text(f"images/train/{name}.jpg\n")
    (tmp_path / "data.yaml").write_text('{"train": "train.txt", "val": "val.txt", "names": ["x"]}')
    (layout,) = choose_layouts(Source((str(tmp_path),), output_split="train", split_by=SHARES))
    assert layout.list_files == (str(tmp_path / "train.txt"), str(tmp_path / "val.txt"))
    (layout,) = choose_layouts(Source((str(tmp_path),), split="train", output_split="val", split_by=SHARES))
    assert layout.list_files == (str(tmp_path / "train.txt"),)


def test_a_folder_of_shards_is_distinguished_from_one_with_images_among_them(tmp_path):
    folder = tmp_path / "a.tmp-1"
    (folder / ".parts").mkdir(parents=True)
    assert not contains_only_output(str(folder))
    (folder / ".parts/job.json").write_text("{}")
    for name in ("view00-00000-of-00001.tfrecord", "rejected.jsonl", ".view00-00000-of-00001.tfrecord.tmp-1"):
        (folder / name).touch()
    assert contains_only_output(str(folder))
    (folder / "0001").write_bytes(jpeg())
    assert not contains_only_output(str(folder))


@pytest.mark.parametrize("name", ["a.jpg", "sub/a.jpg", "./a.jpg", "sub\\a.jpg", "a b.jpg", "ü.jpg", "a..jpg"])
def test_file_names_inside_the_folder_are_accepted(name):
    assert locate_image("/images", name).path.startswith("/images/")


@pytest.mark.parametrize(
    "name", ["/data/a.jpg", "\\\\host\\a.jpg", "C:\\data\\a.jpg", "c:/a.jpg", "gs://bucket/a.jpg", "file:///a.jpg"]
)
def test_an_absolute_path_of_another_machine_is_read_by_its_base_name(name):
    assert locate_image("/images", name).path == "/images/a.jpg"


@pytest.mark.parametrize("name", ["../a.jpg", "sub/../../a.jpg", "..", ".", "a\0.jpg", "/", "c:\\", "/a/.."])
def test_file_names_outside_the_folder_are_rejected(name):
    assert locate_image("/images", name).problem.reason == "path_traversal"
