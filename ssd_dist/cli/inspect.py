"""Writes an HTML report: python -m ssd_dist.cli.inspect --data=OUT | --model_dir=RUN [--model_dir=RUN2 ...].

--data reports on a prepared dataset and on how well the anchors fit its objects. --model_dir reports on a run: training
curves, metrics, errors, and images with predictions. Several --model_dir are compared with each other. The report is
one HTML file without scripts, which works offline.
"""

import os
from pathlib import Path

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import (
    check_writable,
    define_override_flag,
    local_path,
    overrides_from_flags,
    refuse_flags,
    run_command,
)
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.core.errors import UsageError
from ssd_dist.core.folder_names import CONFIG_NAME, REPORT_NAME
from ssd_dist.core.printable import print_line
from ssd_dist.core.stage_line import show_stages
from ssd_dist.core.storage import is_remote


def main(_: list[str]) -> None:
    """Writes the report requested by the flags and prints its path."""
    data, model_dirs = flags.FLAGS["data"].value, list(flags.FLAGS["model_dir"].value)
    if bool(data) == bool(model_dirs):
        raise UsageError("give either --data=OUT, for a dataset, or --model_dir=RUN, for a run")
    if data:
        check_is_no_run(data)
        refuse_flags(["set", "checkpoint", "split"], beside="data")
    else:
        refuse_flags(["max_images", "fit_anchors"], beside="model_dir")
    output = local_path("output") or default_output(data, model_dirs)
    if os.path.isdir(Path(output).parent):
        # Before work that takes minutes. The folder of the default is a run, which may not exist.
        check_writable("output", Path(output))
    local_path("fit_anchors")
    # TensorFlow takes seconds to import, so it is imported after the flags are checked.
    with show_stages("start TensorFlow") as stages:
        if data:
            from ssd_dist.report.data_page import build_data_page, write_fitted_anchors

            stages.show("write the report")
            build_data_page(data, output, flags.FLAGS["max_images"].value)
            if fitted := flags.FLAGS["fit_anchors"].value:
                stages.show("fit the anchors")
                print_line(f"{fitted}: {write_fitted_anchors(data, fitted, flags.FLAGS['max_images'].value)}")
        else:
            from ssd_dist.report.run_page import build_run_page

            checkpoint, split = flags.FLAGS["checkpoint"].value, flags.FLAGS["split"].value
            build_run_page(model_dirs, output, checkpoint, split, overrides_from_flags(), stages)
    print_line(f"{output}: {Path(output).stat().st_size / 1e6:.2f} MB, open it in a browser")


def check_is_no_run(data: str) -> None:
    """Checks that `--data` is not a run folder, which also holds a dataset.json, but no shards.

    Raises:
      UsageError: if it is.
    """
    if not is_remote(data) and os.path.isfile(Path(data) / CONFIG_NAME):
        raise UsageError(
            f"--data={data}: the folder holds a training run, not prepared data; use --model_dir={data} for a report "
            f"on the run, or give the folder in data.dir of its {CONFIG_NAME}"
        )


def default_output(data: str | None, model_dirs: list[str]) -> str:
    """Returns RUN/report.html for a single run, else report.html in the current folder."""
    if len(model_dirs) == 1 and not data:
        return str(Path(model_dirs[0]) / REPORT_NAME)
    return REPORT_NAME


def run_main() -> None:
    """Console script `ssd-inspect`."""
    flags.DEFINE_string("data", None, "Folder of prepared data, which holds dataset.json.")
    flags.DEFINE_multi_string("model_dir", [], "Folder of a training run; repeat the flag to compare several runs.")
    flags.DEFINE_string("output", None, "HTML file to write. By default RUN/report.html for one run, else report.html.")
    flags.DEFINE_string("checkpoint", "auto", "best, last, or the path of a checkpoint; auto uses best, else last.")
    flags.DEFINE_string("split", "auto", "Split to evaluate on; auto uses the split that training evaluated on.")
    flags.DEFINE_integer("max_images", 5000, "With --data: maximum number of records to read per split.", lower_bound=1)
    flags.DEFINE_string("fit_anchors", None, "With --data: YAML file to write anchors.* to, fitted to the objects.")
    define_override_flag()
    set_tensorflow_defaults()
    run_command(main)


if __name__ == "__main__":
    run_main()
