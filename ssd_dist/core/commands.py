"""Runs commands: parses absl flags, reports user errors in one line and returns exit codes.

    def run_main():
        define_config_flags()                 # --config, --set
        flags.DEFINE_string(...)              # the flags of the command
        run_command(main)                     # parses, calls main, exits

Flags are defined when the command starts, not when its module is imported, because commands share flag names.
"""

import difflib
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from logging import LogRecord
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging  # type: ignore[import-untyped]

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import UsageError, exit_with_message
from ssd_dist.core.printable import escape
from ssd_dist.core.storage import is_remote

# In --help, the flags defined here belong to the command that defines them.
flags.disclaim_key_flags()


def define_config_flags() -> None:
    """Defines `--config` and `--set`."""
    flags.DEFINE_string(
        "config", None, "YAML file of the experiment, or the name of a config that the package contains, such as base."
    )
    define_override_flag()


def define_override_flag() -> None:
    """Defines `--set`."""
    flags.DEFINE_multi_string(
        "set", [], "KEY=VALUE: overrides a key of the config, e.g. --set train.epochs=3; may be repeated."
    )


def overrides_from_flags() -> list[str]:
    """Returns the values of `--set` in order."""
    return list(flags.FLAGS["set"].value)


def config_from_flags(is_required: bool = True) -> Config:
    """Returns the config that `--config` and `--set` describe.

    Args:
      is_required: whether `--config` must be set; otherwise every key has its default without it.

    Raises:
      UsageError: if `--config` is required and missing, or the config is invalid.
    """
    path = required_flag("config") if is_required else flags.FLAGS["config"].value
    return load_config(path or None, overrides_from_flags())


def required_flag(name: str) -> str:
    """Returns the value of a required string flag.

    Raises:
      UsageError: if it is missing or empty.
    """
    value = flags.FLAGS[name].value
    if not value:
        raise UsageError(f"--{name} is missing: {_help_of(flags.FLAGS[name])}")
    return str(value)


def local_path(flag: str) -> str:
    """Returns the value of a flag that gives a file or folder to write to; empty if it is not set.

    Raises:
      UsageError: if it is on an object store.
    """
    path = flags.FLAGS[flag].value or ""
    if is_remote(path):
        raise UsageError(f"--{flag}={path}: cannot write to remote storage; give a local path and copy the result")
    return str(path)


def output_file(flag: str) -> Path | None:
    """Returns the file that a flag gives; checks that it is writable before work that takes minutes.

    Raises:
      UsageError: if the file cannot be written.
    """
    if not (name := local_path(flag)):
        return None
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(flag, path, error) from None
    check_writable(flag, path)
    return path


def check_writable(flag: str, path: Path) -> None:
    """Checks that a file in an existing folder can be written.

    Raises:
      UsageError: if it cannot; the message names `flag`.
    """
    try:
        existed = path.exists()
        path.touch()
        if not existed:
            # `path` may be a link to it.
            os.unlink(os.path.realpath(path))
        elif path.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise _not_writable(flag, path, error) from None


def _not_writable(flag: str, path: Path, error: OSError) -> UsageError:
    return UsageError(f"--{flag}={path}: cannot write the file: {error}; give a file in a writable folder")


def refuse_flags(names: Sequence[str], beside: str) -> None:
    """Rejects flags that have no effect together with the flag `beside`.

    Raises:
      UsageError: if one of `names` is set; the message states the first one.
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise UsageError(f"--{name} has no effect together with --{beside}; omit one of them")


def run_command(main: Callable[[list[str]], int | None], keep_unknown: bool = False) -> NoReturn:
    """Parses the flags, runs `main` and exits with its exit code or that of the `SsdDistError` it raises.

    Args:
      main: gets the remaining arguments, without the name of the program; they are empty unless `keep_unknown`.
      keep_unknown: whether to pass unknown flags, such as Beam options, to `main` instead of rejecting them.
    """

    def parse(argv: list[str]) -> list[str]:
        if any(argument in ("-h", "--help", "-help") for argument in argv[1:]):
            print(_help_text(main))
            sys.exit(0)
        return parse_arguments(argv, keep_unknown)

    # File names need not be valid UTF-8, and printing one must not fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(_PrintableFormatter())
    # A traced graph has a million objects that are never freed. Garbage collection with the default thresholds and at
    # exit takes a sixth of the time of a short run.
    gc.set_threshold(50_000, 20, 50)
    try:
        sys.exit(exit_with_message(lambda: app.run(main, flags_parser=parse)))
    finally:
        gc.freeze()


def parse_arguments(argv: list[str], keep_unknown: bool = False) -> list[str]:
    """Parses the flags and returns the other arguments, without the name of the program `argv[0]`.

    Raises:
      UsageError: for an invalid flag and, unless `keep_unknown`, for any remaining argument.
    """
    try:
        rest = flags.FLAGS(argv, known_only=keep_unknown)[1:]
    except flags.UnrecognizedFlagError as error:
        raise unknown_flag(error.flagname, list(flags.FLAGS)) from None
    except flags.Error as error:
        raise UsageError(f"{error}; --help lists the flags") from None
    if rest and not keep_unknown:
        raise UsageError(f"unexpected argument {rest[0]!r}: write values as --flag=value; --help lists the flags")
    return list(rest)


def unknown_flag(name: str, known: Sequence[str]) -> UsageError:
    """Returns the error for an unknown flag; the message suggests the most similar known flag."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean --{near[0]}?" if near else "; --help lists the flags"
    return UsageError(f"unknown flag --{name}{hint}")


class _PrintableFormatter(logging.PythonFormatter):  # type: ignore[misc]
    """Escapes unprintable characters in log lines; keeps the line breaks of tracebacks."""

    def format(self, record: LogRecord) -> str:
        """Returns the text of a log record."""
        return "\n".join(map(escape, super().format(record).splitlines()))


def _help_text(main: Callable[[list[str]], int | None]) -> str:
    module = sys.modules[main.__module__]
    # absl registers the flags of a module that runs as a script under the path of the script.
    name = sys.argv[0] if main.__module__ == "__main__" else main.__module__
    own = flags.FLAGS.get_key_flags_for_module(name)
    lines = [f"  --{flag.name}: {_help_of(flag)} (default: {_default_of(flag)})" for flag in own]
    return "\n".join([(module.__doc__ or "").strip(), "", *lines])


def _help_of(flag: flags.Flag) -> str:
    """Returns the help of a flag as it was defined."""
    # absl appends this to flags that may be repeated; their help already states it in a full sentence.
    return str(flag.help).removesuffix(";\n    repeat this option to specify a list of values")


def _default_of(flag: flags.Flag) -> str:
    return "none" if flag.default in (None, "", []) else str(flag.default_as_str)
