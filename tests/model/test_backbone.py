"""Downloads of the ImageNet weights are complete or leave no file, with concurrent workers too. Uses no network."""

from pathlib import Path

import numpy as np
import pytest
import tf_keras
from tf_keras.src.utils import data_utils

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
    (tmp_path / ".keras").mkdir()
    return tmp_path / ".keras" / "models"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Replaces the download; calls `meanwhile` after the first half of the file. Returns the list of requested URLs."""
    network = tf_keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, include_top=False, weights=None)
    network.save_weights(tmp_path / "served.h5")
    content, requested = (tmp_path / "served.h5").read_bytes(), []

    def serve(meanwhile) -> list[str]:
        def urlretrieve(origin, path, _=None) -> None:
            requested.append(origin)
            with open(path, "wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                if len(requested) == 1:
                    meanwhile()
                file.write(content[len(content) // 2 :])

        monkeypatch.setattr(data_utils, "urlretrieve", urlretrieve)
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
    assert [path.name for path in cache.iterdir()] == [requested[0].rsplit("/", 1)[1]]


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
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"delete {path} if it is damaged"):
        build_backbone(IMAGENET, MODEL)


def test_unavailable_width_is_reported_without_a_download(cache, server):
    requested = server(lambda: None)
    with pytest.raises(CheckpointError, match="alpha must be one of"):
        build_backbone(IMAGENET, MODEL.model_copy(update={"width": 0.4}))
    assert not requested
