"""From a labeled folder to a trained and exported detector with one call: `ssd_dist.fit` and `ssd-fit`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_dist.core.errors import UsageError
from ssd_dist.fitting.results_table import print_results
from ssd_dist.fitting.run_files import FitFiles, FitRequest
from ssd_dist.fitting.stages import absolute, pick_split, run_stages


def fit(
    input: str | Path,
    output: str | Path,
    *,
    config: str | None = None,
    minutes: float | None = None,
    export: Sequence[str] = ("tflite",),
    **overrides: Any,
) -> Path:
    """Trains and exports a detector from a labeled folder, as `ssd-fit` does.

    Each stage runs in a process of its own, so this process imports neither TensorFlow nor Beam.

    Args:
      input: folder, file or pattern of the annotations.
      output: the run folder. A call with the same arguments resumes the run in it.
      config: YAML file or name of a config of the package; its keys are not chosen.
      minutes: time limit of the whole call; None chooses the length of training from the number of images.
      export: formats to export.
      overrides: config keys that are not chosen: `train__steps=400`, or `**{"train.steps": 400}`.

    Returns:
      The run folder, which `ssd_dist.Detector.load` loads; the exports are in its folder `export`.

    Raises:
      UsageError: if an argument or a config key is not valid.
      RestartError: if a stage was interrupted; the same call resumes.
      SsdDistError: if a stage failed.
    """
    check_arguments(minutes, export)
    return fit_dataset(str(input), str(output), config, format_overrides(overrides), minutes, export).folder


def check_arguments(minutes: object, export: object) -> None:
    """Checks arguments that the flags of `ssd-fit` cannot have.

    Raises:
      UsageError: if `minutes` is not a number of at least 1, or `export` is a single name.
    """
    is_valid = isinstance(minutes, int | float) and not isinstance(minutes, bool) and minutes >= 1
    if minutes is not None and not is_valid:
        raise UsageError(f"minutes={minutes!r}: must be a number of at least 1, or None for no limit")
    if isinstance(export, str):
        raise UsageError(f"export={export!r}: is one format; give a list: [{export!r}]")


def format_overrides(overrides: dict[str, Any]) -> list[str]:
    """Returns keyword arguments as values of `--set`.

    >>> format_overrides({"train__steps": 400, "backbone.weights": "none"})
    ['train.steps=400', 'backbone.weights="none"']
    """
    return [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in overrides.items()]


def fit_dataset(
    source: str,
    output: str,
    config: str | None = None,
    overrides: Sequence[str] = (),
    minutes: float | None = None,
    formats: Sequence[str] = ("tflite",),
) -> FitFiles:
    """Prepares a labeled dataset, trains, evaluates and exports a detector, and prints a table of the results.

    Args:
      source: folder, file or pattern of the annotations, as for `ssd-prepare`.
      output: the run folder; a run in it is resumed.
      config: YAML file or name of a config of the package; its keys are not chosen.
      overrides: config keys to set, as `a.b=c`.
      minutes: time limit of the whole call; None chooses the length of training from the number of images.
      formats: formats to export.

    Returns:
      The files of the run.

    Raises:
      SsdDistError: for errors that the user can fix; see `run_stages`.
    """
    request = FitRequest(absolute(source), config, tuple(overrides), minutes, time.time())
    files = run_stages(request, output, formats)
    print_results(files, tuple(formats), pick_split(files))
    return files
