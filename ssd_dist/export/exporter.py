"""Exports the model of a run: writes the file, compares it with the checkpoint, and writes an export summary."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.core.config import AmpConfig, DataConfig
from ssd_dist.core.errors import CheckpointError, UsageError
from ssd_dist.core.folder_names import SUMMARY_NAME
from ssd_dist.core.manifest import TRAIN_SPLIT, Manifest
from ssd_dist.data.shard_files import load_manifest, read_split
from ssd_dist.evaluation.analysis import analyse_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.export.formats import (
    FILES,
    Runner,
    open_export,
    write_onnx,
    write_saved_model,
    write_tflite,
)
from ssd_dist.export.parity import Parity, compare_detections, detect_with_noise, run_export
from ssd_dist.export.serving import OutputDecoder, ServedDetector
from ssd_dist.inference.trained_model import check_data_fits_model, load_trained_model
from ssd_dist.model.detector import normalize_image
from ssd_dist.runs.checkpoints import locate_checkpoint
from ssd_dist.runs.run_folder import read_run_folder

QUANTIZATIONS = {"saved_model": ("none",), "tflite": ("none", "fp16", "int8"), "onnx": ("none",)}
ANCHORS_NAME = "anchors.npy"
# Training images from which int8 calibrates the ranges of its activations.
CALIBRATION_IMAGES = 128
# At most this many images of the evaluation split are compared.
COMPARED_IMAGES = 500
METRICS = ("coco/AP", "coco/AP50", "voc/mAP")


@dataclass(frozen=True)
class Comparison:
    """The results of an export and of its checkpoint on the same images.

    Attributes:
      checkpoint: the checkpoint's detections, one entry per image.
      export: the export's detections, one entry per image.
      parity: how the two differ.
      latency: median milliseconds per image of the export on this machine.
    """

    checkpoint: list[Detections]
    export: list[Detections]
    parity: Parity
    latency: float


@explain_out_of_memory()
def export_run(
    model_dir: str, checkpoint: str, kind: str, quantize: str, postprocess: bool | None, output: str,
    overrides: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Writes an export and its summary; both are evaluated on the evaluation split of the run.

    Args:
      model_dir: folder of the run.
      checkpoint: `best`, `last` or a path.
      kind: `saved_model`, `tflite` or `onnx`.
      quantize: `none`, `fp16` or `int8`.
      postprocess: whether box decoding and NMS are part of the graph; None selects the default of the format.
      output: folder for the export, created if missing.
      overrides: `a.b=c` overrides of the run's config.

    Returns:
      The export summary, as written to `export.json`.

    Raises:
      UsageError: if the format does not support an option, or the folder cannot be written.
      CheckpointError: if the checkpoint does not exist, or the unquantized export does not reproduce it.
      DataError: if the prepared data of the run is missing or does not fit the model.
    """
    postprocess = choose_postprocessing(kind, quantize, postprocess)
    config, manifest = read_run_folder(model_dir, overrides)
    # Exports compute in float32, so the checkpoint they are compared with must do so too.
    config = config.model_copy(update={"amp": AmpConfig()})
    data = load_manifest(config.data)
    check_data_fits_model(data, manifest, config.data.dir, config.model.input_size, model_dir)
    split = pick_split(config.eval.split, data, config.data.dir)
    ground_truths, images = read_images(config.data, data, split, COMPARED_IMAGES)
    samples = read_images(config.data, data, TRAIN_SPLIT, CALIBRATION_IMAGES)[1] if quantize == "int8" else []
    model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    decoder = OutputDecoder.create(config.anchors, config.eval, config.model.input_size)
    served = ServedDetector(model, decoder, config.model.input_size, manifest.classes, postprocess)

    folder = Path(output)
    path = write_export(served, kind, quantize, samples, folder)
    names = [image.source_id for image in ground_truths]
    comparison = compare_with_checkpoint(model, decoder, open_export(kind, path), images, names, quantize)
    summary = {
        "format": kind,
        "quantize": quantize,
        "file": FILES[kind],
        "bytes": _size_of(path),
        "checkpoint": locate_checkpoint(model_dir, checkpoint),
        "input": f"uint8 [{describe_batch(kind, postprocess)}, {served.size}, {served.size}, 3], RGB",
        "output": describe_output(decoder, postprocess),
        "model": {"width": config.model.width, "anchors": config.anchors.model_dump(mode="json")},
        **summarise_comparison(comparison, ground_truths, manifest.classes),
    }
    (folder / SUMMARY_NAME).write_text(json.dumps(summary, indent=1) + "\n")
    parity = comparison.parity
    if quantize == "none" and not parity.holds:
        raise CheckpointError(
            f"{path}: the export lacks {parity.missing} of the checkpoint's {parity.detections} detections and has "
            f"{parity.surplus} others; do not deploy it; details are in {folder / SUMMARY_NAME}"
        )
    return summary


def choose_postprocessing(kind: str, quantize: str, requested: bool | None) -> bool:
    """Decides whether box decoding and NMS are part of the graph: by default yes, except for int8.

    Raises:
      UsageError: if the format does not support the combination.
    """
    if quantize not in QUANTIZATIONS[kind]:
        raise UsageError(
            f"--quantize={quantize}: not supported by --format={kind}; use {' or '.join(QUANTIZATIONS[kind])}"
            + ("" if kind == "tflite" else ", or --format=tflite")
        )
    if quantize == "int8" and requested:
        raise UsageError("--postprocessing: box decoding is not exact in 8 bits; omit the flag with --quantize=int8")
    return quantize != "int8" if requested is None else requested


