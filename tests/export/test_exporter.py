"""What is shipped detects what the checkpoint detects; what does not is refused.

Folding is tested on whole MobileNetV2s. The formats are tested on a few blocks of the same layers, since converting is
what takes the time; each export is made once.
"""

import dataclasses
import functools
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image
from support import synthetic
from support.synthetic import CLASSES, write_dataset
from tf_keras import layers

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import Config
from ssd_dist.core.errors import CheckpointError, DataError, UsageError
from ssd_dist.data.shard_files import read_split
from ssd_dist.evaluation.detections import Detections
from ssd_dist.evaluation.result_files import CocoIds
from ssd_dist.export import exporter as exporting
from ssd_dist.export.exporter import choose_postprocessing, export_run, pick_split
from ssd_dist.export.folding import fold_batch_norm
from ssd_dist.export.formats import open_saved_model
from ssd_dist.export.parity import compare_detections, detect_rippled
from ssd_dist.inference.prediction import PredictionOutputs, open_run, predict_images
from ssd_dist.inference.trained_model import check_data_of_run
from ssd_dist.model import detector
from ssd_dist.model.batch_norm import ReplicaBatchNormalization
from ssd_dist.model.detector import build_detector, normalize_image
from ssd_dist.model.postprocessing import anchor_tensor, set_classes_apart
from ssd_dist.runs.checkpoints import BestModel
from ssd_dist.runs.run_folder import open_run_folder

SETTINGS = {
    "model": {"input_size": 64, "width": 0.1},
    "backbone": {"weights": "none"},
    "eval": {"split": "val"},
}


def submodules_of_kind(model, kind):
    return [module for module in model.submodules if isinstance(module, kind)]


def give_character(model):
    """Statistics and class scores as a trained model might have them: nothing at its initial value, few ties."""
    rng = np.random.default_rng(7)
    for norm in submodules_of_kind(model, layers.BatchNormalization):
        gamma, beta, mean, variance = norm.get_weights()
        norm.set_weights([
            rng.uniform(0.5, 1.5, gamma.shape), rng.normal(0, 0.3, beta.shape),
            rng.normal(0, 0.3, mean.shape), rng.uniform(0.5, 1.5, variance.shape),
        ])  # fmt: skip
    for layer in model.layers:
        if layer.name.startswith("class_") and isinstance(layer, layers.Conv2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel * 10, bias])


def settle_statistics(model, pictures):
    """Gives the norms the statistics of pictures uint8 [N, S, S, 3]; with others outputs hardly hang on the picture."""
    for norm in submodules_of_kind(model, layers.BatchNormalization):
        norm.momentum = 0.0
    model(normalize_image(tf.constant(pictures)), training=True)


def build_few_blocks(config, model, sync_batch_norm=False):
    """A backbone of the layers that MobileNetV2 has, with taps at strides 8, 16 and 32."""

    def normalize(x, relu=True):
        x = ReplicaBatchNormalization()(x)
        return layers.ReLU(6.0)(x) if relu else x

    image = tf_keras.Input((model.input_size, model.input_size, 3))
    x, taps = normalize(layers.Conv2D(8, 3, 2, "same", use_bias=False)(image)), []
    for _ in range(4):
        wide = normalize(layers.Conv2D(24, 1, use_bias=False)(x))
        taps.append(
            normalize(layers.DepthwiseConv2D(3, 2, use_bias=False)(layers.ZeroPadding2D(((0, 1), (0, 1)))(wide)))
        )
        narrow = normalize(layers.Conv2D(8, 1, use_bias=False)(taps[-1]), relu=False)
        x = layers.Add()([narrow, normalize(layers.DepthwiseConv2D(3, 1, "same", use_bias=False)(narrow), relu=False)])
    return tf_keras.Model(image, taps[1:], name="backbone")


