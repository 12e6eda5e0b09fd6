"""Detects objects in image files and writes the results.

files -> decode, rotate upright, resize (core.images) -> batches -> detections -> images with boxes, COCO results, CSV,
  and annotations for labeling tools (preannotations.py)

Images are resized as prepare resizes them, but are not compressed as JPEG again.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.core.errors import UsageError
from ssd_dist.core.images import DRAWN_BOXES, ImageError
from ssd_dist.core.stage_line import SILENT, StageLine
from ssd_dist.core.storage import is_remote
from ssd_dist.evaluation.detections import Detections, select_detections
from ssd_dist.evaluation.result_files import CocoIds, open_result_files
from ssd_dist.evaluation.visualization import draw_boxes
from ssd_dist.inference.image_files import read_image
from ssd_dist.inference.loaded_detector import LoadedDetector
from ssd_dist.inference.preannotations import AnnotatedImage, check_stems, write_preannotations
from ssd_dist.inference.tiles import THREADS, count_images_per_batch, detect_images

# The longest side of a JPEG that libjpeg writes, in pixels.
MOST_JPEG_SIDE = 65_500


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


@explain_out_of_memory()
def predict_images(
    detector: LoadedDetector,
    files: Sequence[str],
    output: str,
    options: PredictionOutputs,
    stages: StageLine = SILENT,
    tiles: int = 1,
) -> tuple[int, int, list[tuple[str, str]]]:
    """Detects objects in image files and writes the results.

    Args:
      detector: the detector.
      files: the image files.
      output: the folder to write to; created if missing.
      options: what to write.
      stages: shows the progress.
      tiles: N; above 1, objects are also detected in N x N overlapping tiles of each image.

    Returns:
      Number of processed images, number of detections that reach the threshold of their class, and (file, reason) of
      the files that could not be read.

    Raises:
      UsageError: if `output` cannot be written, an image with boxes would replace a file beside one of `files`, or a
        format needs one file per image and two images would have the same one.
    """
    names = name_output_images(files)
    check_stems(options.formats, files)
    if options.draw_images:
        check_sources_are_kept(files, [Path(output) / name for name in names.values()])
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
            for batch in _read_batches(files, count_images_per_batch(detector.batch_size, tiles), pool, unreadable):
                drawing = []
                names_of_batch, images = zip(*batch, strict=True)
                detections = detect_images(detector, images, names_of_batch, tiles)
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


def check_sources_are_kept(files: Sequence[str], outputs: Sequence[Path]) -> None:
    """Checks that no file in the folder of a source would be replaced: it may be another image of the user.

    Raises:
      UsageError: if one would be.
    """
    folders = {Path(file).resolve().parent for file in files if not is_remote(file)}
    if replaced := [str(path) for path in outputs if path.resolve().parent in folders and path.exists()]:
        raise UsageError(
            f"--output: {replaced[0]} exists beside --images and would be overwritten ({len(replaced)} of "
            f"{len(outputs)} files); use another folder, or --nopictures"
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


def _draw_image(image: Image.Image, found: Detections, shown: np.ndarray, classes: Sequence[str], path: Path) -> None:
    drawn = draw_boxes(image, found.boxes[shown], found.labels[shown], classes, found.scores[shown])
    if max(drawn.size) > MOST_JPEG_SIDE:
        drawn.thumbnail((MOST_JPEG_SIDE, MOST_JPEG_SIDE))
    drawn.save(path, "JPEG", quality=92, comment=DRAWN_BOXES)
