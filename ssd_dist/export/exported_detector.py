"""Opens exports for `ssd-predict` and `ssd-evaluate`.

export.json, model -> runner (export.runtimes) -> outputs by name -> decoded if they are raw -> detections

A SavedModel runs whole batches; the files of the other formats run one image at a time.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.core.config import AnchorConfig, Config, EvalConfig
from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import CheckpointError, DataError, SsdDistError, first_line
from ssd_dist.core.folder_names import SUMMARY_NAME
from ssd_dist.core.manifest import Manifest
from ssd_dist.core.stage_line import SILENT, StageLine
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.export.export_folder import find_export_folder, read_input_size
from ssd_dist.export.exporter import ANCHORS_NAME, read_images
from ssd_dist.export.parity import read_outputs
from ssd_dist.export.runtimes import FILES, open_export
from ssd_dist.export.serving import OutputDecoder
from ssd_dist.inference.loaded_detector import LoadedDetector, detect_batch
from ssd_dist.model.postprocessing import DetectionBatch
from ssd_dist.runs.run_folder import read_run_folder

# Images per batch.
BATCH_SIZE = 16


def open_exported_detector(path: str | Path) -> LoadedDetector:
    """Opens an export of any format.

    Args:
      path: the folder of the export, a file in it, or a folder that contains it and no other export.

    Raises:
      CheckpointError: if there is no export or there are several, or the export cannot be opened.
    """
    try:
        folder = find_export_folder(path) or Path(path)
        summary = json.loads((folder / SUMMARY_NAME).read_text())
        kind, classes = summary["format"], tuple(summary["classes"])
        size = read_input_size(summary)
        nms = EvalConfig(**{name: summary["output"][name] for name in ("score_threshold", "nms_iou", "max_detections")})
        decoder = _read_decoder(folder, summary["output"], nms)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise _describe_damage(path, error) from None
    try:
        run = open_export(kind, folder / FILES[kind])
    except (SsdDistError, ImportError):
        raise
    except Exception as error:  # each runtime has its own error classes
        raise _describe_damage(path, error) from None

    def detect(images: tf.Tensor) -> DetectionBatch:
        pixels = np.asarray(images)
        # The batch size of a TFLite file and of an IR is 1, and so is that of an ONNX file with post-processing.
        parts = [pixels] if kind == "saved_model" else np.split(pixels, len(pixels))
        found = [read_outputs(run(part), decoder) for part in parts]
        return DetectionBatch(*(tf.concat(values, 0) for values in zip(*found, strict=True)))

    return LoadedDetector(size, BATCH_SIZE, classes, detect, nms)


def _describe_damage(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: not an export, or damaged ({first_line(error)}); create one with ssd-export")


def _read_decoder(folder: Path, output: dict[str, Any], nms: EvalConfig) -> OutputDecoder | None:
    """Returns the decoder of an export without post-processing, else None."""
    if "anchors" not in output:
        return None
    variances = {name: output[name] for name in ("center_variance", "size_variance")}
    return OutputDecoder(np.load(folder / ANCHORS_NAME), AnchorConfig(**variances), nms)


def check_image_size(folder: str, size: int, manifest: Manifest, data_dir: str) -> None:
    """Checks that data has the input size of an export.

    Raises:
      DataError: if it has another one.
    """
    if manifest.image_size != size:
        raise DataError(
            f"{data_dir} was prepared with image_size {manifest.image_size}, but {folder} takes {size}; prepare the "
            "data for this size into another --output"
        )


@explain_out_of_memory()
def evaluate_export(
    folder: str, model_dir: str, split: str, overrides: Sequence[str], stages: StageLine = SILENT
) -> tuple[Config, Manifest, list[GroundTruth], list[Detections]]:
    """Detects objects in a split of prepared data with an export.

    Args:
      folder: the folder of the export.
      model_dir: the run whose data is read; empty to use `data.dir` of `overrides`.
      split: name of the split.
      overrides: config keys to change, as `a.b=c`.
      stages: shows the progress.

    Returns:
      The config, the manifest of the data, and the ground truth and detections of all images of the split.

    Raises:
      CheckpointError: if the export cannot be opened, or its classes differ from the data's.
      DataError: if the data is missing, has no such split, or its image size differs from the export's.
      UsageError: if an override is not valid.
    """
    stages.show("open the export")
    config = read_run_folder(model_dir, overrides)[0] if model_dir else load_config(None, overrides)
    manifest = load_manifest(config.data)
    image_count = manifest.split(split, config.data.dir).images
    detector = open_exported_detector(folder)
    if tuple(manifest.classes) != detector.classes:
        raise CheckpointError(
            f"{folder} detects {', '.join(detector.classes)}; {config.data.dir} has {', '.join(manifest.classes)}; use "
            "data with the classes of the export: --set data.dir=OUT"
        )
    check_image_size(folder, detector.size, manifest, config.data.dir)
    ground_truths: list[GroundTruth] = []
    detections: list[Detections] = []
    images = read_images(config.data, manifest, split)
    stages.show(f"evaluate split {split}, images", image_count)
    while batch := list(itertools.islice(images, detector.batch_size)):
        ground_truths.extend(annotated for annotated, _ in batch)
        names = [annotated.source_id for annotated, _ in batch]
        detections.extend(detect_batch(detector, np.stack([pixels for _, pixels in batch]), names))
        stages.update(len(detections))
    return config, manifest, ground_truths, detections