def draw_real_records(monkeypatch):
    """Photographs in the validation records, if there are any here."""
    shared = Path(os.environ.get("SSD_DIST_SHARED", Path(__file__).parents[3] / "shared"))
    photos = sorted((shared / "data/coco128/images/val2017").glob("*.jpg"))
    draw = synthetic.draw_record

    def draw_record(seed, name, config, objects=None):
        record = draw(seed, name, config, objects)
        if not photos or not name.startswith("val"):
            return record
        size, jpeg = config.model.input_size, io.BytesIO()
        Image.open(photos[int(name[3:])]).convert("RGB").resize((size, size)).save(jpeg, "JPEG", quality=95)
        return dataclasses.replace(record, encoded=jpeg.getvalue())

    monkeypatch.setattr(synthetic, "draw_record", draw_record)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose model nobody trained, and its data: 64 real images to be judged on."""
    folder = tmp_path_factory.mktemp("export")
    config = Config.model_validate(SETTINGS | {"data": {"dir": str(folder / "data")}})
    with pytest.MonkeyPatch.context() as patch:
        draw_real_records(patch)
        manifest = write_dataset(folder / "data", config, {"train": 12, "val": 64}, shards=2)
        patch.setattr(detector, "build_backbone", build_few_blocks)
        # The same weights each time: among thousands of boxes of noise some overlap by just nms_iou, where the last bit
        # decides which stays.
        tf_keras.utils.set_random_seed(1)
        model = build_detector(config, len(manifest.classes))
        give_character(model)
        records = read_split(config.data, manifest.splits["val"])
        settle_statistics(model, np.stack([Image.open(io.BytesIO(record.encoded)) for record in records]))
        open_run_folder(str(folder / "run"), config, manifest)
        BestModel(model, str(folder / "run"), "coco/AP", 1).offer(5, 0.5)
        yield folder / "run"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Of a small data set."""
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, Config.model_validate(SETTINGS), {"train": 1, "val": 1}, shards=1)


@pytest.fixture(scope="module")
def export(run, tmp_path_factory):
    """Exports the run, each kind once: its card and its folder. The checkpoint is loaded and asked once for all."""
    made, before = {}, []
    detect = exporting._detect_by_checkpoint

    def detect_once(*args):
        if not before:
            before.append(detect(*args))
        return before[0]

    def make(kind, quantize="none", postprocess=None):
        key = (kind, quantize, choose_postprocessing(kind, quantize, postprocess))
        if key not in made:
            folder = tmp_path_factory.mktemp("exported")
            made[key] = export_run(str(run), "best", *key, str(folder), []), folder
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_detect_by_checkpoint", detect_once)
        patch.setattr(exporting, "load_trained_model", functools.cache(exporting.load_trained_model))
        yield make


