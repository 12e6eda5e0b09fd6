"""What is shipped detects what the checkpoint detects; what does not is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from synthetic import CLASSES, write_dataset
from tf_keras import layers

from ssd_dist.core.config import Config
from ssd_dist.core.errors import CheckpointError, UsageError
from ssd_dist.evaluation.result_files import CocoIds
from ssd_dist.export import export as exporting
from ssd_dist.export.export import choose_postprocessing, export_run
from ssd_dist.export.folding import fold_batch_norm
from ssd_dist.export.formats import open_saved_model
from ssd_dist.model.detector import build_detector
from ssd_dist.training.checkpoints import BestModel
from ssd_dist.training.prediction import Wishes, open_run, predict_images
from ssd_dist.training.run_folder import open_run_folder

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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose model nobody trained, and its data."""
    folder = tmp_path_factory.mktemp("export")
    config = Config.model_validate(SETTINGS | {"data": {"dir": str(folder / "data")}})
    manifest = write_dataset(folder / "data", config, {"train": 12, "val": 8}, shards=2)
    model = build_detector(config, len(manifest.classes))
    give_character(model)
    open_run_folder(str(folder / "run"), config, manifest)
    BestModel(model, str(folder / "run"), "coco/AP", 1).offer(5, 0.5)
    return folder / "run"


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
def test_an_export_detects_what_the_checkpoint_detects(run, kind, postprocess, tmp_path):
    if kind == "onnx":
        pytest.importorskip("tf2onnx")
    card = export_run(str(run), "best", kind, "none", postprocess, str(tmp_path), [])
    assert card["parity"]["images"] == 8
    assert card["parity"]["detections"] > 20
    assert card["parity"]["missing"] == 0
    # What nobody trained ranks by noise: its faint detections change places when the last bits do.
    assert card["metrics"]["export"] == pytest.approx(card["metrics"]["checkpoint"], abs=2e-3)
    assert json.loads((tmp_path / "export.json").read_text()) == card
    assert card["classes"] == list(CLASSES)
    assert (tmp_path / "anchors.npy").exists() != postprocess


@pytest.mark.slow
def test_smaller_numbers_make_smaller_files(run, tmp_path):
    cards = {
        quantize: export_run(str(run), "best", "tflite", quantize, False if quantize == "none" else None,
                             str(tmp_path / quantize), [])
        for quantize in ("none", "fp16", "int8")
    }  # fmt: skip
    assert cards["fp16"]["bytes"] < 0.75 * cards["none"]["bytes"]
    assert cards["int8"]["bytes"] < cards["fp16"]["bytes"]
    details = tf.lite.Interpreter(str(tmp_path / "int8" / "model.tflite"))
    assert details.get_input_details()[0]["dtype"] == np.uint8
    # Pixels are taken as they are: scale 1, zero point 0.
    assert details.get_input_details()[0]["quantization"] == (pytest.approx(1.0), 0)


@pytest.mark.slow
def test_predict_takes_a_saved_model(run, tmp_path):
    export_run(str(run), "best", "saved_model", "none", None, str(tmp_path / "model"), [])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        noise = tf.random.stateless_uniform([90, 70, 3], [number, 0], 0, 256, tf.int32)
        (pictures / f"{number}.jpg").write_bytes(tf.io.encode_jpeg(tf.cast(noise, tf.uint8)).numpy())
    files = sorted(map(str, pictures.iterdir()))
    found = {}
    for name, detector in (
        ("run", open_run(str(run), "best", [])),
        ("export", open_saved_model(str(tmp_path / "model"))),
    ):
        wishes = Wishes(np.full(3, 0.4), CocoIds((1, 2, 3)))
        predict_images(detector, files, str(tmp_path / name), wishes)
        found[name] = json.loads((tmp_path / name / "detections.json").read_text())
    clear = [one for one in found["run"] if one["score"] > 0.1]
    assert len(clear) > 5
    for one in clear:
        twins = [
            two for two in found["export"] if (two["image_id"], two["category"]) == (one["image_id"], one["category"])
        ]
        assert min(np.abs(np.subtract(one["bbox"], two["bbox"])).max() for two in twins) < 0.1  # pixels of 90 x 70

    encoded = tf.saved_model.load(str(tmp_path / "model")).signatures["encoded_images"]
    answer = encoded(encoded=tf.constant([Path(files[0]).read_bytes(), Path(files[1]).read_bytes()]))
    assert answer["boxes"].shape[0] == 2
    assert set(answer["names"].numpy().ravel().tolist()) <= {b"", *(name.encode() for name in CLASSES)}


@pytest.mark.slow
def test_what_does_not_reproduce_the_checkpoint_is_refused(run, tmp_path, monkeypatch):
    real = exporting.open_export

    def open_shifted(kind, path):
        runner = real(kind, path)
        return lambda images: {name: value + 0.01 * (name == "boxes") for name, value in runner(images).items()
                               if name != "names"}  # fmt: skip

    monkeypatch.setattr(exporting, "open_export", open_shifted)
    with pytest.raises(CheckpointError, match="do not ship"):
        export_run(str(run), "best", "saved_model", "none", None, str(tmp_path), [])
    assert json.loads((tmp_path / "export.json").read_text())["parity"]["missing"] > 0


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
