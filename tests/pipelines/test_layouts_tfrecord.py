"""TFRecord files as tools name them: splits, label maps, and files that cannot be read."""

import gzip
import zlib

import numpy as np
import pytest
from raw_sets import jpeg

from pipelines.annotations import Category, Image
from pipelines.readers.label_map import parse_label_map
from pipelines.readers.sources import Source
from pipelines.readers.tfrecord import find_files, read_file
from pipelines.readers.tfrecord_layout import find_splits
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import encode_example
from ssd_dist.core.tfrecord_io import frame_record

SMALL = Config.model_validate({"model": {"input_size": 64}})
LABEL_MAP = "item {\n  id: 1\n  name: 'bolt'\n}\nitem {\n  id: 2\n  name: 'nut'\n}\n"


def record(name="a", label=1, text=None, corners=(0.2, 0.1, 0.75, 0.5)):
    """Returns a record of one image with one box; `text` is the class name, omitted if None."""
    features = {
        "image/encoded": [jpeg()],
        "image/source_id": [name.encode()],
        "image/filename": [f"{name}.jpg".encode()],
        "image/height": np.array([48]),
        "image/width": np.array([64]),
        "image/object/class/label": np.array([label]),
    }
    for side, corner in zip(("ymin", "xmin", "ymax", "xmax"), corners, strict=True):
        features[f"image/object/bbox/{side}"] = np.array([corner], np.float32)
    if text is not None:
        features["image/object/class/text"] = [text.encode()]
    return frame_record(encode_example(features))


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(path, split="train", **rest):
    """Returns the image ids of a split and its classes."""
    source = Source((str(path),), output_split=split, **rest)
    values = [value for file in find_files(source) for _, value in read_file(file, source)]
    images = [value for value in values if isinstance(value, Image)]
    assert all(image.problem is None for image in images)
    return sorted(image.image_id for image in images), {v.name for v in values if isinstance(v, Category)}


@pytest.mark.parametrize(
    "names",
    [
        ("train.record", "valid.record", "test.record"),
        ("train.tfrecord", "val.tfrecord", "test.tfrecord"),
        ("train.tfrecords", "validation.tfrecords", "test.tfrecords"),
        ("TRAIN.TFRECORD", "VAL.TFRECORD", "TEST.TFRECORD"),
        ("train01.tfrec", "val01.tfrec", "test01.tfrec"),
        ("train-00000-of-00001", "val-00000-of-00001", "test-00000-of-00001"),
        ("coco_train.record-00000-of-00001", "coco_val.record-00000-of-00001", "coco_test.record-00000-of-00001"),
        ("x-train.tfrecord-00000-of-00001", "x-validation.tfrecord-00000-of-00001", "x-test.tfrecord-00000-of-00001"),
        ("train/bolts.tfrecord", "valid/bolts.tfrecord", "test/bolts.tfrecord"),
        ("data/train.record", "data/eval_val.record", "data/test.record"),
    ],
)
def test_the_split_is_a_word_in_the_name_of_the_file_or_its_folder(tmp_path, names):
    write(tmp_path, {name: record(name) for name in names})
    others = {"train_labels.csv": "filename", "label_map.pbtxt": LABEL_MAP, "ckpt.data-00000-of-00001": b"some weights"}
    write(tmp_path, others)
    found = find_splits(str(tmp_path), "")
    listed = [file.path for name, files in found.splits.items() if name for file in files]
    assert sorted(listed) == sorted(file.path for file in found.splits[""])
    assert read(tmp_path, "train") == ([names[0]], {"bolt"})
    assert read(tmp_path, "val") == ([names[1]], {"bolt"})
    ids, _ = read(tmp_path, "train", split_by=(("train", 1.0),))
    assert ids == sorted(names)
    with pytest.raises(DataError, match=r"no split 'other'; TFRecord|no split 'other'; Roboflow"):
        read(tmp_path, "other")


