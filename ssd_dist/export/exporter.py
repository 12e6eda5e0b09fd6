"""Exports the model of a run: writes the file, compares it with the checkpoint, and writes an export summary."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.core.config import AmpConfig, DataConfig
from ssd_dist.core.errors import CheckpointError, DataError, UsageError, first_line
from ssd_dist.core.folder_names import SUMMARY_NAME
from ssd_dist.core.manifest import TRAIN_SPLIT, Manifest
from ssd_dist.core.stage_line import SILENT, StageLine
from ssd_dist.core.storage import write_text
from ssd_dist.data.decoding import decode_jpeg
from ssd_dist.data.shard_files import load_manifest, read_split
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.export.detection_op import append_detection_op
from ssd_dist.export.export_options import ExportOptions, check_trained_quantization
from ssd_dist.export.export_summary import Comparison, describe_difference, describe_export, summarize_comparison
from ssd_dist.export.formats import convert_to_tflite, write_onnx, write_saved_model
from ssd_dist.export.openvino_ir import BACKGROUND, write_openvino
from ssd_dist.export.parity import Network, compare_detections, compare_raw_outputs, run_export
from ssd_dist.export.rounding import BoolArray, explain_by_rounding, list_candidates, measure_tolerance
from ssd_dist.export.runtimes import FILES, Runner, list_files, open_export
from ssd_dist.export.serving import OutputDecoder, ServedDetector
from ssd_dist.export.tflite_metadata import LABELS_NAME, add_metadata, write_labels
from ssd_dist.inference.trained_model import check_data_fits_model, load_trained_model
from ssd_dist.model.channel_ranges import limit_channel_ranges
from ssd_dist.model.detector import normalize_image
from ssd_dist.runs.checkpoints import locate_checkpoint
from ssd_dist.runs.run_folder import read_run_folder

ANCHORS_NAME = "anchors.npy"
# At most this many images of the evaluation split are compared.
COMPARED_IMAGES = 500


@explain_out_of_memory()
def export_run(
    model_dir: str,
    checkpoint: str,
    options: ExportOptions,
    output: str,
    overrides: Sequence[str],
    stages: StageLine = SILENT,
) -> dict[str, Any]:
    """Writes an export and its summary; both are evaluated on the evaluation split of the run.

    Args:
      model_dir: folder of the run.
      checkpoint: `best`, `last` or a path.
      options: the format, its outputs and its quantization.
      output: folder for the export, created if missing.
      overrides: `a.b=c` overrides of the run's config.
      stages: shows the progress.

    Returns:
      The export summary, as written to `export.json`.

    Raises:
      UsageError: if the folder cannot be written, or the run was trained for another kind of export.
      CheckpointError: if the checkpoint does not exist, or the unquantized export does not reproduce it.
      DataError: if the prepared data of the run is missing or does not fit the model.
    """
    stages.show("read images")
    config, manifest = read_run_folder(model_dir, overrides)
    check_trained_quantization(config.quantization, options, config.model.init_from)
    # Exports compute in float32, so the checkpoint they are compared with must do so too.
    config = config.model_copy(update={"amp": AmpConfig()})
    data = load_manifest(config.data)
    check_data_fits_model(data, manifest, config.data.dir, config.model.input_size, model_dir)
    split = pick_compared_split(config.eval.split, data, config.data.dir)
    compared = list(read_images(config.data, data, split, COMPARED_IMAGES))
    ground_truths, images = [annotated for annotated, _ in compared], [pixels for _, pixels in compared]
    is_calibrated = options.quantization.kind == "int8" and not config.quantization.aware
    calibrating = options.quantization.calibration_images if is_calibrated else 0
    samples = [pixels for _, pixels in read_images(config.data, data, TRAIN_SPLIT, calibrating)] if calibrating else []
    stages.show("load the checkpoint")
    model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    decoder = OutputDecoder.create(config.anchors, config.eval, config.model.input_size)
    postprocess = options.outputs == "detections"
    shipped = model
    if options.quantization.per_tensor and not config.quantization.aware:
        # A model of its own, because the checkpoint is the reference. Training with per_tensor has done it already.
        shipped = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
        limit_channel_ranges(shipped)
    served = ServedDetector(shipped, decoder, config.model.input_size, manifest.classes, postprocess)

    folder = Path(output)
    stages.show(f"convert to {options.kind}")
    path = write_export(served, options, samples, folder)
    names = [image.source_id for image in ground_truths]
    runner = open_export(options.kind, path)
    comparison = compare_with_checkpoint(model, decoder, runner, images, names, options, stages)
    summary = {
        **describe_export(options, decoder, served.size),
        "bytes": sum(file.stat().st_size for file in list_files(path)),
        "checkpoint": locate_checkpoint(model_dir, checkpoint),
        "model": {"width": config.model.width, "anchors": config.anchors.model_dump(mode="json")},
        **summarize_comparison(comparison, ground_truths, manifest.classes),
        # Quantization changes every detection by design.
        "accepted": options.quantization.kind != "none" or comparison.parity.holds,
    }
    with explain_export_errors(folder):
        write_text(folder / SUMMARY_NAME, json.dumps(summary, indent=1) + "\n")
    if not summary["accepted"]:
        raise CheckpointError(
            f"{path}: {describe_difference(comparison.parity)}; do not deploy it; "
            f"details are in {folder / SUMMARY_NAME}"
        )
    return summary


def pick_compared_split(requested: str, manifest: Manifest, data_dir: str) -> str:
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
    config: DataConfig, manifest: Manifest, split: str, limit: int | None = None
) -> Iterator[tuple[GroundTruth, np.ndarray]]:
    """Yields the annotations and the uint8 [S, S, 3] pixels of the first `limit` records of a split.

    Raises:
      DataError: if there is no such split, or a record cannot be read.
    """
    for record in itertools.islice(read_split(config, manifest.split(split, config.dir)), limit):
        try:
            pixels = decode_jpeg(tf.constant(record.encoded), manifest.image_size).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise DataError(
                f"{config.dir}: image {record.source_id} of split {split} cannot be decoded: {first_line(error)}; "
                "prepare the data again"
            ) from None
        yield GroundTruth.from_record(record), pixels


def write_export(served: ServedDetector, options: ExportOptions, samples: list[np.ndarray], folder: Path) -> Path:
    """Writes the export into `folder`, with the files that its user needs, and returns its path.

    Args:
      served: the detector.
      options: the format, its outputs and its quantization.
      samples: uint8 [S, S, 3] images from which `int8` calibrates.
      folder: created if missing.

    Raises:
      UsageError: if the folder cannot be written.
    """
    path = folder / FILES[options.kind]
    with explain_export_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # The summary of an earlier export in this folder does not describe the new one.
        (folder / SUMMARY_NAME).unlink(missing_ok=True)
        if options.kind == "saved_model":
            write_saved_model(served, path)
        elif options.kind == "tflite":
            path.write_bytes(build_tflite(served, options, samples))
        elif options.kind == "onnx":
            write_onnx(served, path)
        else:
            write_openvino(served, options, samples, path)
        if options.outputs == "raw":
            np.save(folder / ANCHORS_NAME, served.decoder.anchors)
        if options.outputs == "postprocess_op":
            (folder / LABELS_NAME).write_text(write_labels(served.classes), encoding="utf-8")
        if options.outputs == "detection_output":
            (folder / LABELS_NAME).write_text(write_labels([BACKGROUND, *served.classes]), encoding="utf-8")
    return path


@contextmanager
def explain_export_errors(folder: Path) -> Iterator[None]:
    """Raises a UsageError if the export cannot be written in this context."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--output={folder}: cannot write the export: {error}; use a writable folder with free space"
        ) from None


