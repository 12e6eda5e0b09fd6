"""TFRecord reader: files written by TensorFlow and by prepare itself, and damaged records."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image as PillowImage
from raw_sets import jpeg, labeled_images, make_voc

from pipelines.annotations import Category, Image, Listing
from pipelines.image_reading import read_image
from pipelines.readers.sources import Source
from pipelines.readers.tfrecord import find_files, parse_record, read_file
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import encode_example
from ssd_dist.core.tfrecord_io import frame_record

CORNERS = {"ymin": 0.1, "xmin": 0.2, "ymax": 0.3, "xmax": 0.6}
SMALL = Config.model_validate({"model": {"input_size": 64}})


def features(number=0, **changes):
    content = {
        "image/encoded": [jpeg(number)],
        "image/filename": [f"{number}.jpg".encode()],
        "image/source_id": [str(number).encode()],
        "image/height": np.array([48]),
        "image/width": np.array([64]),
        "image/object/bbox/ymin": np.array([0.1, 0.5], np.float32),
        "image/object/bbox/xmin": np.array([0.2, 0.5], np.float32),
        "image/object/bbox/ymax": np.array([0.3, 0.9], np.float32),
        "image/object/bbox/xmax": np.array([0.4, 0.9], np.float32),
        "image/object/class/text": [b"zebra", b"ant"],
        "image/object/class/label": np.array([1, 2]),
    }
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    return encode_example(content)


def values_of(path, *records, **rest):
    path.write_bytes(b"".join(frame_record(record) for record in records))
    source = Source((str(path),), output_split="train", **rest)
    (file,) = find_files(source)
    return [value for _, value in read_file(file, source)]


def test_records_yield_images_with_their_position_and_classes_by_label(tmp_path):
    values = values_of(tmp_path / "x.tfrecord", features(0), features(1))
    images = [value for value in values if isinstance(value, Image)]
    assert [(image.image_id, image.row, image.size, image.filename) for image in images] == [
        ("0", 0, (48, 64), "0.jpg"), ("1", 1, (48, 64), "1.jpg"),
    ]  # fmt: skip
    assert [value for value in values if isinstance(value, Category)] == [
        Category("zebra", 1, "zebra"), Category("ant", 2, "ant"),
    ]  # fmt: skip
    assert images[0].boxes[0].corners == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert images[0].boxes[0].normalized
    assert [read_image(image) for image in images] == [jpeg(0), jpeg(1)]
    assert values[-1] == Listing(0, 2, str(tmp_path / "x.tfrecord"))


def test_records_written_by_tensorflow_are_read(tmp_path):
    tf = pytest.importorskip("tensorflow")
    example = tf.train.Example()
    feature = example.features.feature
    feature["image/encoded"].bytes_list.value.append(jpeg(5))
    feature["image/source_id"].bytes_list.value.append(b"five")
    for side, value in zip(("ymin", "xmin", "ymax", "xmax"), (0.25, 0.5, 0.75, 1.0), strict=True):
        feature[f"image/object/bbox/{side}"].float_list.value.append(value)
    feature["image/object/class/label"].int64_list.value.append(3)
    feature["image/object/is_crowd"].int64_list.value.append(1)
    path = tmp_path / "tf.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(example.SerializeToString())
    source = Source((str(path),), output_split="train")
    (file,) = find_files(source)
    image, category, _ = (value for _, value in read_file(file, source))
    assert (image.image_id, image.filename) == ("five", "tf.tfrecord#0")
    assert (image.boxes[0].corners, image.boxes[0].is_crowd) == ((0.25, 0.5, 0.75, 1.0), True)
    assert category.name == "class 3"
    # The same flag in the records of Open Images.
    del feature["image/object/is_crowd"]
    feature["image/object/group_of"].int64_list.value.append(1)
    grouped, _ = parse_record(example.SerializeToString(), 0, 0, (0, 0), file)
    assert grouped.boxes[0].is_crowd
    assert read_image(image) == jpeg(5)


@pytest.mark.parametrize(
    "changes",
    [
        {"image/object/bbox/xmax": np.array([0.4], np.float32)},
        {"image/object/class/text": [b"zebra"]},
        {"image/object/difficult": np.array([1])},
        {"image/source_id": [b"\xff"]},
        {"image/height": np.array([np.inf], np.float32)},
        {"image/width": [b""]},
        {"image/filename": np.array([139])},
        # bytes(1 << 62) would allocate 4 EiB of zeros.
        {"image/encoded": np.array([1 << 62])},
        {"image/object/class/text": np.array([1, 2])},
        {"image/object/class/label": [b"1", b"2"]},
        {"image/object/bbox/ymin": [b"0.1", b"0.5"]},
        {"image/original/height": [b"480"]},
        {"image/source_id": np.array([0.5], np.float32)},
    ],
)
def test_an_inconsistent_record_gives_an_image_with_a_problem(tmp_path, changes):
    values = values_of(tmp_path / "x.tfrecord", features(0), features(1, **changes), b"no example at all")
    images = [value for value in values if isinstance(value, Image)]
    assert [image.problem and image.problem.reason for image in images] == [None, *["broken_annotation"] * 2]
    assert values[-1].images == 3


def test_a_size_of_zero_is_ignored(tmp_path):
    image = values_of(tmp_path / "x.tfrecord", features(0, **{"image/height": np.array([0])}))[0]
    assert (image.size, image.problem) == (None, None)


@pytest.mark.parametrize(("claimed", "displayed"), [((48, 64), "stored"), (None, "stored"), ((64, 48), "upright")])
def test_boxes_of_a_record_refer_to_its_stored_pixels(tmp_path, prepare, records_of, claimed, displayed):
    # TensorFlow's decoders ignore the EXIF orientation. The boxes refer to the rotated image only if the size of the
    # record is that of the rotated image.
    stored = PillowImage.open(io.BytesIO(jpeg(0)))
    exif = stored.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees, clockwise
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", exif=exif, quality=95)
    height, width = (None, None) if claimed is None else (np.array([side]) for side in claimed)
    data = features(0, **{"image/encoded": [buffer.getvalue()], "image/height": height, "image/width": width})
    (tmp_path / "train.tfrecord").write_bytes(frame_record(data))
    manifest = prepare("tfrecord", tmp_path / "train.tfrecord", tmp_path / "out", config=SMALL)
    record = records_of(tmp_path / "out", manifest)["0"]
    expected = stored if displayed == "stored" else stored.transpose(PillowImage.Transpose.ROTATE_270)
    assert (record.original_height, record.original_width) == (expected.height, expected.width)
    square = np.asarray(expected.convert("RGB").resize((64, 64), PillowImage.Resampling.BILINEAR), float)
    # The tolerance allows for encoding as JPEG twice.
    assert np.abs(np.asarray(PillowImage.open(io.BytesIO(record.encoded)), float) - square).mean() < 4


def test_a_record_without_an_image_is_reported_when_it_is_read(tmp_path):
    image = values_of(tmp_path / "x.tfrecord", features(0, **{"image/encoded": None}))[0]
    assert read_image(image).reason == "unreadable"


@pytest.mark.parametrize("number", [139, 0, -1, 1 << 62])
def test_a_numeric_id_becomes_its_decimal_digits(tmp_path, number):
    image = values_of(tmp_path / "x.tfrecord", features(0, **{"image/source_id": np.array([number])}))[0]
    assert (image.image_id, image.problem) == (str(number), None)


@pytest.mark.parametrize(("sides", "area"), [((480, 640), 0.08 * 480 * 640), ((0, 640), 0.08 * 48 * 64)])
def test_the_size_of_the_original_is_kept(tmp_path, prepare, records_of, sides, area):
    original = {
        f"image/original/{name}": np.array([side]) for name, side in zip(("height", "width"), sides, strict=True)
    }
    box = {f"image/object/bbox/{side}": np.array([corner], np.float32) for side, corner in CORNERS.items()}
    classes = {"image/object/class/text": [b"ant"], "image/object/class/label": np.array([1])}
    (tmp_path / "train.tfrecord").write_bytes(frame_record(features(0, **original, **box, **classes)))
    record = records_of(tmp_path / "out", prepare("tfrecord", tmp_path, tmp_path / "out", config=SMALL))["0"]
    assert (record.original_height, record.original_width) == (sides if min(sides) else (48, 64))
    assert record.objects.area == pytest.approx([area], rel=1e-5)


@pytest.mark.parametrize(
    ("damaged_byte", "valid"),
    [
        (lambda frame: len(frame) // 2, [True, False, True]),
        (lambda frame: -1, [True, False, True]),  # the body's checksum
        (lambda frame: 0, [True, False]),  # the length
        (lambda frame: 8, [True, False]),  # the length's checksum
    ],
)
def test_later_records_are_lost_only_if_a_length_is_damaged(tmp_path, damaged_byte, valid):
    frames = [bytearray(frame_record(features(number))) for number in range(3)]
    frames[1][damaged_byte(frames[1])] ^= 1
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"".join(frames))
    source = Source((str(path),), output_split="train")
    (file,) = find_files(source)
    *values, end = [value for _, value in read_file(file, source)]
    images = [value for value in values if isinstance(value, Image)]
    assert [image.problem is None for image in images] == valid
    assert [image.row for image in images] == list(range(end.images))
    assert "record 1" in f"{images[1].source} {images[1].problem.detail}"
    assert ("the rest of the file is lost" in images[1].problem.detail) == (len(valid) < 3)
    assert [read_image(image) for image in images if image.problem is None] == [
        jpeg(number) for number in range(3) if [*valid, False][number]
    ]


def test_a_compressed_file_is_reported(tmp_path):
    path = tmp_path / "x.tfrecord.gz"
    values_of(tmp_path / "x.tfrecord", features(0))
    path.write_bytes(gzip.compress((tmp_path / "x.tfrecord").read_bytes()))
    source = Source((str(path),), output_split="train")
    (file,) = find_files(source)
    (image, listing) = [value for _, value in read_file(file, source)]
    assert "compressed" in image.problem.detail
    assert listing.images == 1


def test_prepare_reads_its_own_shards(tmp_path, prepare, records_of):
    source = make_voc(tmp_path / "voc", labeled_images(20))
    first = prepare("voc", source, tmp_path / "first", config=SMALL)
    second = prepare("tfrecord", tmp_path / "first/train/view00-*", tmp_path / "second", config=SMALL)
    assert second.classes == first.classes
    old, new = records_of(tmp_path / "first", first), records_of(tmp_path / "second", second)
    assert sorted(old) == sorted(new)
    for name, record in old.items():
        np.testing.assert_array_equal(new[name].objects.boxes, record.objects.boxes)
        np.testing.assert_array_equal(new[name].targets.anchors, record.targets.anchors)
        assert new[name].objects.names == record.objects.names
        np.testing.assert_array_equal(new[name].objects.area, record.objects.area)
        assert (new[name].original_height, new[name].original_width) == (48, 64)
        pixels = [np.asarray(PillowImage.open(io.BytesIO(r.encoded)), float) for r in (record, new[name])]
        assert np.abs(pixels[0] - pixels[1]).mean() < 3


def test_files_are_found_by_split_name(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "val-00000-of-00001"):
        (tmp_path / name).write_bytes(frame_record(features()))
    found = find_files(Source((str(tmp_path),), output_split="train"))
    assert [file.path.rpartition("/")[2] for file in found] == ["train-00000-of-00002", "train-00001-of-00002"]
    with pytest.raises(DataError, match="test"):
        find_files(Source((str(tmp_path),), output_split="test"))
