"""The stage of `ssd-fit` that makes the choices: python -m ssd_dist.fitting.choose --output=RUN.

It runs in a process of its own, because it imports TensorFlow. The config is written last and never changed.
"""

import time
from pathlib import Path

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import required_flag, run_command
from ssd_dist.core.config_files import dump_config
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.core.stage_line import show_stages
from ssd_dist.core.storage import write_text
from ssd_dist.fitting.run_files import FitFiles, FitRequest


def main(_: list[str]) -> None:
    """Makes the choices of the run given by the flags and writes its config."""
    started = time.time()
    files = FitFiles(Path(required_flag("output")))
    request = FitRequest.read(files.request)
    with show_stages("start TensorFlow", str(files.folder), "choose") as stages:
        # Imports TensorFlow, which takes seconds.
        from ssd_dist.fitting.choose_config import choose_config

        stages.show("inspect the machine and measure the network")
        config = choose_config(request, files, started)
    write_text(files.config, dump_config(config))


def run_main() -> None:
    """Runs the `choose` stage of `ssd-fit`."""
    flags.DEFINE_string("output", None, "The run folder.")
    set_tensorflow_defaults()
    run_command(main)


if __name__ == "__main__":
    run_main()
