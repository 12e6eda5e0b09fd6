"""Writes the folder of a run whose model is not trained, for tests of the commands that read runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tf_keras
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.model.detector import build_detector
from ssd_dist.runs.checkpoints import BestModel
from ssd_dist.runs.run_folder import open_run_folder


def write_untrained_run(
    folder: Path, settings: dict[str, Any], change_weights: Callable[[tf_keras.Model], None]
) -> Path:
    """Writes `folder`/data with six validation images and `folder`/run with a best checkpoint; returns the run."""
    config = Config.model_validate(settings | {"data": {"dir": str(folder / "data")}})
    manifest = write_dataset(folder / "data", config, {"train": 2, "val": 6}, shards=1, objects=2)
    model = build_detector(config.model, config.backbone, config.anchors, len(manifest.classes))
    change_weights(model)
    open_run_folder(str(folder / "run"), config, manifest)
    BestModel(model, str(folder / "run"), "coco/AP", 1).save_if_best(5, 0.5)
    return folder / "run"
