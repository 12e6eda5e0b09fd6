"""The Beam job of prepare: `build_pipeline` is the whole job; `run_job` runs it and returns the manifest."""

from dataclasses import replace

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.detection import FORMATS
from pipelines.image_preparation import Preparation
from pipelines.manifest_writer import ManifestJob, WriteManifest, read_manifest
from pipelines.options import PrepareJob, record_job
from pipelines.readers.read_annotations import read_splits
from pipelines.runners import (
    dask_cluster,
    make_runner,
    runner_name,
    set_workers,
    step_names,
    translate_failures,
)
from pipelines.shard_plan import GroupIntoShards
from pipelines.shards import ShardJob, WriteShard
from pipelines.split_lock import lock_splits
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import Manifest


def submit_job(job: PrepareJob, options: PipelineOptions) -> list[str]:
    """Submits the job as a dry run or as a template and returns the names of its steps."""
    set_workers(options, job.workers)
    with translate_failures(options):
        pipeline = beam.Pipeline(runner=make_runner(options), options=options)
        # A template may run several times, each time as another job.
        build_pipeline(pipeline, replace(job, job_id=""))
        # Only Dataflow supports a dry run; other runners would execute the job.
        if runner_name(options) == "dataflowrunner":
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
