"""Parses the options of Beam, creates runners and translates their failures.

The DirectRunner of Beam 2.77 first tries Prism, which downloads a program. Here DirectRunner means the FnApiRunner, as
in earlier versions: it runs in this process and needs no network.
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

from pipelines import beam_storage
from ssd_dist.core.commands import unknown_flag
from ssd_dist.core.errors import DataError, RestartError, SsdDistError, UsageError, first_line
from ssd_dist.core.storage import is_remote

LOCAL_RUNNERS = ("directrunner", "fnapirunner")
DASK_MODULE = "apache_beam.runners.dask.dask_runner"
PARTITIONS_PER_WORKER = 4
STDERR = 2
LOST_WORKER_MESSAGES = ("Channel closed prematurely", "Worker subprocess exited", "KilledWorker")


def parse_beam_options(arguments: list[str], own_flags: list[str]) -> PipelineOptions:
    """Returns the options of Beam from the arguments that are not flags of prepare.

    Beam ignores unknown options. Here they are an error, so that a mistyped flag is noticed.

    Raises:
      UsageError: for an argument that Beam does not know either, with the most similar flag, or for a wrong value.
    """
    parser = _Parser(allow_abbrev=False, add_help=False)
    with contextlib.suppress(ImportError):
        dask_options()
    for options in _option_classes(PipelineOptions):
        # Several classes define the same option in the same way.
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
    """Sets the number of workers in the options of the runner; 0 leaves the options unchanged.

    Raises:
      UsageError: for a runner whose number of workers is not an option of the job.
    """
    name = runner_name(options)
    if not workers:
        return
    if name in LOCAL_RUNNERS:
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers = workers
        direct.direct_running_mode = "multi_processing" if workers > 1 else "in_memory"
        # Inherited by the workers. With one malloc arena per gRPC thread they use a third more memory.
        os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    elif name == "daskrunner":
        # Several partitions per worker balance the load, because shards differ in cost.
        options.view_as(dask_options()).npartitions = PARTITIONS_PER_WORKER * workers
    elif name == "dataflowrunner":
        options.view_as(WorkerOptions).num_workers = workers
        options.view_as(WorkerOptions).max_num_workers = workers
    elif name == "flinkrunner":
        options.view_as(FlinkRunnerOptions).parallelism = workers
    else:
        make_runner(options)
        raise UsageError(
            f"--workers={workers}: not supported by --runner={name}; set the number of workers with the options of "
            "that runner"
        )


@contextlib.contextmanager
def dask_cluster(options: PipelineOptions, workers: int) -> Iterator[None]:
    """Starts Dask workers on this machine while the block runs, if the DaskRunner has no cluster address."""
    if runner_name(options) != "daskrunner":
        yield
        return
    from dask import distributed

    # Importing Dask changes the log levels.
    quiet_logs(options)
    with contextlib.ExitStack() as stack:
        dask = options.view_as(dask_options())
        if not (dask.address or dask.scheduler_file):
            cluster = distributed.LocalCluster(
                n_workers=max(1, workers), threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
            )
            dask.address = stack.enter_context(cluster).scheduler_address
        stack.callback(_close_dask_client)
        yield


def _close_dask_client() -> None:
    """Closes the client that Beam leaves open; it would report errors once the scheduler is gone."""
    from dask import distributed

    # There is none if the scheduler did not answer.
    with contextlib.suppress(ValueError):
        distributed.default_client().close()


@contextlib.contextmanager
def translate_failures(options: PipelineOptions) -> Iterator[None]:
    """Translates an exception of a job into the error that the user can act on.

    Tracebacks of threads and worker processes that fail for the same reason are not printed.

    Raises:
      SsdDistError: for an error that the user can fix. Any other exception is raised unchanged, and the captured
        tracebacks are printed.
    """
    thread_failures: list[threading.ExceptHookArgs] = []
    hook = threading.excepthook
    threading.excepthook = thread_failures.append
    capture: contextlib.AbstractContextManager[list[BinaryIO]] = contextlib.nullcontext([])
    if options.view_as(DirectOptions).direct_running_mode == "multi_processing":
        capture = capture_stderr()
    with capture as captured:
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            explained = explain_failure(error, is_local(options))
            if explained is not None:
                captured.clear()
                raise explained from None
            for failure in thread_failures:
                hook(failure)
            raise
        finally:
            threading.excepthook = hook


@contextlib.contextmanager
def capture_stderr() -> Iterator[list[BinaryIO]]:
    """Captures stderr of processes started in the block and prints it at the end, unless the list is cleared.

    A worker prints the full traceback of each failure; this process prints the reason in one line.
    """
    with tempfile.TemporaryFile() as file:
        captured: list[BinaryIO] = [file]
        terminal = os.dup(STDERR)
        own = sys.stderr
        if own is sys.__stderr__:
            sys.stderr = os.fdopen(os.dup(STDERR), "w", buffering=1)
        os.dup2(file.fileno(), STDERR)
        try:
            yield captured
        finally:
            own.flush()
            os.dup2(terminal, STDERR)
            os.close(terminal)
            sys.stderr = own
            for output in captured:
                output.seek(0)
                own.write(output.read().decode("utf-8", "replace"))


def runner_name(options: PipelineOptions) -> str:
    """Returns the name of the requested runner in lower case; completes Beam's short forms."""
    name = (options.view_as(StandardOptions).runner or "DirectRunner").rpartition(".")[2].lower()
    return name if name.endswith("runner") else f"{name}runner"


