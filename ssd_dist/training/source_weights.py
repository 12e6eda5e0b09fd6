"""Reads the weights of a trained detector, from which a new run starts (`model.init_from`).

RUN                        its best checkpoint or, without evaluation, its newest one, as ssd-evaluate loads it
RUN/checkpoints/ckpt-N     that checkpoint of a run
export folder              a SavedModel; its file still holds what batch normalization was before it was folded
FILE.h5                    weights of a detector as Keras saves them, without class names
folder or checkpoint       a checkpoint of tf-models-official with a MobileNetV2 backbone; only the backbone is read
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf

from ssd_dist.core.config import AnchorConfig
from ssd_dist.core.errors import CheckpointError, first_line
from ssd_dist.core.folder_names import CONFIG_NAME, SUMMARY_NAME
from ssd_dist.model.detector import BATCH_NORM_EPSILON
from ssd_dist.model.layer_names import layers_by_part, name_variables
from ssd_dist.runs.checkpoints import locate_checkpoint, read_best
from ssd_dist.runs.run_folder import read_run_folder
from ssd_dist.training.trained_weights import build_trained_detector

VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
NORM_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")
# The images of tf-models-official are normalized with these values (official/vision/ops/preprocess_ops.py).
OFFICIAL_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
OFFICIAL_STDDEV = np.array([0.229, 0.224, 0.225], np.float32)
# Layers with weights in the MobileNetV2 of tf-models-official: the first convolution, 17 blocks, the last convolution.
OFFICIAL_BLOCKS = 17


@dataclass(frozen=True)
class SourceWeights:
    """The weights of a trained detector, or of its backbone.

    Attributes:
      origin: the file that they were read from.
      values: the values by "layer/variable".
      classes: class names, the first one has label 1; None if unknown.
      anchors: the anchors of the detector; None if unknown.
      width: `model.width` of the detector; None if unknown.
    """

    origin: str
    values: Mapping[str, np.ndarray]
    classes: tuple[str, ...] | None = None
    anchors: AnchorConfig | None = None
    width: float | None = None


def check_source_exists(source: str) -> None:
    """Checks that `model.init_from` names an existing file, folder or checkpoint.

    Raises:
      CheckpointError: if it does not.
    """
    if source and not os.path.exists(source) and not os.path.exists(f"{source}.index"):
        raise CheckpointError(
            f"model.init_from: {source} does not exist; give the folder of a run or of a SavedModel export, a "
            "checkpoint, or a Keras weight file (.h5)"
        )


def read_source_weights(source: str) -> SourceWeights:
    """Reads the weights that `model.init_from` selects; call outside of strategy scope.

    Raises:
      CheckpointError: if there are no weights of a detector.
    """
    check_source_exists(source)
    folder = Path(source)
    if (folder / CONFIG_NAME).is_file():
        return _read_run(source, "best" if read_best(source) else "last")
    if (folder / SUMMARY_NAME).is_file():
        return _read_export(folder)
    if folder.suffix in (".h5", ".hdf5"):
        return _read_keras_file(source)
    path = tf.train.latest_checkpoint(source) if folder.is_dir() else source.removesuffix(".index")
    if path is None or not Path(f"{path}.index").is_file():
        raise CheckpointError(
            f"model.init_from: {source} is not a trained detector; give the folder of a run or of a SavedModel export, "
            "a checkpoint, or a Keras weight file (.h5)"
        )
    run = Path(path).parent.parent
    return _read_run(str(run), path) if (run / CONFIG_NAME).is_file() else _read_official(path)


def _read_run(model_dir: str, checkpoint: str) -> SourceWeights:
    config, manifest = read_run_folder(model_dir)
    path = locate_checkpoint(model_dir, checkpoint)
    model = build_trained_detector(config, len(manifest.classes), path)
    values = {
        name: variable.numpy() for _, layer in layers_by_part(model) for name, variable in name_variables(layer).items()
    }
    return SourceWeights(path, values, tuple(manifest.classes), config.anchors, config.model.width)


def _read_export(folder: Path) -> SourceWeights:
    origin = f"model.init_from: {folder}"
    try:
        summary = json.loads((folder / SUMMARY_NAME).read_text())
        kind, classes, facts = summary["format"], summary["classes"], summary.get("model")
        if kind != "saved_model":
            raise CheckpointError(
                f"{origin}: weights cannot be read from the format {kind}; give the run, or an export with "
                "--format=saved_model"
            )
        stored = _read_checkpoint(str(folder / "variables" / "variables"))
        folded = _strip_prefix(stored, "_weights/")
        norms = _strip_prefix(stored, "_batch_norms/")
        if facts is None or not norms:
            raise CheckpointError(
                f"{origin}: was exported by an earlier version, without the values of batch normalization; give the "
                "run, or export it again"
            )
        anchors = AnchorConfig.model_validate(facts["anchors"])
        return SourceWeights(str(folder), _unfold(folded, norms), tuple(classes), anchors, facts["width"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{origin}: the export cannot be read: {first_line(error)}; export the run again"
        ) from None


def _unfold(folded: Mapping[str, np.ndarray], norms: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reverses `export.folding`: returns the kernels before batch normalization was folded into them.

    A channel whose scale is 0 has lost its kernel, which starts from 0.

    Args:
      folded: the values of the folded network by "layer/variable".
      norms: the values of batch normalization by "convolution/layer/variable".
    """
    values = {name.partition("/")[2]: value for name, value in norms.items()}
    names = {name.split("/")[0]: name.split("/")[1] for name in norms}
    for name, value in folded.items():
        layer, variable = name.split("/")
        if layer not in names:
            values[name] = value
        elif variable != "bias":
            norm = names[layer]
            gamma, variance = (values[f"{norm}/{part}"].astype(np.float64) for part in ("gamma", "moving_variance"))
            scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
            # The output channels of a depthwise kernel are its last two axes, [C, 1].
            scale = scale.reshape(value.shape[-2:]) if variable == "depthwise_kernel" else scale
            values[name] = np.divide(value, scale, out=np.zeros(value.shape), where=scale != 0).astype(np.float32)
    return values


