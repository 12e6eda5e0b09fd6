"""Detects objects in a video file or in the images of a webcam, and writes a video with boxes.

frames (OpenCV) -> batches -> detections -> OUT/NAME.mp4 with boxes, detections.csv and detections.json with one entry
per frame: `NAME.avi#12` is the frame with index 12
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.file_kinds import WEBCAM
from ssd_dist.core.stage_line import SILENT, StageLine
from ssd_dist.evaluation.detections import select_detections
from ssd_dist.evaluation.result_files import open_result_files
from ssd_dist.evaluation.visualization import draw_boxes
from ssd_dist.inference.loaded_detector import LoadedDetector
from ssd_dist.inference.prediction import PredictionOutputs, check_sources_are_kept
from ssd_dist.inference.tiles import count_images_per_batch, detect_images

# Frames per second of a video whose file, or a camera whose driver, states none.
DEFAULT_RATE = 25.0


@explain_out_of_memory()
def predict_video(
    detector: LoadedDetector,
    source: str,
    output: str,
    options: PredictionOutputs,
    stages: StageLine = SILENT,
    tiles: int = 1,
) -> tuple[int, int, str | None]:
    """Detects objects in every frame; a webcam is read until Ctrl-C.

    Args:
      detector: the detector.
      source: a local video file, or `webcam:N` for the camera with index N.
      output: the folder to write to; created if missing.
      options: what to write.
      stages: shows the progress.
      tiles: N; above 1, objects are also detected in N x N overlapping tiles of each frame.

    Returns:
      Number of frames, number of detections that reach the threshold of their class, and the path of the video with
      boxes, if one was written.

    Raises:
      DataError: if the video or the camera cannot be opened.
      UsageError: if `output` cannot be written, or the video with boxes would replace a file beside the source.
    """
    is_webcam = source.startswith(WEBCAM)
    name = source.replace(":", "") if is_webcam else Path(source).name
    path = Path(output) / f"{Path(name).stem}.mp4"
    if options.draw_images and not is_webcam:
        check_sources_are_kept([source], [path])
    frames = shown_count = 0
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        with (
            _open_capture(source) as (capture, rate, total),
            _open_writer(path if options.draw_images else None, rate) as write,
            open_result_files(output, detector.classes, options.ids) as results,
            _note_interrupts() as interrupts,
        ):
            stages.show("detect, frames", total)
            at_once = 1 if is_webcam else count_images_per_batch(detector.batch_size, tiles)
            for batch in _read_batches(capture, at_once, interrupts):
                names = [f"{name}#{frames + index}" for index in range(len(batch))]
                for image, found in zip(batch, detect_images(detector, batch, names, tiles), strict=True):
                    shown = found.scores >= options.thresholds[found.labels - 1]
                    shown_count += int(shown.sum())
                    results.add(found, image.height, image.width, shown)
                    if options.draw_images:
                        drawn = select_detections(found, shown)
                        write(draw_boxes(image, drawn.boxes, drawn.labels, detector.classes, drawn.scores))
                frames += len(batch)
                stages.update(frames)
    except OSError as error:
        raise UsageError(
            f"--output={output} cannot be written: {error}; use a writable folder with free space"
        ) from None
    if not frames:
        raise DataError(f"--images={source}: no frame could be read; convert the video to another format")
    return frames, shown_count, str(path) if options.draw_images else None


@contextmanager
def _open_capture(source: str) -> Iterator[tuple[Any, float, int | None]]:
    """Opens a video; yields it with its frames per second and, for a file, its number of frames."""
    import cv2

    index = source.removeprefix(WEBCAM)
    if source.startswith(WEBCAM) and not index.isdecimal():
        raise UsageError(f"--images={source}: expected the index of a camera, e.g. webcam:0")
    capture = cv2.VideoCapture(int(index) if source.startswith(WEBCAM) else source)
    try:
        if not capture.isOpened():
            fix = "connect a camera" if source.startswith(WEBCAM) else "check the path, or convert it to another format"
            raise DataError(f"--images={source}: the video cannot be opened; {fix}")
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        yield capture, capture.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE, count if count > 0 else None
    finally:
        capture.release()


@contextmanager
def _note_interrupts() -> Iterator[list[int]]:
    """Yields a list to which Ctrl-C adds an item, so that the frame in work is finished; a second one raises."""
    interrupts: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if interrupts:
            signal.default_int_handler(number, frame)
        interrupts.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _read_batches(capture: Any, size: int, interrupts: Sequence[int]) -> Iterator[list[Image.Image]]:
    """Yields the frames in RGB until the end of the video, or until `interrupts` is not empty."""
    batch: list[Image.Image] = []
    while not interrupts and (frame := capture.read()[1]) is not None:
        # OpenCV's order of colors is blue, green, red.
        batch.append(Image.fromarray(np.ascontiguousarray(frame[..., ::-1])))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _open_writer(path: Path | None, rate: float) -> Iterator[Any]:
    """Yields a function that appends an image to the video `path`; the first image sets its size."""
    import cv2

    writers: list[Any] = []

    def write(image: Image.Image) -> None:
        if not writers:
            writers.append(cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, image.size))
            if not writers[0].isOpened():
                raise OSError(f"OpenCV cannot write {path}")
        writers[0].write(np.ascontiguousarray(np.asarray(image)[..., ::-1]))

    try:
        yield write
    finally:
        for writer in writers:
            writer.release()
