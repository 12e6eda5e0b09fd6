"""Options of an export: defaults, unsupported combinations, the split of its evaluation, and data that do not fit."""

import pytest
import tensorflow as tf
from support.random_detector import SETTINGS
from support.synthetic import CLASSES, write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.errors import CheckpointError, DataError, UsageError
from ssd_dist.export import exported_detector
from ssd_dist.export.export_options import Credits, Quantization, check_quantization, choose_metadata, choose_outputs
from ssd_dist.export.exported_detector import open_exported_detector
from ssd_dist.export.exporter import pick_compared_split
from ssd_dist.inference.trained_model import check_data_fits_model


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Returns the manifest of a small dataset."""
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, Config.model_validate(SETTINGS), {"train": 1, "val": 1}, shards=1)


@pytest.mark.parametrize(
    ("requested", "splits", "evaluated"),
    [
        ("auto", ("test", "train", "val"), "val"),
        ("auto", ("test", "train"), "test"),
        ("auto", ("odd", "train"), "odd"),
        ("auto", ("train",), "train"),
        ("test", ("test", "train", "val"), "test"),
    ],
)
def test_an_export_is_evaluated_on_the_evaluation_split_of_the_run(manifest, requested, splits, evaluated):
    data = manifest.model_copy(update={"splits": dict.fromkeys(splits, manifest.splits["val"])})
    assert pick_compared_split(requested, data, "OUT") == evaluated


def test_a_missing_split_is_reported(manifest):
    with pytest.raises(DataError, match="no split 'tset'"):
        pick_compared_split("tset", manifest, "OUT")


def test_data_of_another_size_or_classes_is_rejected(manifest):
    check_data_fits_model(manifest, manifest, "OUT", 64, "RUN")
    larger = manifest.model_copy(update={"image_size": 400})
    with pytest.raises(DataError, match=r"image_size 400, but the model of RUN takes 64; .*--config=RUN/config.yaml"):
        check_data_fits_model(larger, manifest, "OUT", 64, "RUN")
    other = manifest.model_copy(update={"classes": CLASSES[::-1]})
    with pytest.raises(CheckpointError, match="trained on classes"):
        check_data_fits_model(other, manifest, "OUT", 64, "RUN")


def test_default_outputs_and_unsupported_combinations():
    assert choose_outputs("tflite", "int8", None) == "raw"
    assert choose_outputs("onnx", "none", None) == "detections"
    assert choose_outputs("openvino", "none", None) == choose_outputs("openvino", "int8", None) == "detection_output"
    # The older flag for the same choice.
    assert choose_outputs("tflite", "none", None, postprocess=False) == "raw"
    assert choose_outputs("tflite", "fp16", None, postprocess=True) == "detections"
    with pytest.raises(UsageError, match="--quantize=fp16: not supported by --format=onnx; use none"):
        choose_outputs("onnx", "fp16", None)
    with pytest.raises(UsageError, match="omit the flag with --quantize=int8"):
        choose_outputs("tflite", "int8", None, postprocess=True)
    with pytest.raises(UsageError, match=r"--outputs=detections: .*use --outputs=postprocess_op"):
        choose_outputs("tflite", "int8", "detections")
    with pytest.raises(UsageError, match="use --format=tflite"):
        choose_outputs("onnx", "none", "postprocess_op")
    with pytest.raises(UsageError, match=r"--format=openvino; use .*or onnx, or --outputs=detection_output or raw"):
        choose_outputs("openvino", "none", "detections")
    with pytest.raises(UsageError, match="use --format=openvino, or --outputs=detections or raw"):
        choose_outputs("saved_model", "none", "detection_output")
    with pytest.raises(UsageError, match="omit one of the two"):
        choose_outputs("tflite", "none", "raw", postprocess=False)


@pytest.mark.parametrize(
    ("kind", "outputs", "quantization", "message"),
    [
        ("tflite", "raw", Quantization("fp16", per_tensor=True), "--per_tensor: .*add --quantize=int8"),
        ("onnx", "raw", Quantization(input_type="float32"), "--input_type=float32: not supported by --format=onnx"),
        ("openvino", "raw", Quantization("int8", per_tensor=True), "--per_tensor: not supported by --format=openvino"),
        ("openvino", "raw", Quantization("int8", output_type="int8"), "--output_type=int8: .*use --format=tflite"),
        ("tflite", "raw", Quantization(input_type="int8"), "--input_type=int8: needs a quantized network"),
        ("tflite", "raw", Quantization(output_type="int8"), "--output_type=int8: needs the raw outputs"),
        ("tflite", "raw", Quantization("fp16", calibration_images=64), "--calibration_images: .*add --quantize=int8"),
        ("tflite", "postprocess_op", Quantization("int8", output_type="int8"), "--output_type=int8: needs the raw"),
    ],
)
def test_unsupported_quantizations_are_rejected(kind, outputs, quantization, message):
    with pytest.raises(UsageError, match=message):
        check_quantization(kind, outputs, quantization)


def test_metadata_are_the_default_of_the_op_only():
    credit = Credits("author")
    assert choose_metadata("postprocess_op", None, credit) == choose_metadata("postprocess_op", True, credit) == credit
    assert choose_metadata("postprocess_op", False, Credits()) is choose_metadata("raw", None, Credits()) is None
    with pytest.raises(UsageError, match=r"--author: only TFLite metadata contains it; add --outputs=postprocess_op"):
        choose_metadata("raw", None, credit)
    with pytest.raises(UsageError, match=r"--license: only TFLite metadata contains it; omit --nometadata"):
        choose_metadata("postprocess_op", False, Credits(license="MIT"))
    with pytest.raises(UsageError, match=r"--metadata: .*add --outputs=postprocess_op"):
        choose_metadata("detections", True, credit)


def test_exhausted_memory_is_reported_as_such(monkeypatch):
    def fail(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor")

    monkeypatch.setattr(exported_detector, "load_config", fail)
    with pytest.raises(UsageError, match="out of memory"):
        exported_detector.evaluate_export("EXPORT", "", "val", [])


def test_a_folder_without_an_export_is_rejected(tmp_path):
    with pytest.raises(CheckpointError, match=r"not an export, .*create one with ssd-export"):
        open_exported_detector(str(tmp_path))