def test_the_files_of_a_split_are_read_together(tmp_path):
    write(tmp_path, {f"train.record-0000{number}-of-00003": record(str(number)) for number in range(3)})
    assert list(find_splits(str(tmp_path), "").splits) == ["train", ""]
    assert read(tmp_path)[0] == ["0", "1", "2"]


def test_files_without_a_split_in_their_names_are_the_whole_dataset(tmp_path):
    write(tmp_path, {"bolts-1.tfrecord": record("a"), "bolts-2.tfrecord": record("b"), "bolts.gz": b"x"})
    assert list(find_splits(str(tmp_path), "").splits) == [""]
    assert read(tmp_path, "anything")[0] == ["a", "b"]


def test_files_of_no_split_beside_those_of_splits_are_announced(tmp_path):
    write(tmp_path, {"train.record": record("a", text="bolt"), "all.record": record("b", text="bolt")})
    found = find_splits(str(tmp_path), "")
    assert (list(found.splits), len(found.splits[""])) == (["train", ""], 1)
    assert found.notes == ("not read: all.record, whose names contain no split; pass a file as --input to read it",)


@pytest.mark.parametrize("given", ["train.record", "*.record", "records"])
def test_files_and_patterns_are_read_whatever_their_names(tmp_path, given):
    write(tmp_path, {"train.record": record("a"), "records": record("a"), "label_map.pbtxt": LABEL_MAP})
    assert read(tmp_path / given) == (["a"], {"bolt"})


@pytest.mark.parametrize("content", [b"", b"text that is no record at all", b"\x00" * 64])
def test_other_files_are_not_recognized(tmp_path, content):
    write(tmp_path, {"x.bin": content, "a.txt": "text", "ckpt.data-00000-of-00001": content or b"x"})
    assert find_splits(str(tmp_path / "x.bin"), "") is None
    assert find_splits(str(tmp_path), "") is None
    with pytest.raises(DataError, match=r"no TFRecord files \(\*\.tfrecord"):
        read(tmp_path)


@pytest.mark.parametrize(
    "maps",
    [
        {"train_label_map.pbtxt": LABEL_MAP},
        {"label_map.pbtxt": LABEL_MAP},
        {"bolts.pbtxt": LABEL_MAP},
        {"annotations/label_map.pbtxt": LABEL_MAP},
        # The map of the file is preferred, and a pipeline config is no map.
        {"train_label_map.pbtxt": LABEL_MAP, "a_label_map.pbtxt": LABEL_MAP.replace("bolt", "x"), "a.pbtxt": "node {}"},
        # In Roboflow's spelling.
        {"label_map.pbtxt": 'item {\n    name: "bolt",\n    id: 1,\n    display_name: "bolt"\n}\n'},
    ],
)  # fmt: skip
def test_class_numbers_get_the_names_of_the_label_map(tmp_path, prepare, maps):
    write(tmp_path, {"train.record": record("a"), **maps})
    assert find_splits(str(tmp_path), "").notes == ()
    assert read(tmp_path) == (["a"], {"bolt"})


def test_names_in_the_records_are_preferred_to_the_label_map(tmp_path):
    write(tmp_path, {"train.record": record("a", text="screw"), "label_map.pbtxt": LABEL_MAP})
    assert read(tmp_path) == (["a"], {"screw"})


def test_a_label_map_in_the_folder_above_names_the_classes_of_all_splits(tmp_path):
    files = {f"{split}/bolts.tfrecord": record(split, number) for number, split in ((1, "train"), (2, "valid"))}
    write(tmp_path, {**files, "bolts_label_map.pbtxt": LABEL_MAP})
    assert read(tmp_path, "train")[1] == {"bolt"}
    assert read(tmp_path, "val")[1] == {"nut"}


