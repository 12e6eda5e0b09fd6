"""ssd-prepare: converts labeled images to shards of training records and a manifest.

    python -m pipelines.prepare --input=DIR --output=OUT --config=configs/x.yaml

The command also accepts every option of Beam. Beam takes seconds to import, so it is imported after the flags are
parsed.
"""

import os
import signal
import sys
from typing import NoReturn

from absl import flags  # type: ignore[import-untyped]

from pipelines.flags import define_flags
from ssd_dist.core.commands import run_command
from ssd_dist.core.errors import RestartError, UsageError
from ssd_dist.core.printable import print_line
from ssd_dist.core.stage_line import show_stages
from ssd_dist.core.storage import join


def run_main() -> NoReturn:
    """Runs the console script."""
    define_flags()
    # absl attributes flags to the module that defines them; --help lists those of this module.
    flags.adopt_module_key_flags(sys.modules[define_flags.__module__])
    # SIGTERM is handled like Ctrl-C: temporary files are removed, workers stopped, and one line is printed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command(run_until_stopped, keep_unknown=True)


def run_until_stopped(arguments: list[str]) -> None:
    """Runs `main` and reports a signal that arrives before the job starts like one that arrives later.

    Raises:
      RestartError: if a signal stopped the command.
    """
    try:
        main(arguments)
    except KeyboardInterrupt:
        raise RestartError("stopped before the job started; run the same command again") from None


def main(arguments: list[str]) -> None:
    """Runs the job that the flags describe; `arguments` are the options of Beam."""
    with show_stages("start Apache Beam") as stages:
        from apache_beam.io.filesystems import FileSystems

        from pipelines import beam_storage
        from pipelines.job import run_job, submit_job
        from pipelines.options import job_from_flags
        from pipelines.runners import STDERR, is_dry_run, only_submits, parse_beam_options, quiet_logs, require_remote
        from pipelines.shard_progress import create_console, show_progress
        from pipelines.split_folder import REJECTED_NAME
        from pipelines.summary import print_class_warnings, print_missing_splits, print_summary
        from pipelines.survey import run_survey

        options = parse_beam_options(arguments, list(flags.FLAGS))
        quiet_logs(options)
        # Sets credentials for files that are read before the pipeline exists.
        FileSystems.set_options(options)
        stages.show("inspect the dataset")
        job = job_from_flags()
        inputs = [path for source in job.sources for path in (*source.inputs, source.image_dir)]
        survey = flags.FLAGS["survey"].value
        require_remote(options, [*inputs, job.output, survey])
        if survey:
            if only_submits(options):
                raise UsageError("--survey cannot be combined with a dry run or a template; omit one of them")
            stages.show("read annotations")
            run_survey(job, options, survey)
            return
    if only_submits(options):
        steps = submit_job(job, options)
        title = (
            "dry run, nothing was executed; the steps of the job:"
            if is_dry_run(options)
            else "submitted; the steps of the job:"
        )
        for line in (title, *(f"  {step}" for step in steps)):
            print_line(line)
        return
    # The progress bar needs its own file descriptor, because stderr is captured while worker processes run.
    with (
        os.fdopen(os.dup(STDERR), "w") as terminal,
        show_progress(job.output, job.splits, job.resume, create_console(terminal)),
    ):
        manifest = run_job(job, options)
    for split in job.splits:
        if split in manifest.splits:
            print_summary(manifest, split, job.output)
        else:
            rejected = join(job.output, split, REJECTED_NAME)
            where = f"; {rejected} lists what was rejected" if beam_storage.size(rejected) > 0 else ""
            print_line(f"split {split}: omitted, because its share of the source contains no usable image{where}")
    for split in manifest.splits.keys() - {*job.splits} if job.writes_all_splits else ():
        print_line(f"note: split {split} in {job.output} is of an earlier job; this source does not contain it")
    if job.writes_all_splits:
        print_missing_splits(manifest, job.output, job.optional)
    print_class_warnings(manifest)


if __name__ == "__main__":
    run_main()
