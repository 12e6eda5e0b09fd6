"""Compares exports: python -m ssd_dist.cli.benchmark --model_dir=RUN | --export=DIR... [--data=OUT].

Runs each export in its own runtime and in a process of its own, and prints its size, time per image, peak memory and,
with --data, its AP.
"""

import json
from pathlib import Path

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import output_file, run_command
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.core.errors import UsageError
from ssd_dist.core.printable import print_line


def main(_: list[str]) -> None:
    """Measures the exports given by the flags, prints a table, and writes the requested file."""
    values = flags.FLAGS
    model_dir, folders, data = values["model_dir"].value, list(values["export"].value), values["data"].value
    if bool(model_dir) == bool(folders):
        raise UsageError("give either --model_dir=RUN, for the exports in RUN/export, or --export=DIR")
    if not data and values["split"].present:
        raise UsageError("--split has no effect without --data; add --data=OUT or omit it")
    output = output_file("output")
    # NumPy and the readers of data take a moment to import, so they are imported after the flags are checked.
    from ssd_dist.export.export_benchmark import benchmark_exports, find_exports, print_benchmark

    exports = find_exports(folders or [str(Path(model_dir, "export"))])
    results = benchmark_exports(exports, values["runs"].value, values["threads"].value, data, values["split"].value)
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")
    print_benchmark(results)
    if output:
        print_line(f"{output}: the same figures as JSON")


def run_main() -> None:
    """Console script `ssd-benchmark`."""
    flags.DEFINE_string("model_dir", None, "Folder of a run of ssd-fit; its exports in RUN/export are measured.")
    flags.DEFINE_multi_string("export", [], "Folder or file of an export, or folder of several; may be repeated.")
    flags.DEFINE_string(
        "data", None, "Folder of prepared data, for AP and for the images. Without it, images of noise."
    )
    flags.DEFINE_string("split", "val", "Split of the data.")
    flags.DEFINE_integer("runs", 100, "Images per export whose time is measured.", lower_bound=1)
    flags.DEFINE_integer("threads", None, "Threads; by default the number of processors.", lower_bound=1)
    flags.DEFINE_string("output", None, "JSON file to write the figures to.")
    set_tensorflow_defaults()
    run_command(main)


if __name__ == "__main__":
    run_main()
