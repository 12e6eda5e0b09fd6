"""ssd-prepare: raw labelled images -> shards of ready training records and a manifest.

    python -m pipelines.prepare --input_format=voc --input=DIR --split=train --output=OUT --config=configs/x.yaml

`build_pipeline` is the whole job. Every option of Beam may be given beside these flags.
"""

import os
import signal
import sys
from typing import NoReturn

import apache_beam as beam
from absl import flags  # type: ignore[import-untyped]
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from pipelines.image_preparation import Preparation
from pipelines.options import READERS, PrepareJob, claim_output, define_flags, job_from_flags
from pipelines.runners import (
    STDERR,
    dask_cluster,
    is_dry_run,
    make_runner,
    only_submits,
    parse_beam_options,
    plain_failures,
    quiet_logs,
    require_remote,
    runner_name,
    set_workers,
    step_names,
)
from pipelines.shard_plan import GroupIntoShards
from pipelines.shard_progress import show_progress
from pipelines.shards import ShardJob, WriteShard
from pipelines.split_report import ReportJob, WriteReport, read_manifest
from pipelines.summary import print_summary
from ssd_dist.core.commands import run_command
from ssd_dist.core.errors import DataError, RestartError
from ssd_dist.core.manifest import Manifest


def run_main() -> NoReturn:
    """The console script."""
    define_flags()
    # For --help: to absl they are those of the module that defines them.
    flags.adopt_module_key_flags(sys.modules[define_flags.__module__])
    # Whoever stops the job otherwise than with Ctrl-C gets the same: no litter, no worker left alone, a line.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command(main_until_stopped, keep_unknown=True)


def main_until_stopped(arguments: list[str]) -> None:
    """`main`, of which a signal before the job runs is told as one that comes later.

    Raises:
      RestartError: if it was stopped.
    """
    try:
        main(arguments)
    except KeyboardInterrupt:
        raise RestartError("stopped before the job began; run the same command again") from None


def main(arguments: list[str]) -> None:
    """Runs the job that the flags describe; `arguments` are Beam's options."""
    options = parse_beam_options(arguments, list(flags.FLAGS))
    quiet_logs(options)
    # Credentials and the like, for the files read before there is a pipeline.
    FileSystems.set_options(options)
    job = job_from_flags()
    require_remote(options, [*job.source.inputs, job.source.image_dir, job.output])
    if only_submits(options):
        steps = submit_job(job, options)
        title = "nothing was run; the job's steps:" if is_dry_run(options) else "the job was handed over; its steps:"
        print("\n".join([title, *(f"  {step}" for step in steps)]))
        return
    # A descriptor of its own: the usual one is held back while worker processes run.
    with (
        os.fdopen(os.dup(STDERR), "w") as terminal,
        show_progress(job.output, job.split, job.resume, Console(file=terminal)),
    ):
        manifest = run_job(job, options)
    print_summary(manifest, job.split, job.output)


def submit_job(job: PrepareJob, options: PipelineOptions) -> list[str]:
    """Hands the job to the runner for a dry run or as a template; returns the names of its steps."""
    set_workers(options, job.workers)
    pipeline = beam.Pipeline(runner=make_runner(options), options=options)
    build_pipeline(pipeline, job)
    # The others do not know a dry run, and would do the work.
    if runner_name(options) == "dataflowrunner":
        with plain_failures(options):
            pipeline.run()
    return step_names(pipeline)


def run_job(job: PrepareJob, options: PipelineOptions) -> Manifest:
    """Runs the job to its end and returns the manifest that it wrote.

    Raises:
      DataError: if the source is missing, empty or too broken, or the output was begun with other flags.
      RestartError: if a worker was lost, or the job was stopped.
    """
    set_workers(options, job.workers)
    runner = make_runner(options)
    with plain_failures(options), dask_cluster(options, job.workers):
        pipeline = beam.Pipeline(runner=runner, options=options)
        build_pipeline(pipeline, job)
        claim_output(job)
        pipeline.run().wait_until_finish()
    manifest = read_manifest(job.output)
    if manifest is None:
        raise DataError(f"the job ended without a manifest in {job.output}; see the runner's log")
    return manifest


def build_pipeline(pipeline: beam.Pipeline, job: PrepareJob) -> None:
    """The job: annotations are read, put in order and dealt to shards; each shard is written in one place."""
    shard_job = ShardJob(job.output, job.split, Preparation.of(job.config, job.split), job.resume)
    report_job = ReportJob(job.output, job.split, job.config, job.max_rejected_fraction)
    _ = (
        pipeline
        | "Read" >> READERS[job.input_format](job.source)
        | "Group into shards" >> GroupIntoShards(job.shards, job.rules)
        | "Write shards" >> beam.ParDo(WriteShard(shard_job))
        | "Gather reports" >> beam.GroupByKey()
        | "Write report" >> beam.ParDo(WriteReport(report_job))
    )


if __name__ == "__main__":
    run_main()
