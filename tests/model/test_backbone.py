"""Downloads of the ImageNet weights are complete or leave no file, with concurrent workers too. Uses no network."""

import base64
import hashlib
import io
import urllib.request
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import tf_keras

from ssd_dist.core.config import BackboneConfig, ModelConfig
from ssd_dist.core.errors import CheckpointError
from ssd_dist.model.backbone import build_backbone

pytestmark = pytest.mark.slow

IMAGENET = BackboneConfig(weights="imagenet")
MODEL = ModelConfig(width=0.35, input_size=96)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Returns the path of Keras's cache in an empty home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".keras" / "models"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Replaces the download; calls `meanwhile` after the first half of the file. Returns the list of requested URLs."""
    network = tf_keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, include_top=False, weights=None)
    network.save_weights(tmp_path / "served.h5")
    content, requested = (tmp_path / "served.h5").read_bytes(), []

    def serve(meanwhile) -> list[str]:
        class Response(io.BytesIO):
            def __init__(self, is_first: bool) -> None:
                super().__init__(content)
                self.is_first, self.sent = is_first, 0
                self.headers = Message()
                self.headers["Content-Length"] = str(len(content))
                self.headers["x-goog-hash"] = "crc32c=AAAAAA=="
                md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
                self.headers["x-goog-hash"] = f"md5={md5}"

            def read(self, size=-1) -> bytes:
                data = super().read(size)
                self.sent += len(data)
                if self.is_first and self.sent > len(content) // 2:
                    self.is_first = False
                    meanwhile()
                return data

        def urlopen(origin, timeout) -> Response:
            requested.append(origin)
            assert timeout > 0
            return Response(is_first=len(requested) == 1)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return requested

    return serve


def test_two_workers_download_at_the_same_time(cache, server):
    others = []
    requested = server(lambda: others.append(build_backbone(IMAGENET, MODEL)))
    ours = build_backbone(IMAGENET, MODEL)
    for first, second in zip(ours.get_weights(), others[0].get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert len(requested) == 2
    # Keras finds the file under its own name.
    build_backbone(IMAGENET, MODEL)
    assert len(requested) == 2
    name = requested[0].rsplit("/", 1)[1]
    assert sorted(path.name for path in cache.iterdir()) == [name, f"{name}.sha256"]


def test_interrupted_download_leaves_no_file(cache, server):
    def disconnect() -> None:
        raise ConnectionResetError("cut off")

    server(disconnect)
    with pytest.raises(
        CheckpointError, match=r"cannot load the ImageNet weights of width 0\.35 \(cut off\); set backbone.weights"
    ):
        build_backbone(IMAGENET, MODEL)
    assert not list(cache.iterdir())
    build_backbone(IMAGENET, MODEL)


def test_damaged_file_is_reported(cache, server):
    server(lambda: None)
    build_backbone(IMAGENET, MODEL)
    (path,) = cache.glob("*.h5")
    content = path.read_bytes()
    # Also a file that is valid but not the one that was downloaded.
    for change in (content[:1000], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(change)
        with pytest.raises(CheckpointError, match=f"delete {path} if it is damaged"):
            build_backbone(IMAGENET, MODEL)


@pytest.mark.parametrize(
    ("header", "value", "words"),
    [("Content-Length", "7", "instead of 7"), ("x-goog-hash", "crc32c=AAAAAA==,md5=AAAA", "does not have the MD5")],
)
def test_a_download_that_is_not_what_the_storage_states_is_rejected(cache, monkeypatch, header, value, words):
    response = io.BytesIO(b"weights")
    response.headers = Message()
    response.headers[header] = value
    if header == "Content-Length":
        response.write(b"longer weights")
        response.seek(0)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: response)
    with pytest.raises(CheckpointError, match=words):
        build_backbone(IMAGENET, MODEL)
    assert not list(cache.iterdir())


def test_a_home_that_is_not_writable_is_reported(tmp_path, server, monkeypatch):
    requested = server(lambda: None)
    # A file, because root may write to every folder.
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(CheckpointError, match=r"set backbone\.weights to the path of a weight file"):
        build_backbone(IMAGENET, MODEL)
    assert not requested


def test_unavailable_width_is_reported_without_a_download(cache, server):
    requested = server(lambda: None)
    with pytest.raises(CheckpointError, match=r"model\.width 0\.4; it must be one of 0\.35, 0\.5"):
        build_backbone(IMAGENET, MODEL.model_copy(update={"width": 0.4}))
    assert not requested