@pytest.mark.parametrize("head", ["ssd", "ssdlite"])
def test_folding_changes_nothing_but_the_layers(head):
    config = Config.model_validate(SETTINGS | {"model": SETTINGS["model"] | {"head": head}})
    model = build_detector(config, 3)
    give_character(model)
    folded = fold_batch_norm(model)
    assert submodules_of_kind(model, layers.BatchNormalization)
    assert not submodules_of_kind(folded, layers.BatchNormalization)
    image = tf.random.stateless_uniform([2, 64, 64, 3], [1, 2], -1, 1)
    for name, expected in model(image, training=False).items():
        # Folding rounds each weight once: some 1e-7 a layer, through sixty layers.
        np.testing.assert_allclose(folded(image)[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("postprocess", [True, False])
@pytest.mark.parametrize("kind", ["saved_model", "tflite", "onnx"])
def test_an_export_detects_what_the_checkpoint_detects(export, kind, postprocess):
    if kind == "onnx":
        pytest.importorskip("tf2onnx")
    card, folder = export(kind, "none", postprocess)
    assert card["parity"]["images"] == 64
    assert card["parity"]["detections"] > 200
    assert card["parity"]["missing"] == 0
    # What nobody trained ranks by noise: its faint detections change places when the last bits do.
    assert card["metrics"]["export"] == pytest.approx(card["metrics"]["checkpoint"], abs=2e-3)
    assert json.loads((folder / "export.json").read_text()) == card
    assert (folder / card["file"]).exists()
    assert card["classes"] == list(card["operating_points"]) == list(CLASSES)
    assert (folder / "anchors.npy").exists() != postprocess


@pytest.mark.slow
def test_smaller_numbers_make_smaller_files(export):
    sizes = {quantize: export("tflite", quantize, False)[0]["bytes"] for quantize in ("none", "fp16", "int8")}
    assert sizes["fp16"] < 0.75 * sizes["none"]
    assert sizes["int8"] < sizes["fp16"]
    details = tf.lite.Interpreter(str(export("tflite", "int8")[1] / "model.tflite"))
    assert details.get_input_details()[0]["dtype"] == np.uint8
    # Pixels are taken as they are: scale 1, zero point 0.
    assert details.get_input_details()[0]["quantization"] == (pytest.approx(1.0), 0)


@pytest.mark.slow
def test_predict_takes_a_saved_model(run, export, tmp_path):
    exported = str(export("saved_model")[1])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        noise = tf.random.stateless_uniform([90, 70, 3], [number, 0], 0, 256, tf.int32)
        (pictures / f"{number}.jpg").write_bytes(tf.io.encode_jpeg(tf.cast(noise, tf.uint8)).numpy())
    files = sorted(map(str, pictures.iterdir()))
    found = {}
    for name, opened in (
        ("run", open_run(str(run), "best", [])),
        ("export", open_saved_model(exported)),
    ):
        wishes = PredictionOutputs(np.full(3, 0.4), CocoIds((1, 2, 3)))
        predict_images(opened, files, str(tmp_path / name), wishes)
        found[name] = json.loads((tmp_path / name / "detections.json").read_text())
    clear = [one for one in found["run"] if one["score"] > 0.1]
    assert len(clear) > 5
    for one in clear:
        twins = [
            two for two in found["export"] if (two["image_id"], two["category"]) == (one["image_id"], one["category"])
        ]
        assert min(np.abs(np.subtract(one["bbox"], two["bbox"])).max() for two in twins) < 0.1  # pixels of 90 x 70


@pytest.mark.slow
def test_encoded_images_are_decoded_to_the_pixels_that_they_hold(export):
    signatures = tf.saved_model.load(str(export("saved_model")[1])).signatures
    # Smooth and coloured, in the model's size: nothing is resized, PNG loses nothing, and channels differ.
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, ::-1], np.uint8(40)), axis=-1)
    pixels = np.stack([picture, picture[:, ::-1], picture[..., ::-1], np.zeros_like(picture)])
    answer = signatures["encoded_images"](encoded=tf.stack([tf.io.encode_png(image) for image in pixels]))
    expected = signatures["serving_default"](images=tf.constant(pixels))
    for name, values in expected.items():
        np.testing.assert_array_equal(answer[name], values)
    assert set(answer["names"].numpy().ravel().tolist()) <= {b"", *(name.encode() for name in CLASSES)}
    # Four pictures, four answers: turned, swapped and black ones would be noticed.
    assert len({values.tobytes() for values in answer["scores"].numpy()}) == 4


@pytest.fixture
def photograph():
    """One image with three clear detections, far apart, in different classes."""
    boxes = np.float32([[0.1, 0.1, 0.3, 0.3], [0.4, 0.4, 0.6, 0.6], [0.7, 0.7, 0.9, 0.9]])
    return Detections("a", boxes, np.array([1, 2, 3]), np.float32([0.9, 0.6, 0.3]))


def without(found, number):
    return Detections("a", *(np.delete(part, number, axis=0) for part in (found.boxes, found.labels, found.scores)))


def test_a_lost_detection_counts_unless_rounding_alone_would_lose_it(photograph):
    lost = [without(photograph, 1)]
    steady, shaky = [photograph] * 3, [photograph, without(photograph, 1)]
    assert compare_detections([photograph], [photograph], lambda _: pytest.fail("asked in vain")).holds
    kept = compare_detections([photograph], lost, lambda _: steady)
    assert (kept.missing, kept.undecided, kept.holds) == (1, 0, False)
    excused = compare_detections([photograph], lost, lambda _: shaky)
    assert (excused.missing, excused.undecided, excused.holds) == (0, 1, True)
    # What rounding decides about one says nothing about another.
    other = compare_detections([photograph], [without(photograph, 2)], lambda _: shaky)
    assert (other.missing, other.undecided) == (1, 0)
    nothing = without(without(without(photograph, 0), 0), 0)
    assert compare_detections([photograph], [nothing], lambda _: steady).missing == 3
    # What suppression let through is as wrong as what it took.
    more = compare_detections(lost, [photograph], lambda _: [without(photograph, 1)] * 3)
    assert (more.missing, more.surplus, more.holds) == (0, 1, False)
    assert compare_detections(lost, [photograph], lambda _: shaky).undecided == 1


