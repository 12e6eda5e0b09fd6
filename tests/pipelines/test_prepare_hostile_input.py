"""Tests wrong, broken and malicious input: the job finishes; every image is in a shard or in rejected.jsonl."""

import io
import json
import os
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from raw_sets import jpeg, labeled_images, make_coco, make_voc, make_yolo, voc_xml

from pipelines.classes import ClassRules
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError

SMALL = Config.model_validate({"model": {"input_size": 64}})
GOOD = [("cat", 5, 10, 30, 40)]


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded_jpeg(seed=0):
    return Image.open(io.BytesIO(jpeg(seed))).convert("RGB")


def rotated():
    """Returns a JPEG with EXIF orientation 6: stored 48 wide and 64 high, displayed 64 wide and 48 high."""
    image = decoded_jpeg().transpose(Image.Transpose.ROTATE_90)
    exif = image.getexif()
    exif[0x0112] = 6
    return encode(image, "JPEG", exif=exif, quality=95)


def decompression_bomb():
    """Returns a PNG of 145 kB that contains 12,000 x 12,000 pixels."""
    return encode(Image.new("1", (12000, 12000)), "PNG")


def sixteen_bit():
    y, x = np.mgrid[:48, :64]
    return encode(Image.fromarray((y * 1000 + x * 100).astype(np.uint16)), "PNG")