def build_tflite(served: ServedDetector, options: ExportOptions, samples: list[np.ndarray]) -> bytes:
    """Returns the content of a TFLite file: the network, and as requested the detection op and the metadata."""
    content = convert_to_tflite(served, options.quantization, samples)
    if options.outputs == "postprocess_op":
        content = append_detection_op(content, served.decoder)
    if options.metadata is not None:
        threshold = served.decoder.eval_config.score_threshold
        content = add_metadata(content, served.classes, served.size, threshold, options.metadata)
    return content


def compare_with_checkpoint(
    model: tf_keras.Model,
    decoder: OutputDecoder,
    runner: Runner,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    options: ExportOptions,
    stages: StageLine = SILENT,
) -> Comparison:
    """Runs the checkpoint and the export on the same uint8 [S, S, 3] images and matches their detections.

    Args:
      model: the checkpoint's model.
      decoder: decodes the outputs of `model`.
      runner: the opened export.
      images: the images.
      names: the ids of the images.
      options: without quantization, differences that rounding explains are counted as undecided. A quantized export
        differs in every output, so all its differences are counted; the metrics show their cost.
      stages: shows the progress.
    """
    network = tf.function(lambda pixels: model(normalize_image(pixels), training=False))
    expected = detect_with_checkpoint(network, decoder, stages.track("run the checkpoint, images", images), names)
    found, latency = run_export(runner, stages.track("run the export, images", images), names, decoder)
    stages.show("compare the export with the checkpoint")
    tolerance = measure_tolerance(model, images) if options.quantization.kind == "none" else None

    def explain(index: int, lost: Detections, added: Detections) -> tuple[BoolArray, BoolArray]:
        assert tolerance is not None
        candidates = list_candidates(network(tf.constant(images[index][None])), decoder, tolerance, options.outputs)
        return explain_by_rounding(lost, added, found[index], candidates, decoder)

    raw = compare_raw_outputs(runner, network, images, tolerance) if options.outputs == "raw" else {}
    parity = compare_detections(expected, found, explain if tolerance else None, raw)
    return Comparison(expected, found, parity, latency)


def detect_with_checkpoint(
    network: Network, decoder: OutputDecoder, images: Iterable[np.ndarray], names: Sequence[str]
) -> list[Detections]:
    """Returns the detections of the checkpoint's network on each of the uint8 [S, S, 3] images."""
    return run_export(lambda image: network(tf.constant(image)), images, names, decoder)[0]
