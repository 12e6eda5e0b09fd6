"""ImageNet's weights are downloaded whole or not at all, whoever else is at it; no network is needed here."""

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
    """Keras's cache of a user who has none yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".keras").mkdir()
    return tmp_path / ".keras" / "models"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves weights, the first half first; `meanwhile` is called in between. Returns what was asked for."""
    network = tf_keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, include_top=False, weights=None)
    network.save_weights(tmp_path / "served.h5")
    content, asked = (tmp_path / "served.h5").read_bytes(), []

    def serve(meanwhile) -> list[str]:
        def urlretrieve(origin, path, _=None) -> None:
            asked.append(origin)
            with open(path, "wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                if len(asked) == 1:
                    meanwhile()
                file.write(content[len(content) // 2 :])

        monkeypatch.setattr(data_utils, "urlretrieve", urlretrieve)
        return asked

    return serve


def test_two_workers_download_at_the_same_time(cache, server):
    others = []
    asked = server(lambda: others.append(build_backbone(IMAGENET, MODEL)))
    mine = build_backbone(IMAGENET, MODEL)
    for first, second in zip(mine.get_weights(), others[0].get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert len(asked) == 2
    # Keras finds it by the same name.
    build_backbone(IMAGENET, MODEL)
    assert len(asked) == 2
    assert [path.name for path in cache.iterdir()] == [asked[0].rsplit("/", 1)[1]]


def test_a_download_that_is_cut_off_leaves_no_file(cache, server):
    def end() -> None:
        raise ConnectionResetError("cut off")

    server(end)
    with pytest.raises(
        CheckpointError, match=r"cannot load the ImageNet weights of width 0\.35 \(cut off\); set backbone.weights"
    ):
        build_backbone(IMAGENET, MODEL)
    assert not list(cache.iterdir())
    build_backbone(IMAGENET, MODEL)


def test_a_damaged_file_is_named(cache, server):
    server(lambda: None)
    build_backbone(IMAGENET, MODEL)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"delete {path} if it is damaged"):
        build_backbone(IMAGENET, MODEL)


def test_a_width_that_imagenet_has_not_is_told_without_a_download(cache, server):
    asked = server(lambda: None)
    with pytest.raises(CheckpointError, match="alpha must be one of"):
        build_backbone(IMAGENET, MODEL.model_copy(update={"width": 0.4}))
    assert not asked
