"""Detects objects in image files and writes the results.

files -> decode, rotate upright, resize (core.images) -> batches -> detections -> images with boxes, COCO results, CSV,
  and annotations for labeling tools (preannotations.py)

Images are resized as prepare resizes them, but are not compressed as JPEG again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.core.errors import UsageError
from ssd_dist.core.images import ImageError, resize_image
from ssd_dist.core.stage_line import SILENT, StageLine
from ssd_dist.core.storage import is_remote
from ssd_dist.evaluation.detections import Detections, remove_padding, select_detections
from ssd_dist.evaluation.result_files import CocoIds, open_result_files
from ssd_dist.evaluation.visualization import draw_boxes
from ssd_dist.inference.image_files import read_image
from ssd_dist.inference.preannotations import AnnotatedImage, check_stems, write_preannotations
from ssd_dist.inference.trained_model import load_trained_model
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import DetectionBatch, create_anchor_tensor, detect
from ssd_dist.runs.run_folder import read_run_folder

# Threads decode and draw in parallel: Pillow releases the interpreter lock.
THREADS = 8


@dataclass(frozen=True)
class LoadedDetector:
    """A trained detector, loaded from a run or an export.

    Attributes:
      size: S, the input size in pixels.
      batch_size: images per batch.
      classes: class names; the first one has label 1.
      detect: maps images, uint8 [N, S, S, 3], to detections.
    """

    size: int
    batch_size: int
    classes: tuple[str, ...]
    detect: Callable[[tf.Tensor], DetectionBatch]


@dataclass(frozen=True)
class PredictionOutputs:
    """Which results to write.

    Attributes:
      thresholds: float [C], the minimum score per class of the boxes that are drawn and written to the CSV file.
      ids: ids of images and classes in the COCO results.
      draw_images: whether to write the images with their boxes.
      formats: formats of labeling tools to write, keys of `preannotations.FORMATS`.
    """

    thresholds: np.ndarray
    ids: CocoIds
    draw_images: bool = True
    formats: tuple[str, ...] = ()


def open_run(model_dir: str, checkpoint: str, overrides: Sequence[str]) -> LoadedDetector:
    """Loads the detector of a run.

    Args:
      model_dir: the run folder.
      checkpoint: "best", "last" or the path of a checkpoint.
      overrides: config keys to change, as `a.b=c`.

    Raises:
      CheckpointError: if the run or the checkpoint does not exist.
    """
    config, manifest = read_run_folder(model_dir, overrides)
    model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    anchors = create_anchor_tensor(config.anchors, config.model.input_size)

    @tf.function(reduce_retracing=True)
    def run_batch(images: tf.Tensor) -> DetectionBatch:
        return detect(model(normalize_image(images), training=False), anchors, config.anchors, config.eval)

    return LoadedDetector(config.model.input_size, config.eval.batch_size, tuple(manifest.classes), run_batch)


@explain_out_of_memory()
def predict_images(
    detector: LoadedDetector, files: Sequence[str], output: str, options: PredictionOutputs, stages: StageLine = SILENT
) -> tuple[int, int, list[tuple[str, str]]]:
    """Detects objects in image files and writes the results.

    Args:
      detector: the detector.
      files: the image files.
      output: the folder to write to; created if missing.
      options: what to write.
      stages: shows the progress.

    Returns:
      Number of processed images, number of detections that reach the threshold of their class, and (file, reason) of
      the files that could not be read.

    Raises:
      UsageError: if `output` cannot be written, an image with boxes would overwrite one of `files`, or a format needs
        one file per image and two images would have the same one.
    """
    names = name_output_images(files)
    check_stems(options.formats, files)
    if options.draw_images:
        _check_sources_are_kept(files, [Path(output) / name for name in names.values()])
    unreadable: list[tuple[str, str]] = []
    annotated: list[AnnotatedImage] = []
    processed = shown_count = 0
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        with (
            ThreadPoolExecutor(THREADS) as pool,
            open_result_files(output, detector.classes, options.ids) as results,
        ):
            stages.show("detect, images", len(files))
            for batch in _read_batches(files, detector.batch_size, pool, unreadable):
                resized = list(pool.map(lambda named: np.asarray(resize_image(named[1], detector.size)), batch))
                drawing = []
                detections = detect_batch(detector, np.stack(resized), [name for name, _ in batch])
                for (name, image), found in zip(batch, detections, strict=True):
                    shown = found.scores >= options.thresholds[found.labels - 1]
                    results.add(found, image.height, image.width, shown)
                    processed, shown_count = processed + 1, shown_count + int(shown.sum())
                    if options.formats:
                        drawn = select_detections(found, shown)
                        annotated.append(AnnotatedImage(name, image.height, image.width, drawn))
                    if options.draw_images:
                        path = Path(output) / names[name]
                        drawing.append(pool.submit(_draw_image, image, found, shown, detector.classes, path))
                for task in drawing:
                    task.result()
                stages.update(processed + len(unreadable))
        for kind in options.formats:
            write_preannotations(kind, output, annotated, detector.classes)
    except OSError as error:
        raise UsageError(
            f"--output={output} cannot be written: {error}; use a writable folder with free space"
        ) from None
    return processed, shown_count, unreadable


def name_output_images(files: Sequence[str]) -> dict[str, str]:
    """Returns the name of the image to write for each file; a number makes repeated names unique."""
    names: dict[str, str] = {}
    used: set[str] = set()
    for file in files:
        stem, number = Path(file).stem, 1
        while (name := f"{stem}.jpg" if number == 1 else f"{stem}_{number}.jpg") in used:
            number += 1
        used.add(name)
        names[file] = name
    return names


def _check_sources_are_kept(files: Sequence[str], outputs: Sequence[Path]) -> None:
    sources = {Path(file).resolve() for file in files if not is_remote(file)}
    if overwritten := [str(path) for path in outputs if path.resolve() in sources]:
        raise UsageError(
            f"--output: {overwritten[0]} is one of --images and would be overwritten ({len(overwritten)} of "
            f"{len(files)} files); use another folder, or --nopictures"
        )


def _read_batches(
    files: Sequence[str], size: int, pool: ThreadPoolExecutor, unreadable: list[tuple[str, str]]
) -> Iterator[list[tuple[str, Image.Image]]]:
    def read(name: str) -> Image.Image | str:
        try:
            return read_image(name)
        except (ImageError, OSError) as error:
            return str(error)

    chunks = [files[start : start + size] for start in range(0, len(files), size)]
    # Decodes one batch at a time, to limit memory.
    for chunk in chunks:
        batch = []
        for name, image in zip(chunk, pool.map(read, chunk), strict=True):
            if isinstance(image, str):
                unreadable.append((name, image))
            else:
                batch.append((name, image))
        if batch:
            yield batch


def detect_batch(detector: LoadedDetector, images: np.ndarray, names: Sequence[str]) -> Iterator[Detections]:
    """Yields the detections on images, uint8 [N, S, S, 3], with their ids `names`."""
    boxes, labels, scores = (part.numpy() for part in detector.detect(tf.constant(images)))
    for row, name in enumerate(names):
        yield remove_padding(name, boxes[row], labels[row], scores[row])


def _draw_image(image: Image.Image, found: Detections, shown: np.ndarray, classes: Sequence[str], path: Path) -> None:
    drawn = draw_boxes(image, found.boxes[shown], found.labels[shown], classes, found.scores[shown])
    drawn.save(path, "JPEG", quality=92)