@pytest.mark.parametrize("maps", [{}, {"label_map.pbtxt": "item { id: 7 name: 'other' }"}])
def test_classes_without_names_are_numbered_and_announced(tmp_path, maps):
    write(tmp_path, {"train.record": record("a", label=3), **maps})
    assert read(tmp_path) == (["a"], {"class 3"})
    notes = find_splits(str(tmp_path), "").notes
    assert len(notes) == (not maps)
    assert all("copy label_map.pbtxt to the folder of the records" in note for note in notes)


def test_the_command_reads_the_folder_of_the_object_detection_api(tmp_path, command, prepare):
    csv_text = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,64,48,bolt,6,10,32,36\n"
    records = b"".join(record(str(number)) for number in range(12))
    files = {"train.record": records, "test.record": b"", "train_labels.csv": csv_text}
    write(tmp_path / "in", {**files, "train_label_map.pbtxt": LABEL_MAP})
    assert "not read: test.record, which is an empty file" in find_splits(str(tmp_path / "in"), "").notes
    for arguments in ((), ("--input_format=tfrecord", "--split=train")):
        output = tmp_path / f"out{len(arguments)}"
        arguments = (
            *arguments,
            f"--input={tmp_path / 'in/train.record'}" if arguments else f"--input={tmp_path / 'in'}",
        )
        code, text, errors = command(*arguments, f"--output={output}", "--set=model.input_size=64")
        assert (code, errors) == (0, ""), text
        counts = [int(line.rpartition(":")[2]) for line in text.splitlines() if "objects of bolt" in line]
        assert sum(counts) == 12
    split = prepare("tfrecord", tmp_path / "in", tmp_path / "out", config=SMALL).splits["train"]
    assert (split.images_read, split.images, split.boxes_read, split.boxes) == (12, 12, 12, 12)


def test_pixels_in_the_keys_of_fractions_are_reported(tmp_path, prepare):
    pixels = record("b", text="bolt", corners=(12, 10, 36, 50))
    write(tmp_path, {"train.record": record("a", text="bolt") + pixels})
    split = prepare("tfrecord", tmp_path, tmp_path / "out", config=SMALL).splits["train"]
    assert split.rejected_boxes == {"outside": 1}
    assert "its coordinates are probably pixels" in (tmp_path / "out/train/rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "compress", "detail"),
    [
        (
            "train.tfrecord.gz",
            gzip.compress,
            "the file is compressed with gzip; decompress it, for example with gunzip",
        ),
        ("train.tfrecord", gzip.compress, "the file is compressed with gzip; decompress it, for example with gunzip"),
        ("train.record", zlib.compress, "the file is compressed with zlib"),
        ("train.record", lambda data: data[:-1], "record 0: truncated; the rest of the file is lost"),
    ],
)
def test_a_compressed_file_is_reported_as_compressed(tmp_path, name, compress, detail):
    write(tmp_path, {name: compress(record("a"))})
    source = Source((str(tmp_path),), output_split="train")
    (file,) = find_files(source)
    (image, listing) = [value for _, value in read_file(file, source)]
    assert (image.problem.reason, listing.images) == ("broken_annotation", 1)
    assert image.problem.detail.startswith(detail)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (LABEL_MAP, {1: "bolt", 2: "nut"}),
        ('item{id:1 name:"a"}item{name:"b" id:2}', {1: "a", 2: "b"}),
        ('item { name: "/m/01g317" id: 1 display_name: "person" }', {1: "person"}),
        ("# item { id: 9 name: 'no' }\nitem { id: 1 name: 'it\\'s {x}' }", {1: "it's {x}"}),
        ("item { id: 1 name: 'caf\\303\\251' }", {1: "café"}),
        ("item { id: 1 name: 'pose' keypoints { id: 7 label: 'nose' } }", {1: "pose"}),
        ("item: { id: 1, name: 'bolt' }", {1: "bolt"}),
        ("item { id: 1 }\nitem { name: 'x' }\nitem { id: 2 name: 'y'", {}),
        ("", {}),
    ],
)
def test_label_maps_are_parsed(text, names):
    assert parse_label_map(text) == names
