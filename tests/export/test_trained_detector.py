"""Tests `ssd_dist.Detector` on a run with an untrained model, and on a fake export."""

import dataclasses
import doctest
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image
from support.random_detector import SETTINGS, randomize_weights
from support.untrained_run import write_untrained_run

import ssd_dist
from ssd_dist.core.errors import CheckpointError, UsageError
from ssd_dist.core.images import ImageError
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.export import trained_detector
from ssd_dist.export.export_benchmark import find_exports
from ssd_dist.export.export_folder import find_export_folder
from ssd_dist.export.export_options import ExportOptions
from ssd_dist.export.exported_detector import open_exported_detector
from ssd_dist.export.exporter import export_run
from ssd_dist.export.parity import BOX_TOLERANCE, SCORE_TOLERANCE, Parity
from ssd_dist.inference.loaded_detector import open_run
from ssd_dist.inference.trained_model import evaluate_split
from ssd_dist.model.postprocessing import DetectionBatch

pytestmark = pytest.mark.usefixtures("small_backbone")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_untrained_run(tmp_path_factory.mktemp("detector"), SETTINGS, randomize_weights)


@pytest.fixture(scope="module")
def detector(run):
    return ssd_dist.Detector.load(run)


@pytest.fixture
def images():
    """Returns more images than one batch has, of different sizes."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40 + 5 * index, 70, 3), dtype=np.uint8) for index in range(18)]


def test_a_file_gives_the_detections_of_its_pixels_and_an_image_alone_those_of_a_batch(detector, images, tmp_path):
    Image.fromarray(images[3]).save(tmp_path / "3.png")
    together = detector.predict(images, score_threshold=0.05)
    (alone,) = detector.predict([str(tmp_path / "3.png")], score_threshold=0.05)
    assert len(together) == len(images)
    assert len(alone.names) == len(alone.scores) == len(alone.boxes) > 0
    assert alone.names == together[3].names
    np.testing.assert_allclose(alone.boxes, together[3].boxes, atol=1e-4)
    assert set(alone.names) <= set(detector.classes)
    assert detector.predict([]) == []


def test_images_of_pil_are_detected_upright(detector, images, tmp_path):
    image = Image.fromarray(images[0])
    exif = Image.Exif()
    # Orientation 6: rotated by 90 degrees.
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        found = detector.predict([image, turned.copy(), tmp_path / "turned.png"], score_threshold=0.05)
    for other in found[1:]:
        assert other.names == found[0].names
        np.testing.assert_array_equal(other.boxes, found[0].boxes)


def test_a_16_bit_image_of_pil_is_detected_like_its_file(detector, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 60), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "gray.png")
    with Image.open(tmp_path / "gray.png") as image:
        assert image.mode.startswith("I")
        (opened,), (file,) = (
            detector.predict([item], score_threshold=0.05) for item in (image.copy(), tmp_path / "gray.png")
        )
    assert len(file.names) > 0
    assert opened.names == file.names
    np.testing.assert_array_equal(opened.scores, file.scores)
    with pytest.raises(ImageError, match="floating-point samples"):
        detector.predict([Image.new("F", (8, 8))])


def test_an_image_that_cannot_be_read_is_named(detector, images, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    with pytest.raises(ImageError, match=r"bad\.jpg: .*not an image"):
        detector.predict([images[0], tmp_path / "bad.jpg"])
    with pytest.raises(OSError, match=r"gone\.jpg: No such file"):
        detector.predict([tmp_path / "gone.jpg"])
    with pytest.raises(UsageError, match=r"this is one image; give a list: \[image\]"):
        detector.predict(Image.fromarray(images[0]))
    with pytest.raises(UsageError, match="None is not an image"):
        detector.predict([None])


def test_the_threshold_omits_the_lower_scores(detector, images):
    (every,) = detector.predict(images[:1], score_threshold=0)
    threshold = float(np.median(every.scores))
    (above,) = detector.predict(images[:1], score_threshold=threshold)
    assert above.scores.tolist() == [score for score in every.scores.tolist() if score >= threshold]
    assert 0 < len(above.scores) < len(every.scores)


def test_objects_are_detected_in_tiles(detector):
    def detect(pixels):
        """Finds the brightest pixel of each image as one object."""
        boxes, size = [], pixels.shape[1]
        for image in pixels.numpy().mean(axis=3):
            row, column = np.unravel_index(image.argmax(), image.shape)
            boxes.append([[row / size, column / size, (row + 1) / size, (column + 1) / size]])
        labels, scores = np.ones((len(boxes), 1), np.int32), np.full((len(boxes), 1), 0.9, np.float32)
        return DetectionBatch(*map(tf.constant, (np.float32(boxes), labels, scores)))

    size = detector.loaded.size
    opened = dataclasses.replace(detector, loaded=dataclasses.replace(detector.loaded, detect=detect))
    pixels = np.zeros((4 * size, 4 * size, 3), np.uint8)
    # One of the four tiles contains the object.
    pixels[3 * size : 3 * size + 8, 3 * size : 3 * size + 8] = 255
    (whole,), (tiled,) = (opened.predict([pixels], tiles=tiles) for tiles in (1, 2))
    assert len(whole.boxes) == 1
    # A pixel of a tile is smaller than one of the whole image, so the two boxes overlap by less than half.
    sides = [box[2] - box[0] for box in tiled.boxes]
    assert min(sides) < 0.6 * (whole.boxes[0, 2] - whole.boxes[0, 0])
    for tiles in (0, "3"):
        with pytest.raises(UsageError, match=f"tiles={tiles} is not valid"):
            opened.predict([pixels], tiles=tiles)


def test_the_settings_of_nms_are_loaded(run, detector, tmp_path):
    overrides = ["eval.nms_iou=0.3", "eval.max_detections=7"]
    opened = open_run(str(run), "best", overrides)
    assert (opened.nms.nms_iou, opened.nms.max_detections) == (0.3, 7)
    export_run(str(run), "best", ExportOptions("tflite", "raw"), str(tmp_path), overrides)
    exported = open_exported_detector(tmp_path)
    assert (exported.nms.nms_iou, exported.nms.max_detections) == (0.3, 7)


@pytest.mark.parametrize("holds", [True, False])
def test_the_summary_states_whether_the_export_may_be_deployed(run, tmp_path, monkeypatch, holds):
    monkeypatch.setattr(Parity, "holds", property(lambda _: holds))
    with nullcontext() if holds else pytest.raises(CheckpointError, match="do not deploy it"):
        export_run(str(run), "best", ExportOptions("tflite", "raw"), str(tmp_path), ())
    assert json.loads((tmp_path / "export.json").read_text())["accepted"] == holds


def test_the_metrics_are_those_of_ssd_evaluate(detector, run):
    _, manifest, ground_truths, detections = evaluate_split(str(run), "best", "val", ())
    expected = evaluate_detections(ground_truths, detections, manifest.classes).as_dict()
    metrics = detector.evaluate(run.parent / "data")
    assert {name: metrics[name] for name in expected} == expected
    assert set(metrics["analysis"]["operating_points"]) == set(manifest.classes)
    assert set(metrics) == {*expected, "analysis", "constant_box"}


def test_a_run_of_several_replicas_is_evaluated_on_one(detector, run, tmp_path):
    """TensorFlow has started when a detector is loaded, and can then not be split into replicas any more."""
    copy = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["cluster"]["logical_cpus"] = 2
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = ssd_dist.Detector.load(copy).evaluate(run.parent / "data")
    assert metrics["coco/AP"] == detector.evaluate(run.parent / "data")["coco/AP"]


def test_each_class_can_have_a_threshold(detector, images, tmp_path):
    (every,) = detector.predict(images[:1], score_threshold=0)
    limits = {name: float(np.median(every.scores)) + 0.01 * number for number, name in enumerate(detector.classes)}
    expected = [score for name, score in zip(every.names, every.scores.tolist(), strict=True) if score >= limits[name]]
    path = tmp_path / "metrics.json"
    points = {name: {"threshold": limit} for name, limit in limits.items()}
    path.write_text(json.dumps({"analysis": {"operating_points": points}}))
    for threshold in (path, str(path), ",".join(f"{name}:{limit!r}" for name, limit in limits.items())):
        (found,) = detector.predict(images[:1], score_threshold=threshold)
        assert found.scores.tolist() == expected
    assert 0 < len(expected) < len(every.scores)


@pytest.mark.parametrize(
    ("kind", "file"),
    [("tflite", "model.tflite"), ("onnx", "model.onnx"), ("openvino", "model.xml"), ("saved_model", "saved_model.pb")],
)
def test_a_damaged_export_is_reported(tmp_path, kind, file):
    summary = {
        "format": kind, "classes": ["cat"], "input": "images uint8 [1, 64, 64, 3]",
        "output": {"score_threshold": 0.01, "nms_iou": 0.5, "max_detections": 10},
    }  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(summary))
    (tmp_path / file).write_bytes(b"\x08\x07damaged")
    with pytest.raises(CheckpointError, match="not an export, or damaged"):
        ssd_dist.Detector.load(tmp_path)


@pytest.mark.parametrize("place", [".", "run/export", "run/export/tflite", "run/export/tflite/model.tflite"])
def test_an_export_is_found_by_its_folder_its_file_or_a_folder_around_it(tmp_path, place):
    folder = tmp_path / ("." if place == "." else "run/export/tflite")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "export.json").write_text("{}")
    (folder / "model.tflite").write_text("")
    found = find_export_folder(tmp_path / place)
    assert found is not None
    assert found.resolve() == folder.resolve()


def test_a_file_that_the_summary_does_not_describe_is_refused(tmp_path):
    for name in ("model.tflite", "model.onnx"):
        (tmp_path / name).write_text("")
    (tmp_path / "export.json").write_text(json.dumps({"format": "onnx", "classes": ["cat"]}))
    with pytest.raises(CheckpointError, match=r"describes model\.onnx, which was exported later; export into separate"):
        ssd_dist.Detector.load(tmp_path / "model.tflite")
    with pytest.raises(CheckpointError, match="was exported later"):
        find_exports([str(tmp_path / "model.tflite")])
    assert find_export_folder(tmp_path / "model.onnx") == find_export_folder(tmp_path / "export.json") == tmp_path


def test_one_of_several_exports_must_be_given(tmp_path):
    assert find_export_folder(tmp_path) is None
    for kind in ("onnx", "tflite"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "export.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"contains several exports; give one of {tmp_path}/onnx, {tmp_path}/tfl"):
        find_export_folder(tmp_path)
    (tmp_path / "image.jpg").write_text("")
    assert find_export_folder(tmp_path / "image.jpg") is None


def test_a_folder_with_an_export_summary_is_opened_as_an_export(detector, run, tmp_path, monkeypatch):
    (tmp_path / "export.json").write_text(json.dumps({}))
    monkeypatch.setattr(trained_detector, "open_exported_detector", lambda folder: detector.loaded)
    monkeypatch.setattr(
        trained_detector,
        "evaluate_export",
        lambda folder, _, split, data: evaluate_split(str(run), "best", split, data),
    )
    exported = ssd_dist.Detector.load(tmp_path)
    assert exported.classes == detector.classes
    assert exported.evaluate(run.parent / "data")["coco/AP"] == detector.evaluate(run.parent / "data")["coco/AP"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_file_that_ends_in_the_detection_op_is_opened_as_well(detector, run, images, tmp_path):
    export_run(str(run), "best", ExportOptions("tflite", "postprocess_op"), str(tmp_path), ())
    exported = ssd_dist.Detector.load(tmp_path)
    expected, found = (opened.predict(images[:3], score_threshold=0) for opened in (detector, exported))
    for one, other in zip(expected, found, strict=True):
        # The op applies NMS across classes, which always keeps the best detection.
        assert one.names[0] == other.names[0]
        assert one.scores[0] == pytest.approx(other.scores[0], abs=SCORE_TOLERANCE)
        np.testing.assert_allclose(one.boxes[0], other.boxes[0], atol=BOX_TOLERANCE)
    assert exported.evaluate(run.parent / "data").keys() == detector.evaluate(run.parent / "data").keys()


def test_the_examples_of_the_documentation_run(run):
    page = Path(__file__).parents[2] / "docs/python.md"
    names = {"run": run, "data": run.parent / "data"}
    results = doctest.testfile(str(page), module_relative=False, globs=names)
    assert results.attempted >= 10
    assert not results.failed


def test_mistakes_are_reported(detector, tmp_path):
    with pytest.raises(CheckpointError, match="not a run"):
        ssd_dist.Detector.load(tmp_path)
    for pixels in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(UsageError, match=r"give RGB pixels as uint8 \[height, width, 3\]"):
            detector.predict([pixels])
    with pytest.raises(UsageError, match=r"cat.jpg is one image; give a list: \['cat.jpg'\]"):
        detector.predict("cat.jpg")