def test_classes_stay_apart_in_float16_files():
    labels = tf.range(80)
    boxes = tf.tile([[0.25, 0.5, 0.75, 1.0]], [80, 1])
    signature = [tf.TensorSpec(value.shape, value.dtype) for value in (boxes, labels)]
    move = tf.function(set_classes_apart, input_signature=signature)
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
    np.testing.assert_array_equal(places, set_classes_apart(boxes, labels))


def test_ripples_shake_what_is_tied_and_nothing_else():
    config = Config.model_validate(SETTINGS)
    anchors = anchor_tensor(config).numpy()
    # Two neighbouring anchors of one object, of nearly the same logits; a third, clear one elsewhere.
    overlaps = iou_matrix(anchors[20:200], anchors[20:200]) - 2 * np.eye(180)
    first, second = 20 + np.array(np.unravel_index(overlaps.argmax(), overlaps.shape))
    apart = int(np.flatnonzero(iou_matrix(anchors[[first]], anchors)[0] == 0)[0])
    logits = np.zeros((1, len(anchors), 4), np.float32)
    logits[..., 0] = 20
    logits[0, [first, second, apart], 1] = 25, 25 - 1e-5, 24

    def network(_):
        return {"logits": tf.constant(logits), "offsets": tf.zeros([1, len(anchors), 4])}

    found = detect_rippled(network, np.zeros((64, 64, 3), np.uint8), "a", config)

    def seen(anchor):
        return [bool((np.abs(one.boxes - anchors[anchor].clip(0, 1)).max(axis=1) < 1e-3).any()) for one in found]

    assert all(seen(apart))
    assert seen(first) == [not one for one in seen(second)]
    assert 0 < sum(seen(first)) < len(found)


@pytest.mark.slow
def test_what_computed_in_16_bits_is_shipped_in_32(run, export, tmp_path, monkeypatch):
    loading = exporting.load_trained_model

    def load_and_see(model_dir, checkpoint, config, class_count):
        assert not config.amp.enabled, "else the checkpoint rounds otherwise than its export"
        return loading(model_dir, checkpoint, config, class_count)

    monkeypatch.setattr(exporting, "load_trained_model", load_and_see)
    half = ["amp.enabled=true", "amp.policy=mixed_bfloat16"]
    card = export_run(str(run), "best", "tflite", "none", False, str(tmp_path), half)
    expected = export("tflite", "none", False)[0]
    assert card["parity"]["missing"] == 0
    assert card["metrics"] == expected["metrics"]


@pytest.mark.parametrize(
    ("named", "splits", "judged"),
    [
        ("auto", ("test", "train", "val"), "val"),
        ("auto", ("test", "train"), "test"),
        ("auto", ("odd", "train"), "odd"),
        ("auto", ("train",), "train"),
        ("test", ("test", "train", "val"), "test"),
    ],
)
def test_it_is_judged_on_the_split_that_the_run_evaluates_on(manifest, named, splits, judged):
    config = Config.model_validate(SETTINGS | {"eval": {"split": named}})
    data = manifest.model_copy(update={"splits": dict.fromkeys(splits, manifest.splits["val"])})
    assert pick_split(config, data) == judged


def test_a_named_split_that_is_not_there_is_refused(manifest):
    with pytest.raises(DataError, match="no split 'tset'"):
        pick_split(Config.model_validate(SETTINGS | {"eval": {"split": "tset"}}), manifest)


def test_what_was_not_trained_for_is_refused(manifest):
    config = Config.model_validate(SETTINGS)
    check_data_of_run(config, manifest, manifest, "RUN")
    with pytest.raises(DataError, match=r"image_size 400, and the model of RUN takes 64: .*--config=RUN/config.yaml"):
        check_data_of_run(config, manifest.model_copy(update={"image_size": 400}), manifest, "RUN")
    with pytest.raises(CheckpointError, match="trained on classes"):
        check_data_of_run(config, manifest.model_copy(update={"classes": CLASSES[::-1]}), manifest, "RUN")


def test_combinations_that_there_are_not():
    assert choose_postprocessing("tflite", "int8", None) is False
    assert choose_postprocessing("onnx", "none", None) is True
    with pytest.raises(UsageError, match="fp16"):
        choose_postprocessing("onnx", "fp16", None)
    with pytest.raises(UsageError, match="int8"):
        choose_postprocessing("tflite", "int8", True)


def test_a_folder_without_an_export_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="ssd-export"):
        open_saved_model(str(tmp_path))
