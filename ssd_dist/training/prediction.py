"""Detections on loose image files, with the very pixels that prepare would have made of them.

files -> decode, upright, resize (core.images) -> batches -> detections -> pictures and COCO results
"""

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from ssd_dist.core.errors import UsageError
from ssd_dist.core.images import ImageError, decode_image, resize_image
from ssd_dist.evaluation.detections import Detections, coco_boxes
from ssd_dist.evaluation.pictures import draw_boxes
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import DetectionBatch, anchor_tensor, detect
from ssd_dist.training.inference import load_trained_model
from ssd_dist.training.run_folder import read_run_folder

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def find_images(pattern: str) -> list[str]:
    """The files that a path, a folder or a glob pattern means, sorted; of a folder the image files."""
    if Path(pattern).is_dir():
        return sorted(str(path) for path in Path(pattern).iterdir() if path.suffix.lower() in SUFFIXES)
    return sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())


@dataclass(frozen=True)
class LoadedDetector:
    """A model ready to look at pictures.

    Attributes:
      size: S, the side of its input.
      batch_size: pictures it is given at once.
      classes: their names, label 1 first.
      detect: uint8 [N, S, S, 3] to detections.
    """

    size: int
    batch_size: int
    classes: tuple[str, ...]
    detect: Callable[[tf.Tensor], DetectionBatch]


def open_run(model_dir: str, checkpoint: str, overrides: Sequence[str]) -> LoadedDetector:
    """The detector of a run.

    Raises:
      CheckpointError: if there is no such model.
    """
    config, manifest = read_run_folder(model_dir, overrides)
    model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    anchors = anchor_tensor(config)

    @tf.function
    def run_batch(images: tf.Tensor) -> DetectionBatch:
        return detect(model(normalize_image(images), training=False), anchors, config.anchors, config.eval)

    return LoadedDetector(config.model.input_size, config.eval.batch_size, tuple(manifest.classes), run_batch)


def predict_images(
    detector: LoadedDetector, files: Sequence[str], output: str, threshold: float
) -> tuple[int, list[tuple[str, str]]]:
    """Detects on `files`; returns how many pictures were written and (file, reason) of those that could not be read.

    Raises:
      UsageError: if `output` cannot be written.
    """
    names = _output_names(files)
    results: list[dict[str, Any]] = []
    unreadable: list[tuple[str, str]] = []
    written = 0
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        for batch in _batches(files, detector.batch_size, unreadable):
            squares = np.stack([np.asarray(resize_image(image, detector.size)) for _, image in batch])
            found = tf.nest.map_structure(lambda value: value.numpy(), detector.detect(tf.constant(squares)))
            for row, (name, image) in enumerate(batch):
                count = int((found.scores[row] > 0).sum())
                detections = Detections(
                    name,
                    found.boxes[row, :count],
                    found.labels[row, :count].astype(np.int64),
                    found.scores[row, :count],
                )
                results += _results(detections, image, detector.classes)
                shown = detections.scores >= threshold
                drawn = draw_boxes(
                    image,
                    detections.boxes[shown],
                    detections.labels[shown],
                    detector.classes,
                    detections.scores[shown],
                )
                drawn.save(Path(output) / names[name], "JPEG", quality=92)
                written += 1
        (Path(output) / "detections.json").write_text(json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"--output={output} cannot be written: {error}") from None
    return written, unreadable


def _batches(
    files: Sequence[str], size: int, unreadable: list[tuple[str, str]]
) -> Iterator[list[tuple[str, Image.Image]]]:
    batch: list[tuple[str, Image.Image]] = []
    for name in files:
        try:
            batch.append((name, decode_image(Path(name).read_bytes())))
        except (ImageError, OSError) as error:
            unreadable.append((name, str(error)))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _output_names(files: Sequence[str]) -> dict[str, str]:
    """A name for each picture; files of equal names in different folders get a number."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for file in files:
        stem, number = Path(file).stem, 1
        while (name := f"{stem}.jpg" if number == 1 else f"{stem}_{number}.jpg") in taken:
            number += 1
        taken.add(name)
        names[file] = name
    return names


def _results(detections: Detections, image: Image.Image, classes: Sequence[str]) -> list[dict[str, Any]]:
    boxes = coco_boxes(detections.boxes, image.height, image.width)
    return [
        {
            "image_id": detections.source_id,
            "category_id": label,
            "category": classes[label - 1],
            "bbox": box,
            "score": score,
        }
        for box, label, score in zip(boxes, detections.labels.tolist(), detections.scores.tolist(), strict=True)
    ]
