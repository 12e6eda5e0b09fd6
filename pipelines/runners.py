"""Beam's options: which flags are Beam's, and a local runner that needs no network.

The DirectRunner of Beam 2.77 first tries Prism, which downloads a program. Here it means what it used to mean: the
FnApiRunner, in this process.
"""

import argparse
import contextlib
import logging
import re
from typing import NoReturn

from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineRunner, create_runner

from ssd_dist.core.commands import unknown_flag
from ssd_dist.core.errors import DataError, UsageError

with contextlib.suppress(ImportError):
    import apache_beam.runners.dask.dask_runner  # noqa: F401  (its options are known once it is imported)


def parse_beam_options(arguments: list[str], own_flags: list[str]) -> PipelineOptions:
    """Beam's options from the arguments that are no flags of ours.

    Beam ignores what it does not know; a mistyped flag must not be ignored.

    Raises:
      UsageError: for an argument that is not Beam's either, naming the nearest flag, or for a wrong value.
    """
    parser = _Parser(allow_abbrev=False, add_help=False)
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


def make_runner(options: PipelineOptions) -> PipelineRunner:
    """The runner that `--runner` names; without it, or for DirectRunner, one in this process.

    Raises:
      UsageError: if there is no such runner.
    """
    name = options.view_as(StandardOptions).runner or "DirectRunner"
    if name.lower() in ("direct", "directrunner", "fnapirunner"):
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
        return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))
    try:
        return create_runner(name)
    except (ImportError, ValueError, AttributeError, RuntimeError) as error:
        known = ", ".join(StandardOptions.KNOWN_RUNNER_NAMES)
        raise UsageError(f"--runner={name}: {str(error).splitlines()[0]}; known: {known}") from None


def data_error_within(error: BaseException) -> DataError | None:
    """The DataError that a worker raised.

    Runners hand it on with a note of the step, or as text inside an exception of their own.
    """
    text = f"DataError: {error}" if isinstance(error, DataError) else str(error)
    found = re.findall(r"DataError: (.*?)(?: \[while running|\\n|\n|$)", text)
    return DataError(found[-1]) if found else None


def quiet_logs() -> None:
    """Leaves only warnings of Beam's, and errors of workers to the exception that carries them here."""
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    for name in ("apache_beam.runners.common", "apache_beam.runners.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _option_classes(base: type[PipelineOptions]) -> list[type[PipelineOptions]]:
    found = [cls for cls in vars(pipeline_options).values() if isinstance(cls, type) and issubclass(cls, base)]
    found += base.__subclasses__()
    return [cls for cls in dict.fromkeys(found) if cls is not base and "_add_argparse_args" in vars(cls)]


class _Parser(pipeline_options._BeamArgumentParser):
    """Beam's parser, that raises instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Refuses the command line."""
        raise UsageError(f"{message}; see Beam's options")
