"""`ssd-inspect --data=OUT --fit_anchors=FILE.yaml` writes a base config whose anchors fit the objects of the data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.synthetic import write_dataset

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import Config, DataConfig
from ssd_dist.core.config_files import load_config
from ssd_dist.data.shard_files import read_split


def fitted_share(boxes: np.ndarray, config: Config) -> float:
    """Returns the share of boxes [N, 4] that overlap an anchor by more than `positive_iou`."""
    overlaps = iou_matrix(boxes, generate_anchors(config.anchors, config.model.input_size))
    return float((overlaps.max(axis=1) > config.matching.positive_iou).mean())


@pytest.mark.slow
def test_the_file_is_a_base_whose_anchors_fit_more_objects(tmp_path: Path) -> None:
    # Anchors of at least half the image, for objects of at least a fifth of it.
    sizes = {"sizes": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.05)}
    config = Config.model_validate({"model": {"input_size": 64}, "anchors": sizes})
    manifest = write_dataset(tmp_path / "data", config, {"train": 12, "val": 2}, shards=2, objects=2)
    fitted = tmp_path / "fitted.yaml"
    flags = [f"--data={tmp_path / 'data'}", f"--fit_anchors={fitted}", f"--output={tmp_path / 'report.html'}"]
    done = subprocess.run(
        [sys.executable, "-m", "ssd_dist.cli.inspect", *flags],
        capture_output=True, text=True, timeout=280, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (tmp_path / "mine.yaml").write_text("extends: fitted.yaml\nmodel: {input_size: 64}\ntrain: {epochs: 3}\n")
    mine = load_config(tmp_path / "mine.yaml")
    # The file contains only anchors.
    assert mine == Config.model_validate(
        {"model": {"input_size": 64}, "train": {"epochs": 3}, "anchors": mine.anchors.model_dump()}
    )
    records = read_split(DataConfig(dir=str(tmp_path / "data")), manifest.splits["train"])
    boxes = np.concatenate([record.objects.boxes for record in records])
    before, after = fitted_share(boxes, config), fitted_share(boxes, mine)
    assert len(boxes) == 24
    assert before < 0.7
    assert after > 0.9
    assert f"{fitted}: the fitted anchors fit {after:.1%} of the objects" in done.stdout
    assert f"the anchors of the dataset fit {before:.1%}" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 0