def _read_keras_file(source: str) -> SourceWeights:
    values: dict[str, np.ndarray] = {}

    def add(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and "/" in name:
            values["/".join(name.removesuffix(":0").split("/")[-2:])] = item[()]

    try:
        with h5py.File(source) as file:
            file.get("model_weights", file).visititems(add)
    except OSError as error:
        raise CheckpointError(
            f"model.init_from: {source} cannot be read: {first_line(error)}; give another weight file"
        ) from None
    if "class_0/kernel" not in values:
        backbone = "it holds only a backbone; give it as backbone.weights" if "Conv1/kernel" in values else ""
        raise CheckpointError(
            f"model.init_from: {source} is not a trained detector: "
            + (backbone or "it has no layer class_0; give a file that model.save_weights('NAME.h5') wrote")
        )
    return SourceWeights(source, values)


def _read_official(path: str) -> SourceWeights:
    stored = _read_checkpoint(path)
    first = "layer_with_weights-0/_conv0/kernel"
    prefix = min((name.removesuffix(first) for name in stored if name.endswith(first)), key=len, default="")
    names = dict(_official_names(prefix))
    if missing := [name for name in names if name not in stored]:
        raise CheckpointError(
            f"model.init_from: {path} is neither a checkpoint of a run nor one of tf-models-official with a "
            f"MobileNetV2 backbone: it has no variable {missing[0]}; give another checkpoint"
        )
    values = {own: stored[name] for name, own in names.items()}
    # Their input is (p / 255 - mean) / stddev, ours p / 127.5 - 1. The first convolution takes over the difference.
    kernel = values["Conv1/kernel"]
    constant = ((0.5 - OFFICIAL_MEAN) / OFFICIAL_STDDEV)[:, None]
    values["bn_Conv1/moving_mean"] = values["bn_Conv1/moving_mean"] - (kernel * constant).sum(axis=(0, 1, 2))
    values["Conv1/kernel"] = kernel / (2.0 * OFFICIAL_STDDEV)[:, None]
    return SourceWeights(path, values)


def _official_names(prefix: str) -> Iterator[tuple[str, str]]:
    """Yields the name in a checkpoint of tf-models-official and in our backbone, for each variable."""

    def name_layer(block: int, number: int, kernel: str, layer: str, norm: str) -> Iterator[tuple[str, str]]:
        folder = f"{prefix}layer_with_weights-{block}"
        yield f"{folder}/_conv{number}/{kernel}", f"{layer}/{kernel}"
        for variable in NORM_VARIABLES:
            yield f"{folder}/_norm{number}/{variable}", f"{norm}/{variable}"

    yield from name_layer(0, 0, "kernel", "Conv1", "bn_Conv1")
    for block in range(1, OFFICIAL_BLOCKS + 1):
        # The first block does not expand its input.
        layer = "expanded_conv" if block == 1 else f"block_{block - 1}"
        if block > 1:
            yield from name_layer(block, 0, "kernel", f"{layer}_expand", f"{layer}_expand_BN")
        yield from name_layer(block, 1, "depthwise_kernel", f"{layer}_depthwise", f"{layer}_depthwise_BN")
        yield from name_layer(block, 2, "kernel", f"{layer}_project", f"{layer}_project_BN")
    yield from name_layer(OFFICIAL_BLOCKS + 1, 0, "kernel", "Conv_1", "Conv_1_bn")


def _read_checkpoint(path: str) -> dict[str, np.ndarray]:
    """Reads all variables of a TensorFlow checkpoint by their names."""
    try:
        reader = tf.train.load_checkpoint(path)
        names = [name for name in reader.get_variable_to_shape_map() if name.endswith(VALUE_SUFFIX)]
        return {name.removesuffix(VALUE_SUFFIX): reader.get_tensor(name) for name in names}
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise CheckpointError(
            f"model.init_from: checkpoint {path} cannot be read: {first_line(error)}; give another checkpoint"
        ) from None


def _strip_prefix(values: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
