"""Tests prepare on real datasets: counts, properties of the output, and decoding with the Model Garden."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.boxes import decode_boxes
from ssd_dist.core.config import Config
from ssd_dist.core.manifest import Manifest, fingerprint

# Counts from the READMEs of the datasets; the boxes per split were counted with grep in the XML and text files.
BCCD_IMAGES = {"train": 205, "val": 87, "test": 72}
BCCD_CLASSES = ("Platelets", "RBC", "WBC")
BCCD_BOXES = {"RBC": 4155, "WBC": 372, "Platelets": 361}
COCO128_BOXES = 1827


@pytest.fixture(scope="module")
def bccd(tmp_path_factory, shared_data, prepare):
    output = tmp_path_factory.mktemp("bccd")
    for split in BCCD_IMAGES:
        manifest = prepare("voc", shared_data / "bccd/BCCD", output, split=split)
    return output, manifest


@pytest.fixture(scope="module")
def coco128(tmp_path_factory, shared_data, prepare):
    output = tmp_path_factory.mktemp("coco128")
    for split in ("train", "val"):
        manifest = prepare("yolo", shared_data / "coco128", output, split=split, source_split=f"{split}2017")
    return output, manifest


def test_bccd_counts(bccd):
    _, manifest = bccd
    assert manifest.classes == BCCD_CLASSES
    assert {name: split.images for name, split in manifest.splits.items()} == BCCD_IMAGES
    assert sum(split.boxes_read for split in manifest.splits.values()) == sum(BCCD_BOXES.values())
    rejected = [split.rejected_boxes for split in manifest.splits.values()]
    assert sorted(rejected, key=str) == [{"zero_area": 1}, {"zero_area": 1}, {}]
    in_shards = {
        name: sum(s.views[0].objects_per_class[name] for s in manifest.splits.values()) for name in BCCD_CLASSES
    }
    assert sum(in_shards.values()) == sum(BCCD_BOXES.values()) - 2
    assert all(in_shards[name] in (count, count - 1, count - 2) for name, count in BCCD_BOXES.items())
    assert manifest.leakage == ()


def test_coco128_counts(coco128):
    output, manifest = coco128
    assert len(manifest.classes) == 80
    assert (manifest.classes[0], manifest.classes[79]) == ("person", "toothbrush")
    assert [manifest.splits[name].images for name in ("train", "val")] == [128, 128]
    assert sum(split.boxes for split in manifest.splits.values()) == COCO128_BOXES
    # Two label files of split train have no image; their boxes are counted as rejected.
    assert manifest.splits["train"].rejected_images == {"missing_image": 2}
    assert manifest.splits["val"].rejected_images == {}
    assert_counts_add_up(output, manifest)


def test_bccd_counts_add_up(bccd):
    assert_counts_add_up(*bccd)


def assert_counts_add_up(output, manifest):
    for name, split in manifest.splits.items():
        lines = [json.loads(line) for line in (output / name / "rejected.jsonl").read_text().splitlines()]
        assert all({"source", "reason", "detail"} <= line.keys() for line in lines)
        assert split.images_read == split.images + sum(split.rejected_images.values())
        assert split.boxes_read == split.boxes + sum(split.rejected_boxes.values())
        assert len(lines) == sum(split.rejected_images.values()) + sum(split.rejected_boxes.values())
        assert split.views[0].examples == split.images
        assert sum(split.views[0].objects_per_class.values()) == split.boxes


def test_shards_match_the_manifest(bccd):
    output, manifest = bccd
    for name, split in manifest.splits.items():
        shards = split.views[0].shards
        count = len(shards)
        assert [s.file for s in shards] == [f"{name}/view00-{i:05d}-of-{count:05d}.tfrecord" for i in range(count)]
        assert max(s.examples for s in shards) - min(s.examples for s in shards) <= 1
        for shard in shards:
            data = (output / shard.file).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        assert not [path for path in (output / name).rglob("*") if ".tmp-" in path.name]


def test_the_manifest_matches_the_config_of_its_job(bccd):
    output, manifest = bccd
    config = Config()
    assert Manifest.from_json((output / "dataset.json").read_text(), "dataset.json") == manifest
    assert manifest.fingerprint == fingerprint(config.anchors, config.matching, config.model.input_size)
    manifest.check_fits(config, "dataset.json")


def test_records_contain_the_image_and_its_boxes(bccd, shared_data, records_of):
    output, manifest = bccd
    records = records_of(output, manifest, "train")
    listed = (shared_data / "bccd/BCCD/ImageSets/Main/train.txt").read_text().split()
    assert sorted(records) == sorted(listed)
    anchors = generate_anchors(Config().anchors, 300)
    for source_id in listed[::20]:
        record = records[source_id]
        image = Image.open(io.BytesIO(record.encoded))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (300, 300))
        assert (record.height, record.width) == (300, 300)
        assert (record.original_height, record.original_width) == (480, 640)
        with Image.open(shared_data / "bccd/BCCD/JPEGImages" / record.filename) as photo:
            source = photo.resize((300, 300), Image.BILINEAR)
        difference = np.abs(np.asarray(image, float) - np.asarray(source, float)).mean()
        assert difference < 3
        targets = record.targets
        decoded = decode_boxes(targets.offsets, anchors[targets.anchors], 0.1, 0.2)
        nearest = np.abs(decoded[:, None] - record.objects.boxes[None]).max(-1).min(1)
        assert nearest.max() < 1e-5
        pixels = record.objects.boxes * [480, 640, 480, 640]
        areas = (pixels[:, 2] - pixels[:, 0]) * (pixels[:, 3] - pixels[:, 1])
        np.testing.assert_allclose(record.objects.area, areas, rtol=1e-4)


def test_one_record_matches_its_annotation_file(bccd, records_of):
    # Read by a person from BloodImage_00001.xml: its only WBC has xmin 68, ymin 315, xmax 286, ymax 480.
    output, manifest = bccd
    objects = records_of(output, manifest, "train")["BloodImage_00001"].objects
    index = objects.names.index("WBC")
    assert objects.labels[index] == 3
    np.testing.assert_allclose(objects.boxes[index], [315 / 480, 68 / 640, 480 / 480, 286 / 640], rtol=1e-6)


def test_grayscale_and_empty_images_are_kept(coco128, shared_data, records_of):
    output, manifest = coco128
    empty = 0
    for split in ("train", "val"):
        for record in records_of(output, manifest, split).values():
            assert Image.open(io.BytesIO(record.encoded)).mode == "RGB"
            empty += len(record.objects.labels) == 0
            if not len(record.objects.labels):
                assert len(record.targets.anchors) == len(record.targets.ignored) == 0
    without_boxes = 0
    for split in ("train2017", "val2017"):
        for image in (shared_data / "coco128/images" / split).iterdir():
            label = shared_data / "coco128/object_detection/labels" / split / f"{image.stem}.txt"
            without_boxes += not label.exists() or not label.read_text().strip()
    assert empty == without_boxes > 0


def test_image_hashes_are_computed_from_the_source_files(bccd, shared_data):
    output, manifest = bccd
    stored = np.load(output / manifest.splits["test"].image_hashes)
    names = (shared_data / "bccd/BCCD/ImageSets/Main/test.txt").read_text().split()
    images = [(shared_data / "bccd/BCCD/JPEGImages" / f"{name}.jpg").read_bytes() for name in names]
    expected = sorted(int.from_bytes(hashlib.sha256(data).digest()[:8], "big") for data in images)
    assert stored.dtype == np.uint64
    assert stored.tolist() == expected


def test_the_model_garden_decoder_reads_the_shards(coco128, records_of):
    decoders = pytest.importorskip("official.vision.dataloaders.tf_example_decoder")
    import tensorflow as tf

    output, manifest = coco128
    records = records_of(output, manifest, "val")
    decoder = decoders.TfExampleDecoder(include_mask=False)
    read = 0
    for shard in manifest.splits["val"].views[0].shards[:3]:
        for serialized in tf.data.TFRecordDataset(str(Path(output) / shard.file)):
            decoded = decoder.decode(serialized)
            record = records[decoded["source_id"].numpy().decode()]
            assert decoded["image"].shape == (300, 300, 3)
            assert (int(decoded["height"]), int(decoded["width"])) == (300, 300)
            np.testing.assert_array_equal(decoded["groundtruth_boxes"].numpy(), record.objects.boxes)
            np.testing.assert_array_equal(decoded["groundtruth_classes"].numpy(), record.objects.labels)
            np.testing.assert_array_equal(decoded["groundtruth_is_crowd"].numpy(), record.objects.is_crowd)
            np.testing.assert_array_equal(decoded["groundtruth_area"].numpy(), record.objects.area)
            read += 1
    assert read == sum(shard.examples for shard in manifest.splits["val"].views[0].shards[:3])


def test_leakage_is_found(bccd, shared_data, prepare, tmp_path):
    prepare("voc", shared_data / "bccd/BCCD", tmp_path, split="val")
    manifest = prepare("voc", shared_data / "bccd/BCCD", tmp_path, split="train", source_split="trainval")
    (leak,) = manifest.leakage
    assert leak.splits == ("train", "val")
    assert leak.images == BCCD_IMAGES["val"]
    assert all(name.startswith("BloodImage_") for name in leak.examples)
    # Preparing the split again from data that does not overlap removes the entry.
    shutil.rmtree(tmp_path / "train")
    assert prepare("voc", shared_data / "bccd/BCCD", tmp_path, split="train").leakage == ()
