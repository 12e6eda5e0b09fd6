"""ssd-prepare: converts labelled images to shards of training records and a manifest.

    python -m pipelines.prepare --input=DIR --output=OUT --config=configs/x.yaml

`build_pipeline` is the whole job. The command also accepts every option of Beam.
"""

import os
import signal
import sys
from dataclasses import replace
from typing import NoReturn

import apache_beam as beam
from absl import flags  # type: ignore[import-untyped]
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from pipelines.detection import FORMATS
from pipelines.image_preparation import Preparation
from pipelines.manifest_writer import ManifestJob, WriteManifest, read_manifest
from pipelines.options import PrepareJob, define_flags, job_from_flags, record_job
from pipelines.readers.read_annotations import read_splits
from pipelines.runners import (
    STDERR,
    dask_cluster,
    is_dry_run,
    make_runner,
    only_submits,
    parse_beam_options,
    quiet_logs,
    require_remote,
    runner_name,
    set_workers,
    step_names,
    translate_failures,
)
from pipelines.shard_plan import GroupIntoShards
from pipelines.shard_progress import show_progress
from pipelines.shards import ShardJob, WriteShard
from pipelines.split_lock import lock_splits
from pipelines.summary import print_summary, print_unused_classes
from ssd_dist.core.commands import run_command
from ssd_dist.core.errors import DataError, RestartError
from ssd_dist.core.manifest import Manifest
from ssd_dist.core.printable import print_line


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
    options = parse_beam_options(arguments, list(flags.FLAGS))
    quiet_logs(options)
    # Sets credentials for files that are read before the pipeline exists.
    FileSystems.set_options(options)
    job = job_from_flags()
    require_remote(options, [*job.sources[0].inputs, job.sources[0].image_dir, job.output])
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
        show_progress(job.output, job.splits, job.resume, Console(file=terminal)),
    ):
        manifest = run_job(job, options)
    for split in job.splits:
        if split in manifest.splits:
            print_summary(manifest, split, job.output)
        else:
            print_line(f"split {split}: omitted, because its share of the source contains no image")
    for split in manifest.splits.keys() - {*job.splits} if job.writes_all_splits else ():
        print_line(f"note: split {split} in {job.output} is of an earlier job; this source does not contain it")
    print_unused_classes(manifest)


def submit_job(job: PrepareJob, options: PipelineOptions) -> list[str]:
    """Submits the job as a dry run or as a template and returns the names of its steps."""
    set_workers(options, job.workers)
    pipeline = beam.Pipeline(runner=make_runner(options), options=options)
    # A template may run several times, each time as another job.
    build_pipeline(pipeline, replace(job, job_id=""))
    # Only Dataflow supports a dry run; other runners would execute the job.
    if runner_name(options) == "dataflowrunner":
        with translate_failures(options):
            pipeline.run()
    return step_names(pipeline)


def run_job(job: PrepareJob, options: PipelineOptions) -> Manifest:
    """Runs the job until it ends and returns the manifest that it wrote.

    Raises:
      DataError: if the source is missing or empty, too much of it was rejected, or the output was written with
        other flags.
      RestartError: if a worker was lost, or the job was stopped.
    """
    set_workers(options, job.workers)
    runner = make_runner(options)
    with translate_failures(options), dask_cluster(options, job.workers):
        pipeline = beam.Pipeline(runner=runner, options=options)
        build_pipeline(pipeline, job)
        with lock_splits(job.output, job.splits, job.job_id):
            record_job(job)
            pipeline.run().wait_until_finish()
    manifest = read_manifest(job.output)
    if manifest is None:
        raise DataError(f"{job.output}: the job ended without writing a manifest; see the log of the runner")
    return manifest


def build_pipeline(pipeline: beam.Pipeline, job: PrepareJob) -> None:
    """Builds the job: reads annotations, groups images into shards, writes the shards, and adds up their reports."""
    readers = [FORMATS[job.input_format].read(source) for source in job.sources]
    shard_jobs = [
        ShardJob(job.output, name, Preparation.of(job.config, name), job.resume, job.job_id) for name in job.splits
    ]
    manifest_job = ManifestJob(job.output, job.config, job.max_rejected_fraction, job.job_id, job.optional)
    _ = (
        pipeline
        | "Read" >> read_splits(readers)
        | "Group into shards" >> GroupIntoShards(job.shards, job.rules)
        | "Write shards" >> beam.ParDo(WriteShard(shard_jobs))
        | "Gather reports" >> beam.GroupByKey()
        | "Write manifest" >> beam.ParDo(WriteManifest(manifest_job))
    )


if __name__ == "__main__":
    run_main()
