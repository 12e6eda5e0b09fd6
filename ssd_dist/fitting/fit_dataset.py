"""From a labeled folder to a trained and exported detector with one call: `ssd_dist.fit` and `ssd-fit`."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_dist.core.config_files import flatten_config, format_override, load_config
from ssd_dist.core.errors import UsageError
from ssd_dist.core.printable import print_warning
from ssd_dist.fitting.results_table import print_results
from ssd_dist.fitting.run_files import FitFiles, FitRequest
from ssd_dist.fitting.stages import absolute, pick_split, run_stages

# Keys that set the length of training.
LENGTHS = {"train.steps", "train.epochs"}


def fit(
    input: str | Path,
    output: str | Path,
    *,
    config: str | Path | None = None,
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
      export: formats to export; empty for none.
      overrides: config keys that are not chosen: `train__steps=400`, or `**{"train.steps": 400}`.

    Returns:
      The run folder, which `ssd_dist.Detector.load` loads; the exports are in its folder `export`.

    Raises:
      UsageError: if an argument or a config key is not valid.
      RestartError: if a stage was interrupted; the same call resumes.
      SsdDistError: if a stage failed.
    """
    if isinstance(export, str) or not isinstance(export, Sequence):
        example = [export] if isinstance(export, str) else ["tflite"]
        raise UsageError(f"export={export!r}: must be a list of formats, e.g. {example!r}; [] for none")
    path = None if config is None else str(config)
    return fit_dataset(str(input), str(output), path, format_overrides(overrides), minutes, export).folder


def check_minutes(minutes: float | None) -> None:
    """Checks the time limit.

    Raises:
      UsageError: if it is neither None nor a number of at least 1.
    """
    if minutes is None:
        return
    is_number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    if not is_number or not math.isfinite(minutes) or minutes < 1:
        raise UsageError(f"minutes={minutes!r}: must be a number of at least 1; without a limit, omit it")


def format_overrides(overrides: dict[str, Any]) -> list[str]:
    """Returns keyword arguments as values of `--set`.

    >>> format_overrides({"train__steps": 400, "backbone.weights": "none"})
    ['train.steps=400', 'backbone.weights="none"']

    Raises:
      UsageError: if a value is of a type that a config cannot have.
    """
    try:
        return [format_override(key.replace("__", "."), value) for key, value in overrides.items()]
    except TypeError as error:
        raise UsageError(f"{', '.join(overrides)}: {error}; give numbers, text, paths, or lists of them") from None


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
    check_minutes(minutes)
    if any(override.partition("=")[0].strip() == "data.dir" for override in overrides):
        raise UsageError(f"--set data.dir: the shards are written to {output}/data; omit the setting")
    fixed = flatten_config(load_config(config, overrides), only_set=True)
    if minutes is not None and (lengths := LENGTHS & fixed.keys()):
        print_warning(f"--minutes={minutes:g} does not limit the training, because {min(lengths)} is set")
    request = FitRequest(absolute(source), config, tuple(overrides), minutes, time.time(), fixed)
    files = run_stages(request, output, formats)
    print_results(files, tuple(formats), pick_split(files))
    return files
