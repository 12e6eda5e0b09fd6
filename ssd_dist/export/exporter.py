"""From a run to a file that others can run, with a card that says what it is and what it is worth."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.core.config import AmpConfig, Config
from ssd_dist.core.errors import CheckpointError, UsageError
from ssd_dist.core.manifest import TRAIN_SPLIT, Manifest
from ssd_dist.data.shard_files import load_manifest, read_split
from ssd_dist.evaluation.analysis import analyse_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.export.formats import CARD_NAME, FILES, open_export, write_onnx, write_saved_model, write_tflite
from ssd_dist.export.parity import compare_detections, detect_rippled, run_export
from ssd_dist.export.serving import ServedDetector
from ssd_dist.inference.trained_model import check_data_of_run, load_trained_model, locate_checkpoint
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import anchor_tensor, detect
from ssd_dist.runs.run_folder import read_run_folder

QUANTIZATIONS = {"saved_model": ("none",), "tflite": ("none", "fp16", "int8"), "onnx": ("none",)}
# Images that show int8 the ranges of its activations, and those an export is judged on at most.
CALIBRATION_IMAGES = 128
COMPARED_IMAGES = 500
METRICS = ("coco/AP", "coco/AP50", "voc/mAP")


@explain_out_of_memory()
def export_run(
    model_dir: str, checkpoint: str, kind: str, quantize: str, postprocess: bool | None, output: str,
    overrides: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Writes the export and its card, both judged on the images of the run's evaluation split.

    Args:
      model_dir: the run.
      checkpoint: `best`, `last` or a path.
      kind: `saved_model`, `tflite` or `onnx`.
      quantize: `none`, `fp16` or `int8`.
      postprocess: whether boxes are decoded and suppressed in the graph; None for what suits the format.
      output: a folder.
      overrides: `a.b=c` for the run's config.

    Returns:
      The card.

    Raises:
      UsageError: for what the format does not have, or a folder that cannot be written.
      CheckpointError: if there is no such model, or the export does not reproduce it.
      DataError: if the run's data is not at hand.
    """
    postprocess = choose_postprocessing(kind, quantize, postprocess)
    config, manifest = read_run_folder(model_dir, overrides)
    # Exports compute in float32, and are compared with a checkpoint that does.
    config = config.model_copy(update={"amp": AmpConfig()})
    data = load_manifest(config.data)
    check_data_of_run(config, data, manifest, model_dir)
    truths, images = read_images(config, data, pick_split(config, data), COMPARED_IMAGES)
    model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    served = ServedDetector(model, config, manifest.classes, postprocess)
    folder = Path(output)
    path = folder / FILES[kind]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "saved_model":
            write_saved_model(served, path)
        elif kind == "tflite":
            samples = read_images(config, data, TRAIN_SPLIT, CALIBRATION_IMAGES)[1] if quantize == "int8" else []
            write_tflite(served, path, quantize, samples)
        else:
            write_onnx(served, path)
        if not postprocess:
            np.save(folder / "anchors.npy", anchor_tensor(config).numpy())
    except OSError as error:
        raise UsageError(f"--output={output} cannot be written: {error}") from None

    names = [truth.source_id for truth in truths]
    before = _detect_by_checkpoint(model, config, images, names)
    after, latency = run_export(open_export(kind, path), images, names, config)
    network = tf.function(lambda pixels: model(normalize_image(pixels), training=False))

    def ripple(number: int) -> list[Detections]:
        # Quantised numbers differ everywhere, which is no rounding: their metrics say what it costs.
        return detect_rippled(network, images[number], names[number], config) if quantize == "none" else []

    parity = compare_detections(before, after, ripple)
    judged = {when: _judge(truths, found, manifest) for when, found in (("checkpoint", before), ("export", after))}
    batch = "1" if kind == "tflite" or (kind == "onnx" and postprocess) else "N"
    card = {
        "format": kind,
        "quantize": quantize,
        "file": FILES[kind],
        "bytes": _size_of(path),
        "checkpoint": locate_checkpoint(model_dir, checkpoint),
        "input": f"uint8 [{batch}, {served.size}, {served.size}, 3], RGB",
        "output": _describe_output(config, postprocess),
        "classes": list(manifest.classes),
        "metrics": judged,
        "operating_points": analyse_detections(truths, after, manifest.classes).as_dict()["operating_points"],
        "parity": dataclasses.asdict(parity),
        "milliseconds_an_image_here": latency,
    }
    (folder / CARD_NAME).write_text(json.dumps(card, indent=1) + "\n")
    if quantize == "none" and not parity.holds:
        raise CheckpointError(
            f"{path} misses {parity.missing} of the checkpoint's {parity.detections} detections and has "
            f"{parity.surplus} that it has not: do not ship it; "
            f"see {folder / CARD_NAME}"
        )
    return card


