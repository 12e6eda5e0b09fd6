"""Exports detect what their checkpoint detects.

Folding is tested on a complete MobileNetV2. The formats are tested on a few blocks of the same layers, because
conversion takes most of the time; each export is written once.
"""

import dataclasses
import functools
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image
from support import synthetic
from support.random_detector import SETTINGS, fit_statistics, randomize_weights, submodules_of_kind
from support.small_backbone import build_few_blocks
from support.synthetic import CLASSES, write_dataset
from tf_keras import layers

from ssd_dist.core.config import Config
from ssd_dist.core.errors import CheckpointError
from ssd_dist.data.shard_files import read_split
from ssd_dist.evaluation.detections import Detections
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.evaluation.result_files import CocoIds
from ssd_dist.export import exporter as exporting
from ssd_dist.export.export_options import ExportOptions, Quantization, choose_outputs
from ssd_dist.export.exported_detector import evaluate_export, open_exported_detector
from ssd_dist.export.exporter import export_run
from ssd_dist.export.folding import fold_batch_norm
from ssd_dist.export.parity import compare_detections
from ssd_dist.inference.loaded_detector import open_run
from ssd_dist.inference.prediction import PredictionOutputs, predict_images
from ssd_dist.model import detector
from ssd_dist.model.detector import build_detector
from ssd_dist.model.postprocessing import separate_classes
from ssd_dist.runs.checkpoints import BestModel
from ssd_dist.runs.run_folder import open_run_folder, read_run_folder
from ssd_dist.training.source_weights import read_source_weights


