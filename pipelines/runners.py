"""Beam's options: which flags are Beam's, and a local runner that needs no network.

The DirectRunner of Beam 2.77 first tries Prism, which downloads a program. Here it means what it used to mean: the
FnApiRunner, in this process.
"""

import argparse
import contextlib
import importlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import (
    DirectOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineRunner, create_runner

from pipelines.beam_storage import is_remote
from ssd_dist.core.commands import unknown_flag
from ssd_dist.core.errors import DataError, RestartError, SsdDistError, UsageError

LOCAL_RUNNERS = ("directrunner", "fnapirunner")
DASK_MODULE = "apache_beam.runners.dask.dask_runner"
PIECES_A_WORKER = 4
STDERR = 2
SIGNS_OF_A_LOST_WORKER = ("Channel closed prematurely", "Worker subprocess exited", "KilledWorker")


def parse_beam_options(arguments: list[str], own_flags: list[str]) -> PipelineOptions:
    """Beam's options from the arguments that are no flags of ours.

    Beam ignores what it does not know; a mistyped flag must not be ignored.

    Raises:
      UsageError: for an argument that is not Beam's either, naming the nearest flag, or for a wrong value.
    """
    parser = _Parser(allow_abbrev=False, add_help=False)
    with contextlib.suppress(ImportError):
        dask_options()
    for options in _option_classes(PipelineOptions):
        # A class that repeats another's option says the same as that.
        with contextlib.suppress(argparse.ArgumentError):
            options._add_argparse_args(parser)
    unknown = parser.parse_known_args(arguments)[1]
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        if not unknown[0].startswith("-"):
            raise UsageError(f"unexpected argument {unknown[0]!r}: give values as --flag=value")
        known = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
        raise unknown_flag(name, [*own_flags, *known])
    return PipelineOptions(arguments)


def set_workers(options: PipelineOptions, workers: int) -> None:
    """Tells the runner how many workers to use, in its own words; 0 leaves its options as they are.

    Raises:
      UsageError: for a runner whose number of workers is no option of the job.
    """
    name = runner_name(options)
    if not workers:
        return
    if name in LOCAL_RUNNERS:
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers = workers
        direct.direct_running_mode = "multi_processing" if workers > 1 else "in_memory"
        # For the workers, which inherit it: with an arena for each of gRPC's threads they hold a third more memory.
        os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    elif name == "daskrunner":
        # Several pieces a worker even out what differs between shards.
        options.view_as(dask_options()).npartitions = PIECES_A_WORKER * workers
    elif name == "dataflowrunner":
        options.view_as(WorkerOptions).num_workers = workers
        options.view_as(WorkerOptions).max_num_workers = workers
    elif name == "flinkrunner":
        options.view_as(FlinkRunnerOptions).parallelism = workers
    else:
        make_runner(options)
        raise UsageError(f"--workers does not reach --runner={name}; give that runner its own options")


@contextlib.contextmanager
def dask_cluster(options: PipelineOptions, workers: int) -> Iterator[None]:
    """For the DaskRunner without an address: worker processes on this machine, as long as the block runs."""
    if runner_name(options) != "daskrunner":
        yield
        return
    from dask import distributed

    # Dask sets its own levels when it is imported.
    quiet_logs(options)
    with contextlib.ExitStack() as stack:
        dask = options.view_as(dask_options())
        if not (dask.address or dask.scheduler_file):
            cluster = distributed.LocalCluster(
                n_workers=max(1, workers), threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
            )
            dask.address = stack.enter_context(cluster).scheduler_address
        # Beam leaves its client open, which would then miss its scheduler.
        stack.callback(lambda: distributed.default_client().close())
        yield


@contextlib.contextmanager
def plain_failures(options: PipelineOptions) -> Iterator[None]:
    """Turns a job's exception into the error that it means; threads and processes that fail with it do not tell it too.

    Raises:
      SsdDistError: for what the user can mend; anything else passes as it is, with what the others had to say.
    """
    told_by_threads: list[threading.ExceptHookArgs] = []
    hook = threading.excepthook
    threading.excepthook = told_by_threads.append
    quiet: contextlib.AbstractContextManager[list[BinaryIO]] = contextlib.nullcontext([])
    if options.view_as(DirectOptions).direct_running_mode == "multi_processing":
        quiet = hold_stderr()
    with quiet as held:
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            explained = explain_failure(error, runs_here(options))
            if explained is not None:
                held.clear()
                raise explained from None
            for told in told_by_threads:
                hook(told)
            raise
        finally:
            threading.excepthook = hook


@contextlib.contextmanager
def hold_stderr() -> Iterator[list[BinaryIO]]:
    """Holds back what processes started in the block print as errors; told at its end, unless the list is cleared.

    A worker prints each failure in full, and what it means comes in one line from here.
    """
    with tempfile.TemporaryFile() as file:
        held: list[BinaryIO] = [file]
        terminal = os.dup(STDERR)
        own = sys.stderr
        if own is sys.__stderr__:
            sys.stderr = os.fdopen(os.dup(STDERR), "w", buffering=1)
        os.dup2(file.fileno(), STDERR)
        try:
            yield held
        finally:
            own.flush()
            os.dup2(terminal, STDERR)
            os.close(terminal)
            sys.stderr = own
            for kept in held:
                kept.seek(0)
                own.write(kept.read().decode("utf-8", "replace"))


def runner_name(options: PipelineOptions) -> str:
    """The runner asked for, in small letters, with Beam's short forms made long."""
    name = (options.view_as(StandardOptions).runner or "DirectRunner").rpartition(".")[2].lower()
    return name if name.endswith("runner") else f"{name}runner"


def make_runner(options: PipelineOptions) -> PipelineRunner:
    """The runner that `--runner` names; without it, or for DirectRunner, one in this process.

    Raises:
      UsageError: if there is no such runner.
    """
    if runner_name(options) in LOCAL_RUNNERS:
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
        return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))
    name = options.view_as(StandardOptions).runner
    if runner_name(options) == "daskrunner":
        # Beam does not list it among the runners it knows by a short name.
        name = f"{DASK_MODULE}.DaskRunner"
    try:
        return create_runner(name)
    except (ImportError, ValueError, AttributeError, RuntimeError) as error:
        known = ", ".join(StandardOptions.KNOWN_RUNNER_NAMES)
        raise UsageError(f"--runner={name}: {str(error).splitlines()[0]}; known: {known}") from None


