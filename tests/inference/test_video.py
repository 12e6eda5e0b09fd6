"""Prediction on videos: every frame is detected in RGB, and the written video has the same frames with boxes."""

import csv
import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ssd_dist.core.config import EvalConfig
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.evaluation.result_files import CocoIds
from ssd_dist.inference import video
from ssd_dist.inference.loaded_detector import LoadedDetector
from ssd_dist.inference.prediction import PredictionOutputs
from ssd_dist.inference.video import predict_video
from ssd_dist.model.postprocessing import DetectionBatch

cv2 = pytest.importorskip("cv2")

FRAMES, WIDTH, HEIGHT = 5, 64, 48
OUTPUTS = PredictionOutputs(np.array([0.5]), CocoIds((1,)))


@pytest.fixture
def detector() -> LoadedDetector:
    """Detects an object in the left half; its score is the mean of the red channel."""

    def detect(images):
        red = images.numpy()[..., 0].mean(axis=(1, 2)) / 255
        boxes = np.tile(np.float32([[[0, 0, 1, 0.5]]]), (len(red), 1, 1))
        labels, scores = np.ones((len(red), 1), np.int32), red[:, None].astype(np.float32)
        return DetectionBatch(*map(tf.constant, (boxes, labels, scores)))

    return LoadedDetector(16, 2, ("ball",), detect, EvalConfig())


def write_video(path: Path) -> str:
    """Writes frames whose red value is 0, 50, 100, 150, 200, with blue 255."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for number in range(FRAMES):
        frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        frame[..., 0], frame[..., 2] = 255, 50 * number
        writer.write(frame)
    writer.release()
    return str(path)


def test_every_frame_is_detected_and_written(detector, tmp_path) -> None:
    source = write_video(tmp_path / "clip.avi")
    frames, shown, path = predict_video(detector, source, str(tmp_path / "out"), OUTPUTS)
    assert (frames, shown, path) == (5, 2, str(tmp_path / "out" / "clip.mp4"))
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    # The first frame has a score of about 0, which is no detection or one without weight.
    assert [row["image_id"] for row in results][-4:] == [f"clip.avi#{number}" for number in range(1, 5)]
    np.testing.assert_allclose([row["score"] for row in results[-4:]], np.arange(1, 5) * 50 / 255, atol=0.05)
    table = list(csv.DictReader((tmp_path / "out" / "detections.csv").read_text().splitlines()))
    assert [(row["filename"], row["class"]) for row in table[3:]] == [("clip.avi#3", "ball"), ("clip.avi#4", "ball")]
    capture = cv2.VideoCapture(path)
    assert (capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (10, FRAMES)
    written = [capture.read()[1] for _ in range(FRAMES)]
    assert written[0].shape == (HEIGHT, WIDTH, 3)
    # The right half is unchanged: blue, and more red from frame to frame. The box is drawn in the left half.
    right = [frame[:, WIDTH // 2 + 8 :].mean(axis=(0, 1)) for frame in written]
    assert all(blue > 200 for blue, _, _ in right)
    np.testing.assert_allclose([red for _, _, red in right], np.arange(FRAMES) * 50, atol=25)
    # The color of the first class has no blue.
    assert written[4][:, 0, 0].mean() < 120 < written[0][:, 0, 0].mean()


def test_without_drawing_no_video_is_written(detector, tmp_path) -> None:
    outputs = PredictionOutputs(np.array([0.5]), CocoIds((1,)), draw_images=False)
    assert predict_video(detector, write_video(tmp_path / "clip.avi"), str(tmp_path / "out"), outputs)[2] is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.csv", "detections.json"]


def test_a_webcam_is_read_until_ctrl_c(detector, tmp_path, monkeypatch) -> None:
    class Camera:
        left = 3

        def __init__(self, index):
            assert index == 1

        def isOpened(self):  # noqa: N802
            return True

        def get(self, key):
            return 0.0

        def read(self):
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
            return True, np.full((HEIGHT, WIDTH, 3), 200, np.uint8)

        def release(self):
            self.left = 0

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    frames, shown, path = predict_video(detector, "webcam:1", str(tmp_path), OUTPUTS)
    assert (frames, shown, path) == (3, 3, str(tmp_path / "webcam1.mp4"))
    assert (tmp_path / "webcam1.mp4").stat().st_size > 0


@pytest.mark.parametrize("place", ["detect_images", "draw_boxes"])
def test_ctrl_c_finishes_the_frames_in_work_and_keeps_the_results(detector, tmp_path, monkeypatch, place) -> None:
    calls = []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    original = getattr(video, place)
    monkeypatch.setattr(video, place, interrupt)
    before = signal.getsignal(signal.SIGINT)
    # Two frames at once: the second call is for the second batch, or for the second frame.
    frames, _, _ = predict_video(detector, write_video(tmp_path / "clip.avi"), str(tmp_path / "out"), OUTPUTS)
    assert frames == {"detect_images": 4, "draw_boxes": 2}[place]
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["image_id"] for row in results][-1] == f"clip.avi#{frames - 1}"
    assert (tmp_path / "out" / "clip.mp4").stat().st_size > 0
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_the_command(detector, tmp_path, monkeypatch) -> None:
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(video, "detect_images", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict_video(detector, write_video(tmp_path / "clip.avi"), str(tmp_path / "out"), OUTPUTS)


def test_frames_are_detected_in_tiles(detector, tmp_path) -> None:
    calls = []

    def detect(images):
        calls.append(len(images))
        # The middle of each part, which no edge cuts.
        return detector.detect(images)._replace(boxes=tf.tile([[[0.25, 0.25, 0.75, 0.75]]], [len(images), 1, 1]))

    tiled = dataclasses.replace(detector, detect=detect)
    frames, shown, _ = predict_video(tiled, write_video(tmp_path / "clip.avi"), str(tmp_path / "out"), OUTPUTS, tiles=2)
    # Each frame and its four tiles, whose middles overlap by less than half. Two frames reach the threshold.
    assert (frames, sum(calls), shown) == (FRAMES, 5 * FRAMES, 5 * 2)


def test_videos_that_cannot_be_read_are_refused_in_one_line(detector, tmp_path) -> None:
    (tmp_path / "text.avi").write_text("no video")
    for source, kind, reason in (
        (str(tmp_path / "gone.avi"), DataError, "cannot be opened; check the path"),
        (str(tmp_path / "text.avi"), DataError, "cannot be opened|no frame"),
        ("webcam:front", UsageError, "index of a camera"),
        ("webcam:99", DataError, "connect a camera"),
    ):
        with pytest.raises(kind, match=reason):
            predict_video(detector, source, str(tmp_path / "out"), OUTPUTS)
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"kept")
    for video_file in (source, Path(write_video(tmp_path / "clip.avi"))):
        with pytest.raises(UsageError, match="would be overwritten"):
            predict_video(detector, str(video_file), str(tmp_path), OUTPUTS)
    assert source.read_bytes() == b"kept"
