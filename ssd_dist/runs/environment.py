"""Records the versions, machine and devices of a run in `RUN/environment.json`, for later comparison of runs."""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

from ssd_dist.core.storage import write_text

ENVIRONMENT_NAME = "environment.json"
PACKAGES = ("tensorflow", "tf-keras", "tf-models-official", "numpy", "ssd-dist")


def describe_environment(strategy: tf.distribute.Strategy, workers: int) -> dict[str, Any]:
    """Returns facts about this process and its strategy as JSON-serializable values.

    `workers` and `replicas` are totals of the job; the other counts are those of this process.
    """
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    return {
        "command": " ".join(sys.argv),
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [str(gpu.get("device_name", "GPU")) for gpu in gpus],
        "workers": workers,
        "replicas_per_worker": strategy.num_replicas_in_sync // workers,
        "replicas": strategy.num_replicas_in_sync,
        "python": platform.python_version(),
        **{name: _find_version(name) for name in PACKAGES},
    }


def write_environment(model_dir: str, environment: dict[str, Any]) -> None:
    """Writes the environment into the run folder; a resumed run replaces it with its current environment."""
    write_text(Path(model_dir) / ENVIRONMENT_NAME, json.dumps(environment, indent=1) + "\n")


def read_environment(model_dir: str) -> dict[str, Any]:
    """Reads the environment of a run; an empty dict if the file is missing or cannot be read."""
    try:
        found = json.loads((Path(model_dir) / ENVIRONMENT_NAME).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _find_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