def use_photographs(monkeypatch):
    """Puts photographs of COCO128, where available, into the validation records."""
    shared = Path(os.environ.get("SSD_DIST_SHARED", Path(__file__).parents[3] / "shared"))
    photos = sorted((shared / "data/coco128/images/val2017").glob("*.jpg"))
    draw = synthetic.draw_record

    def draw_record(seed, name, config, objects=None):
        record = draw(seed, name, config, objects)
        if not photos or not name.startswith("val"):
            return record
        size, jpeg = config.model.input_size, io.BytesIO()
        with Image.open(photos[int(name[3:])]) as photo:
            photo.convert("RGB").resize((size, size)).save(jpeg, "JPEG", quality=95)
        return dataclasses.replace(record, encoded=jpeg.getvalue())

    monkeypatch.setattr(synthetic, "draw_record", draw_record)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Creates a run with an untrained model, and its data with 64 validation images; returns the folder of the run."""
    folder = tmp_path_factory.mktemp("export")
    config = Config.model_validate(SETTINGS | {"data": {"dir": str(folder / "data")}})
    with pytest.MonkeyPatch.context() as patch:
        use_photographs(patch)
        manifest = write_dataset(folder / "data", config, {"train": 12, "val": 64}, shards=2)
        patch.setattr(detector, "build_backbone", build_few_blocks)
        # Seeded: among thousands of random boxes some overlap by nearly nms_iou, where rounding decides which one NMS
        # keeps.
        tf_keras.utils.set_random_seed(1)
        model = build_detector(config.model, config.backbone, config.anchors, len(manifest.classes))
        randomize_weights(model)
        records = read_split(config.data, manifest.splits["val"])
        fit_statistics(model, np.stack([Image.open(io.BytesIO(record.encoded)) for record in records]))
        open_run_folder(str(folder / "run"), config, manifest)
        BestModel(model, str(folder / "run"), "coco/AP", 1).save_if_best(5, 0.5)
        yield folder / "run"


@pytest.fixture(scope="module")
def export(run, tmp_path_factory):
    """Returns a function that exports the run, once per set of options, and returns the summary and the folder.

    The checkpoint is loaded and run only once.
    """
    exports, reference = {}, []
    detect = exporting.detect_with_checkpoint

    def detect_once(*args):
        if not reference:
            reference.append(detect(*args))
        return reference[0]

    def make(kind, quantize="none", outputs=None):
        options = ExportOptions(kind, choose_outputs(kind, quantize, outputs), Quantization(quantize))
        if options not in exports:
            folder = tmp_path_factory.mktemp("exported")
            exports[options] = export_run(str(run), "best", options, str(folder), []), folder
        return exports[options]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "detect_with_checkpoint", detect_once)
        patch.setattr(exporting, "load_trained_model", functools.cache(exporting.load_trained_model))
        yield make


def skip_without_packages(kind):
    """Skips the test if the packages of a format are not installed."""
    for package in {"onnx": ["tf2onnx"], "openvino": ["openvino"]}.get(kind, ()):
        pytest.importorskip(package)


@pytest.mark.parametrize("head", ["ssd", "ssdlite"])
def test_folding_removes_batch_norm_and_keeps_the_outputs(head, monkeypatch):
    if head == "ssd":
        # The whole backbone is folded once, with the other head.
        monkeypatch.setattr(detector, "build_backbone", build_few_blocks)
    config = Config.model_validate(SETTINGS | {"model": SETTINGS["model"] | {"head": head}})
    model = build_detector(config.model, config.backbone, config.anchors, 3)
    randomize_weights(model)
    folded = fold_batch_norm(model)
    assert submodules_of_kind(model, layers.BatchNormalization)
    assert not submodules_of_kind(folded, layers.BatchNormalization)
    image = tf.random.stateless_uniform([2, 64, 64, 3], [1, 2], -1, 1)
    for name, expected in model(image, training=False).items():
        # Folding rounds each weight once: about 1e-7 per layer, through sixty layers.
        np.testing.assert_allclose(folded(image)[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        *((kind, outputs) for kind in ("saved_model", "tflite", "onnx") for outputs in ("detections", "raw")),
        ("openvino", "detection_output"),
        ("openvino", "raw"),
    ],
)
def test_an_export_detects_what_the_checkpoint_detects(export, kind, outputs):
    skip_without_packages(kind)
    summary, folder = export(kind, "none", outputs)
    assert summary["parity"]["images"] == 64
    assert summary["parity"]["detections"] > 200
    assert summary["parity"]["missing"] == 0
    # The scores of an untrained model are noise: rounding changes the order of detections with low scores.
    assert summary["metrics"]["export"] == pytest.approx(summary["metrics"]["checkpoint"], abs=2e-3)
    assert json.loads((folder / "export.json").read_text()) == summary
    assert (folder / summary["file"]).exists()
    assert summary["classes"] == list(summary["operating_points"]) == list(CLASSES)
    assert (folder / "anchors.npy").exists() == (outputs == "raw")


@pytest.mark.slow
def test_quantized_files_are_smaller(export):
    sizes = {quantize: export("tflite", quantize, "raw")[0]["bytes"] for quantize in ("none", "fp16", "int8")}
    assert sizes["fp16"] < 0.75 * sizes["none"]
    assert sizes["int8"] < sizes["fp16"]
    interpreter = tf.lite.Interpreter(str(export("tflite", "int8")[1] / "model.tflite"))
    assert interpreter.get_input_details()[0]["dtype"] == np.uint8
    # Scale 1 and zero point 0: the file accepts uint8 pixels without conversion.
    assert interpreter.get_input_details()[0]["quantization"] == (pytest.approx(1.0), 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("saved_model", "detections"), ("onnx", "detections"), ("tflite", "raw"), ("openvino", "detection_output")],
)
def test_an_export_predicts_what_its_run_predicts(run, export, tmp_path, kind, outputs):
    skip_without_packages(kind)
    exported = str(export(kind, "none", outputs)[1])
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        noise = tf.random.stateless_uniform([90, 70, 3], [number, 0], 0, 256, tf.int32)
        (images / f"{number}.jpg").write_bytes(tf.io.encode_jpeg(tf.cast(noise, tf.uint8)).numpy())
    files = sorted(map(str, images.iterdir()))
    found = {}
    for name, opened in (
        ("run", open_run(str(run), "best", [])),
        ("export", open_exported_detector(exported)),
    ):
        outputs = PredictionOutputs(np.full(3, 0.4), CocoIds((1, 2, 3)))
        predict_images(opened, files, str(tmp_path / name), outputs)
        found[name] = json.loads((tmp_path / name / "detections.json").read_text())
    clear = [one for one in found["run"] if one["score"] > 0.1]
    assert len(clear) > 5
    for one in clear:
        twins = [
            two for two in found["export"] if (two["image_id"], two["category"]) == (one["image_id"], one["category"])
        ]
        assert min(np.abs(np.subtract(one["bbox"], two["bbox"])).max() for two in twins) < 0.1  # pixels of 90 x 70


@pytest.mark.slow
def test_a_training_can_start_from_a_saved_model(run, export, tmp_path):
    _, folder = export("saved_model")
    # The export has the weights before batch norm was folded into them, up to rounding.
    found, expected = read_source_weights(str(folder)), read_source_weights(str(run))
    assert (found.classes, found.anchors, found.width) == (expected.classes, expected.anchors, expected.width)
    assert found.values.keys() == expected.values.keys()
    for name, value in found.values.items():
        np.testing.assert_allclose(value, expected.values[name], rtol=1e-6, err_msg=name)
    summary = json.loads((folder / "export.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for change, reason in (({"format": "tflite"}, "format tflite"), ({"model": None}, "earlier version")):
        (other / "export.json").write_text(json.dumps(summary | change))
        with pytest.raises(CheckpointError, match=reason):
            read_source_weights(str(other))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "outputs"), [("tflite", "raw"), ("openvino", "detection_output")])
def test_the_evaluation_of_an_export_gives_the_metrics_of_its_summary(run, export, tmp_path, kind, outputs):
    skip_without_packages(kind)
    summary, folder = export(kind, "none", outputs)
    data = read_run_folder(str(run))[0].data.dir
    for model_dir, overrides in ((str(run), []), ("", [f"data.dir={data}"])):
        config, manifest, ground_truths, detections = evaluate_export(str(folder), model_dir, "val", overrides)
        assert config.data.dir == data
        metrics = evaluate_detections(ground_truths, detections, manifest.classes).as_dict()
        assert {name: metrics[name] for name in summary["metrics"]["export"]} == summary["metrics"]["export"]
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "export.json").write_text(json.dumps(summary | {"classes": list(CLASSES[::-1])}))
    with pytest.raises(CheckpointError, match=r"data with the classes of the export: --set data.dir=OUT"):
        evaluate_export(str(other), str(run), "val", [])


@pytest.mark.slow
def test_encoded_images_give_the_detections_of_their_pixels(export):
    signatures = tf.saved_model.load(str(export("saved_model")[1])).signatures
    # At the model's input size nothing is resized, PNG is lossless, and the channels differ.
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, ::-1], np.uint8(40)), axis=-1)
    pixels = np.stack([image, image[:, ::-1], image[..., ::-1], np.zeros_like(image)])
    found = signatures["encoded_images"](encoded=tf.stack([tf.io.encode_png(image) for image in pixels]))
    expected = signatures["serving_default"](images=tf.constant(pixels))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    assert set(found["names"].numpy().ravel().tolist()) <= {b"", *(name.encode() for name in CLASSES)}
    # The results of the four images differ, so the test would notice flipped, swapped or black pixels.
    assert len({values.tobytes() for values in found["scores"].numpy()}) == 4


@pytest.fixture
def detections():
    """Returns three detections of different classes with high scores, far apart, on one image."""
    boxes = np.float32([[0.1, 0.1, 0.3, 0.3], [0.4, 0.4, 0.6, 0.6], [0.7, 0.7, 0.9, 0.9]])
    return Detections("a", boxes, np.array([1, 2, 3]), np.float32([0.9, 0.6, 0.3]))


def remove(found, number):
    return Detections("a", *(np.delete(part, number, axis=0) for part in (found.boxes, found.labels, found.scores)))


def test_a_lost_detection_counts_as_missing_unless_it_is_explained(detections):
    def explain(*explained):
        return lambda index, lost, added: tuple(np.isin(part.labels, explained) for part in (lost, added))

    lost = [remove(detections, 1)]
    equal = compare_detections([detections], [detections], lambda *_: pytest.fail("nothing needs an explanation"))
    assert equal.holds
    for unexplained in (None, explain()):
        missing = compare_detections([detections], lost, unexplained)
        assert (missing.missing, missing.undecided, missing.holds) == (1, 0, False)
    excused = compare_detections([detections], lost, explain(2))
    assert (excused.missing, excused.undecided, excused.holds) == (0, 1, True)
    # The explanation of a detection does not excuse another one.
    other = compare_detections([detections], [remove(detections, 2)], explain(2))
    assert (other.missing, other.undecided) == (1, 0)
    nothing = remove(remove(remove(detections, 0), 0), 0)
    assert compare_detections([detections], [nothing], explain()).missing == 3
    # A surplus detection counts like a missing one.
    more = compare_detections(lost, [detections], explain(1))
    assert (more.missing, more.surplus, more.holds) == (0, 1, False)
    assert compare_detections(lost, [detections], explain(2)).undecided == 1


def test_class_offsets_are_exact_in_float16_files():
    labels = tf.range(80)
    boxes = tf.tile([[0.25, 0.5, 0.75, 1.0]], [80, 1])
    signature = [tf.TensorSpec(value.shape, value.dtype) for value in (boxes, labels)]
    move = tf.function(separate_classes, input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([move.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    for value, detail in zip((boxes, labels), interpreter.get_input_details(), strict=True):
        assert detail["dtype"] == value.dtype.as_numpy_dtype
        interpreter.set_tensor(detail["index"], value.numpy())
    interpreter.invoke()
    places = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_array_equal(places, separate_classes(boxes, labels))


@pytest.mark.slow
def test_a_mixed_precision_run_is_exported_in_float32(run, export, tmp_path, monkeypatch):
    load = exporting.load_trained_model

    def load_and_check(model_dir, checkpoint, config, class_count):
        assert not config.amp.enabled, "the checkpoint must compute in float32, like its export"
        return load(model_dir, checkpoint, config, class_count)

    monkeypatch.setattr(exporting, "load_trained_model", load_and_check)
    half = ["amp.enabled=true", "amp.policy=mixed_bfloat16"]
    summary = export_run(str(run), "best", ExportOptions("tflite", "raw"), str(tmp_path), half)
    expected = export("tflite", "none", "raw")[0]
    assert summary["parity"]["missing"] == 0
    assert summary["metrics"] == expected["metrics"]