def explain_failure(error: BaseException, runs_here: bool = True) -> SsdDistError | None:
    """What a job's exception tells the user, or None if it is a bug.

    A worker's DataError comes with a note of the step, or as text inside an exception of the runner's own.
    """
    if isinstance(error, SsdDistError) and not isinstance(error, DataError):
        return error
    text = f"DataError: {error}" if isinstance(error, DataError) else str(error)
    if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in text:
        if not runs_here:
            return RestartError("no longer watching the job, which goes on where it runs; stop it there")
        return RestartError("stopped; run the same command with --resume, which keeps what is finished")
    if isinstance(error, DataError) and "[while running" not in text:
        # Raised here, before a worker had it: nothing of the runner's is around it.
        return error
    found = re.findall(r"DataError: (.*?)(?: \[while running|\\n|\n|$)", text)
    if found:
        return DataError(found[-1])
    if any(sign in f"{type(error).__name__}: {text}" for sign in SIGNS_OF_A_LOST_WORKER):
        return RestartError(
            "a worker died (killed, or out of memory); run the same command with --resume, which keeps what is finished"
        )
    return None


def runs_here(options: PipelineOptions) -> bool:
    """Whether the job ends with this process; elsewhere it goes on without."""
    return runner_name(options) in (*LOCAL_RUNNERS, "daskrunner")


def only_submits(options: PipelineOptions) -> bool:
    """Whether the job is not to be waited for: a dry run, or a template for Dataflow."""
    is_template = bool(options.view_as(GoogleCloudOptions).template_location)
    return is_dry_run(options) or (is_template and runner_name(options) == "dataflowrunner")


def is_dry_run(options: PipelineOptions) -> bool:
    """Whether the job is only to be looked at."""
    return bool(options.view_as(TestOptions).dry_run)


def step_names(pipeline: beam.Pipeline) -> list[str]:
    """The names of the steps of a pipeline in order; of those within others, `outer/inner`, and no deeper."""
    names: list[str] = []

    class Collector(PipelineVisitor):
        def visit_transform(self, applied: AppliedPTransform) -> None:
            names.append("/".join(applied.full_label.split("/")[:2]))

    pipeline.visit(Collector())
    return list(dict.fromkeys(names))


def require_remote(options: PipelineOptions, paths: list[str]) -> None:
    """Refuses paths of this machine where the workers are on others.

    Raises:
      UsageError: naming the path.
    """
    near = [path for path in paths if path and not is_remote(path)]
    if runner_name(options) == "dataflowrunner" and not is_dry_run(options) and near:
        raise UsageError(
            f"{near[0]} is a path of this machine, which Dataflow's workers cannot reach; give a gs:// path"
        )


def quiet_logs(options: PipelineOptions) -> None:
    """Leaves warnings of Beam's and Dask's; what fails on this machine is told by the exception that ends the job.

    A job on Dataflow keeps Beam's account of its progress.
    """
    if runner_name(options) == "dataflowrunner":
        return
    for name, level in (
        ("apache_beam", logging.WARNING),
        ("distributed", logging.WARNING),
        ("apache_beam.runners", logging.CRITICAL),
        ("apache_beam.utils", logging.CRITICAL),
    ):
        logging.getLogger(name).setLevel(level)


def dask_options() -> type[PipelineOptions]:
    """Beam's options for Dask, which are known once they are imported."""
    found: type[PipelineOptions] = importlib.import_module(DASK_MODULE).DaskOptions
    return found


def _option_classes(base: type[PipelineOptions]) -> list[type[PipelineOptions]]:
    found = base.__subclasses__()
    deeper = [cls for direct in found for cls in _option_classes(direct)]
    return [*found, *deeper]


class _Parser(pipeline_options._BeamArgumentParser):
    """Beam's parser, that raises instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Refuses the command line."""
        raise UsageError(f"{message}; see Beam's options")