def make_runner(options: PipelineOptions) -> PipelineRunner:
    """Returns the runner of `--runner`; without the flag, or for DirectRunner, one in this process.

    Raises:
      UsageError: if the runner does not exist.
    """
    if runner_name(options) in LOCAL_RUNNERS:
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
        return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))
    name = options.view_as(StandardOptions).runner
    if runner_name(options) == "daskrunner":
        # Beam has no short name for this runner.
        name = f"{DASK_MODULE}.DaskRunner"
    try:
        return create_runner(name)
    except (ImportError, ValueError, AttributeError, RuntimeError) as error:
        known = ", ".join(StandardOptions.KNOWN_RUNNER_NAMES)
        raise UsageError(f"--runner={name}: {str(error).splitlines()[0]}; valid values: {known}") from None


def explain_failure(error: BaseException, is_local: bool = True) -> SsdDistError | None:
    """Returns the error that the user can act on, or None if the exception is a bug.

    The DataError of a worker arrives with a note about the step, or as text inside an exception of the runner.
    """
    if isinstance(error, SsdDistError) and not isinstance(error, DataError):
        return error
    text = f"DataError: {error}" if isinstance(error, DataError) else str(error)
    if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in text:
        if not is_local:
            return RestartError(
                "stopped waiting for the job, which continues to run; cancel it with the tools of its runner"
            )
        return RestartError("stopped; run the same command with --resume, which keeps finished shards")
    if isinstance(error, DataError) and "[while running" not in text:
        # Raised in this process, so the runner has not wrapped it.
        return error
    if problem := _explain_options(str(error)):
        return UsageError(problem)
    message = text.rpartition("DataError: ")[2] if "DataError: " in text else ""
    # A message may have several lines. Without the note about the step, its end is unknown.
    message, marker, _ = message.partition(" [while running")
    message = message if marker else re.split(r"\\n|\n", message)[0]
    if message:
        return DataError(message)
    if any(message in f"{type(error).__name__}: {text}" for message in LOST_WORKER_MESSAGES):
        return RestartError(
            "a worker died (killed, or out of memory); run the same command with --resume, which keeps finished shards"
        )
    if {kind.__name__ for kind in type(error).__mro__} & beam_storage.NO_ANSWER:
        return DataError(
            f"the store or the service of the runner does not answer ({type(error).__name__}: {first_line(error)}); "
            "check the network, --temp_location and --staging_location"
        )
    return None


def _explain_options(text: str) -> str:
    """Returns what is wrong with the options of a runner, from the message of its exception; empty for another one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Pipeline has validations errors" in text:
        return f"the runner lacks options: {' '.join(lines[1:])} Add them to the command"
    if "You must specify a --job_endpoint" in text:
        return "the runner needs the address of its job server; add --job_endpoint=HOST:PORT"
    if "Unable to fetch remote job server jar" in text:
        return (
            f"Beam cannot download the job server of this runner: {lines[0]:.200}; give the file as "
            "--flink_job_server_jar or --spark_job_server_jar"
        )
    if "Timed out trying to connect to" in text:
        return f"no Dask scheduler answers: {lines[0]}; check --dask_client_address"
    return ""


def is_local(options: PipelineOptions) -> bool:
    """Returns whether the job ends when this process ends."""
    return runner_name(options) in (*LOCAL_RUNNERS, "daskrunner")


def only_submits(options: PipelineOptions) -> bool:
    """Returns whether the job is submitted without waiting for it: a dry run, or a template for Dataflow."""
    is_template = bool(options.view_as(GoogleCloudOptions).template_location)
    return is_dry_run(options) or (is_template and runner_name(options) == "dataflowrunner")


def is_dry_run(options: PipelineOptions) -> bool:
    """Returns whether the job is only to be listed, not run."""
    return bool(options.view_as(TestOptions).dry_run)


def step_names(pipeline: beam.Pipeline) -> list[str]:
    """Returns the names of the steps of a pipeline in order; nested steps as `outer/inner`, without deeper levels."""
    names: list[str] = []

    class Collector(PipelineVisitor):
        def visit_transform(self, applied: AppliedPTransform) -> None:
            names.append("/".join(applied.full_label.split("/")[:2]))

    pipeline.visit(Collector())
    return list(dict.fromkeys(names))


def require_remote(options: PipelineOptions, paths: list[str]) -> None:
    """Checks that all paths are remote if the workers run on other machines.

    Raises:
      UsageError: for a local path with Dataflow.
    """
    local = [path for path in paths if path and not is_remote(path)]
    if runner_name(options) == "dataflowrunner" and not is_dry_run(options) and local:
        raise UsageError(
            f"{local[0]}: a local path, which the workers of Dataflow cannot read or write; give a gs:// path"
        )


def quiet_logs(options: PipelineOptions) -> None:
    """Hides log lines of Beam and Dask below warnings; a failure is reported by the exception that ends the job.

    On Dataflow the log level is unchanged, because Beam logs the progress of the job.
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
    """Returns the class of Beam's options for Dask; importing it also registers them."""
    found: type[PipelineOptions] = importlib.import_module(DASK_MODULE).DaskOptions
    return found


def _option_classes(base: type[PipelineOptions]) -> list[type[PipelineOptions]]:
    found = base.__subclasses__()
    deeper = [cls for direct in found for cls in _option_classes(direct)]
    return [*found, *deeper]


class _Parser(pipeline_options._BeamArgumentParser):
    """Beam's parser, which raises an error instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raises a UsageError."""
        raise UsageError(f"{message}; see the documentation of Beam's options")