def choose_postprocessing(kind: str, quantize: str, wanted: bool | None) -> bool:
    """Whether detections are made in the graph; int8 leaves them outside, where they stay exact.

    Raises:
      UsageError: for a combination that there is not.
    """
    if quantize not in QUANTIZATIONS[kind]:
        raise UsageError(f"--quantize={quantize} is for tflite; --format={kind} has {', '.join(QUANTIZATIONS[kind])}")
    if quantize == "int8" and wanted:
        raise UsageError("--quantize=int8 cannot hold box decoding in 8 bits; leave --postprocessing away")
    return quantize != "int8" if wanted is None else wanted


def pick_split(config: Config, data: Manifest) -> str:
    """The split to judge on: the run's evaluation split; without one another than the trained one, else that.

    Raises:
      DataError: if the run names a split that is not there.
    """
    others = [name for name in data.splits if name != TRAIN_SPLIT]
    return data.eval_split(config.eval.split, config.data.dir) or (others or list(data.splits))[0]


def read_images(config: Config, data: Manifest, split: str, limit: int) -> tuple[list[GroundTruth], list[np.ndarray]]:
    """Annotations and uint8 [S, S, 3] pixels of the first `limit` records of a split."""
    truths, images = [], []
    for record in read_split(config.data, data.split(split, config.data.dir)):
        if len(images) == limit:
            break
        truths.append(GroundTruth(record.source_id, record.original_height, record.original_width, record.objects))
        images.append(tf.io.decode_jpeg(record.encoded, channels=3, dct_method="INTEGER_ACCURATE").numpy())
    return truths, images


def _detect_by_checkpoint(
    model, config: Config, images: Sequence[np.ndarray], names: Sequence[str]
) -> list[Detections]:
    anchors = anchor_tensor(config)

    @tf.function
    def run(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return detect(model(normalize_image(pixels), training=False), anchors, config.anchors, config.eval)._asdict()

    found, _ = run_export(lambda image: run(tf.constant(image)), images, names, config)
    return found


def _judge(truths: Sequence[GroundTruth], found: Sequence[Detections], manifest: Manifest) -> dict[str, float | None]:
    metrics = evaluate_detections(truths, found, manifest.classes).as_dict()
    return {name: metrics[name] for name in METRICS}


def _size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def _describe_output(config: Config, postprocess: bool) -> dict[str, Any]:
    suppression = {
        "score_threshold": config.eval.score_threshold,
        "nms_iou": config.eval.nms_iou,
        "max_detections": config.eval.max_detections,
    }
    if postprocess:
        return {
            "boxes": "float32 [N, D, 4]: ymin, xmin, ymax, xmax in 0..1",
            "labels": "int32 [N, D], 1-based; 0 is padding",
            "scores": "float32 [N, D], best first",
            **suppression,
        }
    return {
        "logits": "float32 [N, A, C + 1], class 0 is background",
        "offsets": "float32 [N, A, 4]: ty, tx, th, tw",
        "anchors": "anchors.npy, float32 [A, 4]: ymin, xmin, ymax, xmax in 0..1",
        "center_variance": config.anchors.center_variance,
        "size_variance": config.anchors.size_variance,
        **suppression,
    }
