"""A page to look at: python -m ssd_dist.cli.inspect --data=OUT | --model_dir=RUN [--model_dir=RUN2 ...].

--data shows a prepared data set and whether its anchors fit; --model_dir shows a run: how it learns, what it gets
wrong, on which pictures. Several --model_dir are compared. The page is one file that needs no network.
"""

from pathlib import Path

from absl import flags

from ssd_dist.core.commands import define_override_flag, overrides_from_flags, refuse_flags, run_command
from ssd_dist.core.errors import UsageError
from ssd_dist.core.folder_names import REPORT_NAME


def main(_: list[str]) -> None:
    """Writes the page of the flags and says where it is."""
    data, model_dirs = flags.FLAGS["data"].value, list(flags.FLAGS["model_dir"].value)
    if bool(data) == bool(model_dirs):
        raise UsageError("give --data=OUT for a data set, or --model_dir=RUN for a run; one of them")
    if data:
        refuse_flags(["set", "checkpoint", "split"], beside="data")
    else:
        refuse_flags(["max_images", "fit_anchors"], beside="model_dir")
    output = flags.FLAGS["output"].value or default_output(data, model_dirs)
    for flag, name in (("output", output), ("fit_anchors", flags.FLAGS["fit_anchors"].value)):
        if name and "://" in name:
            raise UsageError(f"--{flag}={name}: it is written as a local file; copy it there afterwards")
    # TensorFlow takes seconds to load: only once the flags are right.
    if data:
        from ssd_dist.report.data_page import build_data_page, write_fitted_anchors

        build_data_page(data, output, flags.FLAGS["max_images"].value)
        if fitted := flags.FLAGS["fit_anchors"].value:
            print(f"{fitted}: {write_fitted_anchors(data, fitted, flags.FLAGS['max_images'].value)}")
    else:
        from ssd_dist.report.run_page import build_run_page

        build_run_page(
            model_dirs, output, flags.FLAGS["checkpoint"].value, flags.FLAGS["split"].value, overrides_from_flags()
        )
    print(f"{output}: {Path(output).stat().st_size / 1e6:.2f} MB, open it in a browser")


def default_output(data: str | None, model_dirs: list[str]) -> str:
    """RUN/report.html of a single run, else report.html here."""
    if len(model_dirs) == 1 and not data:
        return str(Path(model_dirs[0]) / REPORT_NAME)
    return REPORT_NAME


def run_main() -> None:
    """Console script `ssd-inspect`."""
    flags.DEFINE_string("data", None, "Folder of prepared data, the one with dataset.json.")
    flags.DEFINE_multi_string("model_dir", [], "Folder of a training run; several are compared.")
    flags.DEFINE_string("output", None, "HTML file to write; RUN/report.html for a run, else report.html.")
    flags.DEFINE_string("checkpoint", "auto", "best, last, the path of a checkpoint, or auto: best, else last.")
    flags.DEFINE_string("split", "auto", "Split to evaluate on; auto: the one that training evaluated on.")
    flags.DEFINE_integer("max_images", 5000, "With --data: records of each split to examine.", lower_bound=1)
    flags.DEFINE_string("fit_anchors", None, "With --data: YAML file to write anchors.* to that fit these objects.")
    define_override_flag()
    run_command(main)


if __name__ == "__main__":
    run_main()
