"""Detections on loose image files, resized as prepare resizes them; the JPEG that prepare then writes is left out.

files -> decode, upright, resize (core.images) -> batches -> detections -> pictures, COCO results, CSV
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from rich.progress import track

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.core.errors import UsageError
from ssd_dist.core.images import ImageError, resize_image
from ssd_dist.evaluation.detections import Detections
from ssd_dist.evaluation.result_files import CocoIds, open_result_files
from ssd_dist.evaluation.visualization import draw_boxes
from ssd_dist.inference.image_files import is_remote, read_image
from ssd_dist.inference.trained_model import load_trained_model
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import DetectionBatch, create_anchor_tensor, detect
from ssd_dist.runs.run_folder import read_run_folder

# Decoding and drawing run beside each other: Pillow leaves the interpreter free while it works.
THREADS = 8


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


@dataclass(frozen=True)
class PredictionOutputs:
    """What is to be written of detections.

    Attributes:
      thresholds: float [C], the lowest score that is drawn and put into the table, by class.
      ids: what images and classes are called in the COCO results.
      pictures: whether the pictures are drawn.
    """

    thresholds: np.ndarray
    ids: CocoIds
    pictures: bool = True


def open_run(model_dir: str, checkpoint: str, overrides: Sequence[str]) -> LoadedDetector:
    """The detector of a run.

    Raises:
      CheckpointError: if there is no such model.
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
    detector: LoadedDetector, files: Sequence[str], output: str, wishes: PredictionOutputs
) -> tuple[int, int, list[tuple[str, str]]]:
    """Detects on `files` and writes what is wished into the folder `output`.

    Returns:
      How many images were looked at, how many detections are shown on them, and (file, reason) of those that could
      not be read.

    Raises:
      UsageError: if `output` cannot be written, or a picture would take the place of one of `files`.
    """
    names = name_output_images(files)
    if wishes.pictures:
        _spare_sources(files, [Path(output) / name for name in names.values()])
    unreadable: list[tuple[str, str]] = []
    looked_at = shown_count = 0
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        with (
            ThreadPoolExecutor(THREADS) as pool,
            open_result_files(output, detector.classes, wishes.ids) as results,
        ):
            for batch in _read_batches(files, detector.batch_size, pool, unreadable):
                squares = list(pool.map(lambda named: np.asarray(resize_image(named[1], detector.size)), batch))
                drawing = []
                for (name, image), found in zip(batch, _detect(detector, np.stack(squares), batch), strict=True):
                    shown = found.scores >= wishes.thresholds[found.labels - 1]
                    results.add(found, image.height, image.width, shown)
                    looked_at, shown_count = looked_at + 1, shown_count + int(shown.sum())
                    if wishes.pictures:
                        path = Path(output) / names[name]
                        drawing.append(pool.submit(_draw, image, found, shown, detector.classes, path))
                for done in drawing:
                    done.result()
    except OSError as error:
        raise UsageError(f"--output={output} cannot be written: {error}") from None
    return looked_at, shown_count, unreadable


def name_output_images(files: Sequence[str]) -> dict[str, str]:
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


def _spare_sources(files: Sequence[str], pictures: Sequence[Path]) -> None:
    sources = {Path(file).resolve() for file in files if not is_remote(file)}
    if lost := [str(picture) for picture in pictures if picture.resolve() in sources]:
        raise UsageError(
            f"--output: {lost[0]} is one of --images and would be overwritten ({len(lost)} of {len(files)}); "
            "name another folder, or give --nopictures"
        )


def _read_batches(
    files: Sequence[str], size: int, pool: ThreadPoolExecutor, unreadable: list[tuple[str, str]]
) -> Iterator[list[tuple[str, Image.Image]]]:
    def read(name: str) -> Image.Image | str:
        try:
            return read_image(name)
        except (ImageError, OSError) as error:
            return str(error)

    groups = [files[start : start + size] for start in range(0, len(files), size)]
    # Only as many pictures in memory as are in a batch.
    for group in track(groups, "detecting", transient=True, disable=len(groups) < 2):
        batch = []
        for name, image in zip(group, pool.map(read, group), strict=True):
            if isinstance(image, str):
                unreadable.append((name, image))
            else:
                batch.append((name, image))
        if batch:
            yield batch


def _detect(
    detector: LoadedDetector, squares: np.ndarray, batch: Sequence[tuple[str, Image.Image]]
) -> Iterator[Detections]:
    boxes, labels, scores = (part.numpy() for part in detector.detect(tf.constant(squares)))
    for row, (name, _) in enumerate(batch):
        count = int((scores[row] > 0).sum())
        yield Detections(name, boxes[row, :count], labels[row, :count].astype(np.int64), scores[row, :count])


def _draw(image: Image.Image, found: Detections, shown: np.ndarray, classes: Sequence[str], path: Path) -> None:
    drawn = draw_boxes(image, found.boxes[shown], found.labels[shown], classes, found.scores[shown])
    drawn.save(path, "JPEG", quality=92)
