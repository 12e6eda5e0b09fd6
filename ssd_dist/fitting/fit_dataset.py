"""From a labelled folder to a trained and exported detector with one call."""

import time
from collections.abc import Sequence

from ssd_dist.fitting.results_table import print_results
from ssd_dist.fitting.run_files import FitFiles, FitRequest
from ssd_dist.fitting.stages import absolute, pick_split, run_stages


def fit_dataset(
    source: str,
    output: str,
    config: str | None = None,
    overrides: Sequence[str] = (),
    minutes: float | None = None,
    formats: Sequence[str] = ("tflite",),
) -> FitFiles:
    """Prepares a labelled dataset, trains, evaluates and exports a detector, and prints a table of the results.

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