# Name -> (bytes of the image file, annotation or boxes, reasons of rejected images and boxes, objects kept).
CASES = {
    "plain": (jpeg(1), GOOD, [], [], 1),
    "empty": (jpeg(2), [], [], [], 0),
    "gray": (encode(decoded_jpeg(3).convert("L"), "JPEG"), GOOD, [], [], 1),
    "cmyk": (encode(decoded_jpeg(4).convert("CMYK"), "JPEG"), GOOD, [], [], 1),
    "palette": (encode(decoded_jpeg(5).quantize(16), "PNG"), GOOD, [], [], 1),
    "sixteen_bit": (sixteen_bit(), GOOD, [], [], 1),
    "alpha": (encode(decoded_jpeg(6).convert("RGBA"), "PNG"), GOOD, [], [], 1),
    "rotated": (rotated(), GOOD, [], [], 1),
    "rotated_claim": (rotated(), voc_xml("rotated_claim.jpg", GOOD, (64, 48)), [], [], 1),
    # The box fits the 64 x 48 pixels as stored, not the upright image of 48 x 64 (height x width).
    "rotated_box": (
        rotated(), voc_xml("rotated_box.jpg", [*GOOD, ("cat", 30, 5, 62, 20)], (64, 48)),
        ["rotated_image"], ["image_rejected"] * 2, 0,
    ),
    # The second box shows that they refer to the upright image.
    "rotated_border": (
        rotated(),
        voc_xml("rotated_border.jpg", [("cat", 20, 5, 51, 40), ("cat", 5, 40, 30, 63)], (64, 48)), [], [], 2,
    ),
    # The last box fits neither.
    "rotated_other": (
        rotated(), voc_xml("rotated_other.jpg", [*GOOD, ("cat", 70, 5, 80, 20)], (64, 48)), [], ["outside"], 1,
    ),
    "wrong_extension": (encode(decoded_jpeg(7), "WEBP"), GOOD, [], [], 1),
    "unreadable": (b"these are no pixels", GOOD, ["unreadable"], ["image_rejected"], 0),
    "no_bytes": (b"", [], ["unreadable"], [], 0),
    "truncated": (jpeg(8)[:-300], GOOD * 2, ["truncated"], ["image_rejected"] * 2, 0),
    "bomb": (decompression_bomb(), voc_xml("bomb.jpg", GOOD, None), ["too_many_pixels"], ["image_rejected"], 0),
    "missing": (None, GOOD, ["missing_image"], ["image_rejected"], 0),
    "wrong_size": (jpeg(9), voc_xml("wrong_size.jpg", GOOD, (480, 640)), ["size_mismatch"], ["image_rejected"], 0),
    "no_size": (jpeg(10), voc_xml("no_size.jpg", GOOD, None), [], [], 1),
    "traversal": (jpeg(11), voc_xml("../../secret.jpg", GOOD), ["path_traversal"], ["image_rejected"], 0),
    "cut_xml": (jpeg(12), voc_xml("cut_xml.jpg", GOOD)[:-20], ["broken_annotation"], [], 0),
    "no_xml": (jpeg(13), None, ["missing_annotation"], [], 0),
    # Entity expansion ("billion laughs").
    "laughs": (
        jpeg(14),
        '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation><filename>&c;</filename></annotation>',
        ["unsafe_annotation"], [], 0,
    ),
    "boxes": (
        jpeg(15),
        [
            ("cat", 5, 5, 20, 20), ("cat", "nan", 5, 20, 20), ("cat", 20, 5, 5, 20), ("cat", 5, 5, 5, 20),
            ("cat", 100, 5, 120, 20), ("cat", -10, -10, 20, 20), ("cow", 5, 5, 20, 20), ("cat", "x", 5, 20, 20),
            ("dog", 5, 5, 20, 20),
        ],
        [],
        ["not_finite", "reversed", "zero_area", "outside", "unknown_class", "broken_box", "excluded_class"],
        2,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, prepare):
    root = tmp_path_factory.mktemp("hostile")
    (root / "secret.jpg").write_bytes(jpeg(99))
    folder = make_voc(root / "voc", {}, {"train": [*CASES, "plain"]})
    for name, (data, annotation, *_) in CASES.items():
        if data is not None:
            (folder / "JPEGImages" / f"{name}.jpg").write_bytes(data)
        if annotation is not None:
            xml = annotation if isinstance(annotation, str) else voc_xml(f"{name}.jpg", annotation)
            (folder / "Annotations" / f"{name}.xml").write_text(xml)
    rules = ClassRules(fixed=("cat", "dog"), exclude=("dog",))
    manifest = prepare("voc", folder, root / "out", config=SMALL, rules=rules)
    lines = [json.loads(line) for line in (root / "out/train/rejected.jsonl").read_text().splitlines()]
    return root / "out", manifest, lines


def test_each_case_is_rejected_for_its_reasons(hostile, records_of):
    output, manifest, lines = hostile
    records = records_of(output, manifest)
    for name, (_, _, image_reasons, box_reasons, kept) in CASES.items():
        own = [line for line in lines if f"/{name}.xml" in line["source"]]
        found_images = [line["reason"] for line in own if not line["where"] and line["reason"] != "duplicate_id"]
        found_boxes = [line["reason"] for line in own if line["where"] and line["detail"].count("is taken by") == 0]
        assert (name, found_images, sorted(found_boxes)) == (name, image_reasons, sorted(box_reasons))
        assert (name in records) == (not image_reasons)
        assert name not in records or len(records[name].objects.labels) == kept
    # The list file contains one image twice: the second entry is a duplicate, so its box is rejected too.
    duplicates = [line for line in lines if "is taken by" in line["detail"]]
    assert [(line["reason"], line["image"]) for line in duplicates] == [
        ("duplicate_id", "plain.jpg"), ("image_rejected", "plain.jpg"),
    ]  # fmt: skip


def test_counts_add_up(hostile):
    _, manifest, lines = hostile
    split = manifest.splits["train"]
    assert split.images_read == len(CASES) + 1
    assert split.images_read == split.images + sum(split.rejected_images.values())
    assert split.boxes_read == split.boxes + sum(split.rejected_boxes.values())
    assert Counter(line["reason"] for line in lines if not line["where"]) == split.rejected_images
    assert Counter(line["reason"] for line in lines if line["where"]) == split.rejected_boxes
    assert split.clipped_boxes == 2
    assert all(line["source"] and line["detail"] for line in lines)


def test_boxes_of_a_rotated_image_refer_to_the_displayed_image(hostile, records_of):
    output, manifest, _ = hostile
    for name in ("rotated", "rotated_claim"):
        record = records_of(output, manifest)[name]
        assert (record.original_height, record.original_width) == (48, 64)
        np.testing.assert_allclose(record.objects.boxes[0], [5 / 48, 10 / 64, 30 / 48, 40 / 64], rtol=1e-6)
        displayed = np.asarray(decoded_jpeg().resize((64, 64), Image.Resampling.BILINEAR), float)
        assert np.abs(np.asarray(Image.open(io.BytesIO(record.encoded)), float) - displayed).mean() < 4


def test_rejections_are_in_the_order_of_the_images(hostile):
    _, _, lines = hostile
    order = list(CASES)
    positions = [order.index(line["source"].rpartition("/")[2].removesuffix(".xml")) for line in lines]
    assert positions[:-2] == sorted(positions[:-2])


def test_leakage_is_found_by_file_content_not_by_name(tmp_path, prepare):
    source = make_voc(tmp_path / "voc", {"a": GOOD, "b": GOOD, "c": GOOD}, {"train": ["a", "b"], "val": ["c"]})
    (source / "JPEGImages/c.jpg").write_bytes((source / "JPEGImages/b.jpg").read_bytes())
    prepare("voc", source, tmp_path / "out", "train", config=SMALL)
    manifest = prepare("voc", source, tmp_path / "out", "val", config=SMALL)
    (leak,) = manifest.leakage
    assert (leak.splits, leak.images, leak.examples) == (("train", "val"), 1, ("b.jpg",))


def mutate(data: bytes, rng) -> bytes:
    """Flips some bits or truncates the data."""
    if not data or rng.random() < 0.3:
        return data[: rng.integers(len(data) + 1)]
    broken = bytearray(data)
    for position in rng.integers(len(data), size=rng.integers(1, 9)):
        broken[position] ^= 1 << rng.integers(8)
    return bytes(broken)


def assert_complete(output, manifest, records_of):
    split = manifest.splits["train"]
    lines = [json.loads(line) for line in (output / "train/rejected.jsonl").read_text().splitlines()]
    assert split.images_read == split.images + sum(1 for line in lines if not line["where"])
    assert split.boxes_read == split.boxes + sum(1 for line in lines if line["where"])
    records = records_of(output, manifest)
    assert len(records) == split.images
    return records, lines


def assert_same_beginning(good, mixed):
    """Asserts that each shard of the mixed input begins with the bytes of the same shard of the good input."""
    for path in sorted(good.glob("train/*.tfrecord")):
        data = path.read_bytes()
        assert data
        assert (mixed / "train" / path.name).read_bytes()[: len(data)] == data


FIXED = {"rules": ClassRules(fixed=("a", "b", "c")), "shards": 4, "config": SMALL}


@pytest.mark.slow
def test_mutated_images_and_xml(tmp_path, prepare, records_of):
    rng = np.random.default_rng(0)
    images = labeled_images(80)
    bad = {f"z{number:05d}": boxes for number, boxes in enumerate(labeled_images(1200, 1).values())}
    good = make_voc(tmp_path / "good", images)
    mixed = make_voc(tmp_path / "mixed", {**images, **bad})
    for number, name in enumerate(bad):
        path = mixed / (f"JPEGImages/{name}.jpg" if number < 700 else f"Annotations/{name}.xml")
        path.write_bytes(mutate(path.read_bytes(), rng))
    prepare("voc", good, tmp_path / "good_out", **FIXED)
    manifest = prepare("voc", mixed, tmp_path / "mixed_out", **FIXED)
    records, lines = assert_complete(tmp_path / "mixed_out", manifest, records_of)
    rejected = {line["source"].rpartition("/")[2].removesuffix(".xml") for line in lines if not line["where"]}
    assert manifest.splits["train"].images_read == 1280
    assert rejected | set(records) == {*images, *bad}
    assert not rejected & set(records)
    assert len(rejected) > 300
    assert_same_beginning(tmp_path / "good_out", tmp_path / "mixed_out")


@pytest.mark.slow
def test_mutated_labels(tmp_path, prepare, records_of):
    rng = np.random.default_rng(1)
    line = "{} 0.5 0.5 0.{} 0.25"
    images = {f"a{n:04d}": [line.format(k % 3, 1 + k) for k in range(n % 4)] for n in range(40)}
    bad = {f"z{n:04d}": [line.format(k % 3, 1 + k) for k in range(1 + n % 4)] for n in range(500)}
    good = make_yolo(tmp_path / "good", images, ["a", "b", "c"])
    mixed = make_yolo(tmp_path / "mixed", {**images, **bad}, ["a", "b", "c"])
    for name in bad:
        path = mixed / f"labels/train/{name}.txt"
        path.write_bytes(mutate(path.read_bytes(), rng))
    prepare("yolo", good, tmp_path / "good_out", **FIXED)
    manifest = prepare("yolo", mixed, tmp_path / "mixed_out", **FIXED)
    records, lines = assert_complete(tmp_path / "mixed_out", manifest, records_of)
    assert manifest.splits["train"].images_read == 540
    assert set(records) | {line["image"].removesuffix(".jpg") for line in lines if not line["where"]} == {*images, *bad}
    assert sum(manifest.splits["train"].rejected_boxes.values()) > 100
    assert_same_beginning(tmp_path / "good_out", tmp_path / "mixed_out")


@pytest.mark.slow
def test_mutated_json(tmp_path, prepare, records_of):
    rng = np.random.default_rng(2)
    boxes = {f"{n}.jpg": [(1 + k, 5 + k, 5, 30, 30) for k in range(n)] for n in range(4)}
    good = make_coco(tmp_path / "raw", boxes, {1: "a", 2: "b", 3: "c"})
    original = (good / "annotations/instances_train.json").read_bytes()
    for folder, count in (("good", 0), ("mixed", 300)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.json").write_bytes(original)
        for number in range(count):
            # Each file has its own ids, so that its images are not duplicates of those of another file.
            text = original.replace(b'"id": ', b'"id": %d' % (100 + number)).replace(
                b'_id": ', b'_id": %d' % (100 + number)
            )
            (tmp_path / folder / f"1_{number:03d}.json").write_bytes(mutate(text, rng))
    rest = {**FIXED, "image_dir": str(good / "train")}
    prepare("coco", tmp_path / "good/*.json", tmp_path / "good_out", **rest)
    manifest = prepare("coco", tmp_path / "mixed/*.json", tmp_path / "mixed_out", **rest)
    _, lines = assert_complete(tmp_path / "mixed_out", manifest, records_of)
    reasons = Counter(line["reason"] for line in lines)
    assert reasons["broken_annotation"] > 100
    # More than half of the broken files cause a rejection.
    rejected = {line["source"] for line in lines}
    assert manifest.splits["train"].images > 4
    assert len(rejected) > 150
    assert_same_beginning(tmp_path / "good_out", tmp_path / "mixed_out")


def test_datasets_with_the_same_image_ids_keep_their_own_boxes(tmp_path, prepare, records_of):
    for name, box in (("one", (1, 5, 5, 20, 20)), ("two", (1, 30, 30, 40, 40))):
        make_coco(tmp_path / name, {f"{name}.jpg": [box]}, {1: "cat"})
    manifest = prepare("coco", [tmp_path / "one", tmp_path / "two"], tmp_path / "out", config=SMALL)
    ((_, record),) = records_of(tmp_path / "out", manifest).items()
    assert record.filename == "one.jpg"
    np.testing.assert_allclose(record.objects.boxes, [[5 / 48, 5 / 64, 20 / 48, 20 / 64]], rtol=1e-6)
    split = manifest.splits["train"]
    assert (split.rejected_images, split.rejected_boxes) == ({"duplicate_id": 1}, {"image_rejected": 1})


def test_an_image_with_more_objects_than_anchors_is_rejected(tmp_path, prepare):
    images = {"crowded": [("cat", 5, 5, 30, 40)] * 3000, "plain": GOOD}
    manifest = prepare("voc", make_voc(tmp_path / "voc", images), tmp_path / "out", config=SMALL)
    split = manifest.splits["train"]
    assert (split.images, split.rejected_images) == (1, {"too_many_boxes": 1})
    assert (split.boxes, split.rejected_boxes) == (1, {"image_rejected": 3000})


def test_names_that_utf8_cannot_encode_are_accepted(tmp_path, prepare, records_of):
    # A file name in another encoding, as in some archives, and JSON escapes of lone surrogates.
    yolo = make_yolo(tmp_path / "yolo", {"a": ["0 .5 .5 .5 .5"]}, ["x"])
    for folder, suffix in (("images", ".jpg"), ("labels", ".txt")):
        path = yolo / folder / "train" / f"a{suffix}"
        path.rename(path.with_name(os.fsdecode(b"\xe9") + suffix))
    manifest = prepare("yolo", yolo, tmp_path / "yolo_out", config=SMALL)
    assert [len(record.objects.labels) for record in records_of(tmp_path / "yolo_out", manifest).values()] == [1]
    coco = make_coco(tmp_path / "coco", {"a.jpg": [(1, 5, 5, 20, 20)], "b.jpg": []}, {1: "\ud800"})
    path = coco / "annotations/instances_train.json"
    path.write_text(path.read_text().replace("b.jpg", "\\udc00.jpg"))
    manifest = prepare("coco", coco, tmp_path / "coco_out", config=SMALL)
    assert manifest.classes == ("\\ud800",)
    assert_complete(tmp_path / "coco_out", manifest, records_of)
    # The JSON file lists b.jpg under another name.
    assert manifest.splits["train"].rejected_images == {"missing_image": 1, "not_annotated": 1}


def test_a_json_file_broken_before_its_categories_is_reported_with_the_position(tmp_path, prepare):
    make_coco(tmp_path / "raw", {"a.jpg": []}, {1: "a"})
    (tmp_path / "raw/annotations/instances_train.json").write_text('{"images": [{"id": 1, ')
    with pytest.raises(DataError, match=r"instances_train.json: not valid JSON at character"):
        prepare("coco", tmp_path / "raw", tmp_path / "out", config=SMALL)


def test_a_json_file_broken_at_its_beginning_is_reported(tmp_path, prepare):
    make_coco(tmp_path / "raw", {"a.jpg": []}, {1: "a"})
    (tmp_path / "raw/annotations/instances_train.json").write_text("{")
    with pytest.raises(DataError, match="all 1 images were rejected"):
        prepare("coco", tmp_path / "raw", tmp_path / "out", config=SMALL, rules=ClassRules(fixed=("a",)))
    (line,) = (tmp_path / "out/train/rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "broken_annotation"


def test_the_test_images_have_the_intended_properties():
    # A decompression bomb is a small file.
    assert len(decompression_bomb()) < 200_000
    assert zlib.crc32(rotated()) != zlib.crc32(jpeg())
