"""Trains and exports a detector from a labeled folder: python -m ssd_dist.cli.fit --input=DIR --output=RUN.

Recognizes the dataset, chooses the settings that are not given, writes shards, trains, evaluates and exports. Prints
each choice with its reason. After an interruption, the same command resumes.
"""

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import define_config_flags, overrides_from_flags, required_flag, run_command
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.export.export_options import KINDS
from ssd_dist.fitting.fit_dataset import fit_dataset


def main(_: list[str]) -> None:
    """Runs the stages that the flags describe and prints the results."""
    values = flags.FLAGS
    fit_dataset(
        required_flag("input"),
        required_flag("output"),
        config=values["config"].value,
        overrides=overrides_from_flags(),
        minutes=values["minutes"].value,
        formats=tuple(values["export"].value),
    )


def run_main() -> None:
    """Console script `ssd-fit`."""
    flags.DEFINE_string("input", None, "Folder, file or pattern of the annotations, as for ssd-prepare.")
    flags.DEFINE_string("output", None, "Folder of the run, for shards, checkpoints, report and exports.")
    flags.DEFINE_float("minutes", None, "Time limit of the whole command; chooses the number of steps.", lower_bound=1)
    flags.DEFINE_list("export", ["tflite"], f"Formats to export: {', '.join(KINDS)}; empty for none.")
    define_config_flags()
    set_tensorflow_defaults()
    run_command(main)


if __name__ == "__main__":
    run_main()