def pick_split(requested: str, manifest: Manifest, data_dir: str) -> str:
    """Returns the split to evaluate on.

    `auto` selects val, else test, else the first split that is not the training split, else the training split.

    Args:
      requested: `eval.split` of the run, a name or `auto`.
      manifest: the manifest of the prepared data.
      data_dir: the folder of the data, for the error message.

    Raises:
      DataError: if the data has no split of the requested name.
    """
    others = [name for name in manifest.splits if name != TRAIN_SPLIT]
    return manifest.eval_split(requested, data_dir) or (others or list(manifest.splits))[0]


def read_images(
    config: DataConfig, manifest: Manifest, split: str, limit: int
) -> tuple[list[GroundTruth], list[np.ndarray]]:
    """Reads annotations and uint8 [S, S, 3] pixels of the first `limit` records of a split."""
    ground_truths: list[GroundTruth] = []
    images: list[np.ndarray] = []
    for record in read_split(config, manifest.split(split, config.dir)):
        if len(images) == limit:
            break
        ground_truths.append(
            GroundTruth(record.source_id, record.original_height, record.original_width, record.objects)
        )
        images.append(tf.io.decode_jpeg(record.encoded, channels=3, dct_method="INTEGER_ACCURATE").numpy())
    return ground_truths, images


def write_export(served: ServedDetector, kind: str, quantize: str, samples: list[np.ndarray], folder: Path) -> Path:
    """Writes the export into `folder`, with `anchors.npy` if it has no post-processing, and returns its path.

    Args:
      served: the detector.
      kind: the format.
      quantize: `none`, `fp16` or `int8`.
      samples: uint8 [S, S, 3] images from which `int8` calibrates.
      folder: created if missing.

    Raises:
      UsageError: if the folder cannot be written.
    """
    path = folder / FILES[kind]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "saved_model":
            write_saved_model(served, path)
        elif kind == "tflite":
            write_tflite(served, path, quantize, samples)
        else:
            write_onnx(served, path)
        if not served.postprocess:
            np.save(folder / ANCHORS_NAME, served.decoder.anchors)
    except OSError as error:
        raise UsageError(
            f"--output={folder}: cannot write the export: {error}; use a writable folder with free space"
        ) from None
    return path


def compare_with_checkpoint(
    model: tf_keras.Model,
    decoder: OutputDecoder,
    runner: Runner,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    quantize: str,
) -> Comparison:
    """Runs the checkpoint and the export on the same uint8 [S, S, 3] images and matches their detections.

    Args:
      model: the checkpoint's model.
      decoder: decodes the outputs of `model`.
      runner: the opened export.
      images: the images.
      names: the ids of the images.
      quantize: with `none`, differences that rounding explains are counted as undecided. A quantized export differs in
        every output, so all its differences are counted; the metrics show their cost.
    """
    network = tf.function(lambda pixels: model(normalize_image(pixels), training=False))

    def detect_noisy(index: int) -> list[Detections]:
        return detect_with_noise(network, images[index], names[index], decoder) if quantize == "none" else []

    expected = detect_with_checkpoint(model, decoder, images, names)
    found, latency = run_export(runner, images, names, decoder)
    return Comparison(expected, found, compare_detections(expected, found, detect_noisy), latency)


def detect_with_checkpoint(
    model: tf_keras.Model, decoder: OutputDecoder, images: Sequence[np.ndarray], names: Sequence[str]
) -> list[Detections]:
    """Returns the detections of the checkpoint on each of the uint8 [S, S, 3] images."""

    @tf.function
    def run(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return decoder.decode(model(normalize_image(pixels), training=False))._asdict()

    found, _ = run_export(lambda image: run(tf.constant(image)), images, names, decoder)
    return found


def summarise_comparison(
    comparison: Comparison, ground_truths: Sequence[GroundTruth], classes: Sequence[str]
) -> dict[str, Any]:
    """Returns the part of the summary that depends on the images: metrics, thresholds, parity and latency."""

    def evaluate(found: Sequence[Detections]) -> dict[str, float | None]:
        metrics = evaluate_detections(ground_truths, found, classes).as_dict()
        return {name: metrics[name] for name in METRICS}

    analysis = analyse_detections(ground_truths, comparison.export, classes).as_dict()
    return {
        "classes": list(classes),
        "metrics": {"checkpoint": evaluate(comparison.checkpoint), "export": evaluate(comparison.export)},
        "operating_points": analysis["operating_points"],
        "parity": dataclasses.asdict(comparison.parity),
        "milliseconds_an_image_here": comparison.latency,
    }


def describe_batch(kind: str, postprocess: bool) -> str:
    """Returns the batch size of an export's input: `1`, or `N` for any."""
    return "1" if kind == "tflite" or (kind == "onnx" and postprocess) else "N"


def describe_output(decoder: OutputDecoder, postprocess: bool) -> dict[str, Any]:
    """Describes the outputs of an export and, without post-processing, what the caller needs to decode them."""
    nms = {
        "score_threshold": decoder.eval_config.score_threshold,
        "nms_iou": decoder.eval_config.nms_iou,
        "max_detections": decoder.eval_config.max_detections,
    }
    if postprocess:
        return {
            "boxes": "float32 [N, D, 4]: ymin, xmin, ymax, xmax in 0..1",
            "labels": "int32 [N, D], 1-based; 0 is padding",
            "scores": "float32 [N, D], best first",
            **nms,
        }
    return {
        "logits": "float32 [N, A, C + 1], class 0 is background",
        "offsets": "float32 [N, A, 4]: ty, tx, th, tw",
        "anchors": "anchors.npy, float32 [A, 4]: ymin, xmin, ymax, xmax in 0..1",
        "center_variance": decoder.anchor_config.center_variance,
        "size_variance": decoder.anchor_config.size_variance,
        **nms,
    }


def _size_of(path: Path) -> int:
    """Returns the size in bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
