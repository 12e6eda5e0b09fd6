"""Prepares shards of generated images for the benchmarks, with the public commands."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config

BATCH = 16
SETTINGS = ["backbone.weights=none", f"train.global_batch_size={BATCH}", "train.steps=100000"]


@contextmanager
def generated_shards(images: int = 256) -> Iterator[tuple[Path, Config]]:
    """Yields a temporary folder with `bench.yaml` and `data/`, and the matching config."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        _run("toyset.sample", f"--output={folder / 'raw'}", f"--train={images}", "--val=16")
        yield folder, prepare_shards(folder)


def prepare_shards(folder: Path) -> Config:
    """Prepares the split `train` of the COCO dataset in `folder/raw` and returns its config."""
    (folder / "bench.yaml").write_text("{}")
    _run(
        "pipelines.prepare", "--input_format=coco", f"--input={folder / 'raw'}", "--split=train",
        f"--output={folder / 'data'}", f"--config={folder / 'bench.yaml'}",
    )  # fmt: skip
    return load_config(folder / "bench.yaml", [*SETTINGS, f"data.dir={folder / 'data'}"])


def _run(module: str, *flags: str) -> None:
    subprocess.run([sys.executable, "-m", module, *flags], check=True, stdout=subprocess.DEVNULL)


def with_online_targets(config: Config) -> Config:
    """Returns the config with `data.targets: online`."""
    return config.model_copy(update={"data": config.data.model_copy(update={"targets": "online"})})
