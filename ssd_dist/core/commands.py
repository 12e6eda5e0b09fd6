"""What the commands share: absl flags in, an exit code out, every user mistake one line.

    def run_main():
        define_config_flags()                 # --config, --set
        flags.DEFINE_string(...)              # the command's own
        run_command(main)                     # parses, calls main, exits

Flags are defined when the command starts, not when its module is imported: two commands may share a flag's name.
"""

import difflib
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging  # type: ignore[import-untyped]

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import UsageError, exit_with_message

# The flags defined here belong, in --help, to the command that asked for them.
flags.disclaim_key_flags()


def define_config_flags() -> None:
    """Defines `--config` and `--set`, which every command that reads an experiment takes."""
    flags.DEFINE_string("config", None, "YAML file of the experiment, e.g. configs/bccd.yaml.")
    define_override_flag()


def define_override_flag() -> None:
    """Defines `--set`."""
    flags.DEFINE_multi_string(
        "set", [], "KEY=VALUE: overrides a key of the config, e.g. --set train.epochs=3; may be repeated."
    )


def overrides_from_flags() -> list[str]:
    """What `--set` was given, in order."""
    return list(flags.FLAGS["set"].value)


def config_from_flags() -> Config:
    """The experiment that `--config` and `--set` describe.

    Raises:
      UsageError: if `--config` is missing or the config is wrong.
    """
    return load_config(required_flag("config"), overrides_from_flags())


def required_flag(name: str) -> str:
    """The value of a string flag that must be given.

    Raises:
      UsageError: if it is missing or empty.
    """
    value = flags.FLAGS[name].value
    if not value:
        raise UsageError(f"--{name} is missing: {flags.FLAGS[name].help}")
    return str(value)


def refuse_flags(names: Sequence[str], beside: str) -> None:
    """Refuses flags that would change nothing.

    Raises:
      UsageError: naming the first of `names` that was given beside the flag `beside`.
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise UsageError(f"--{name} has no effect beside --{beside}; leave one of them away")


def run_command(main: Callable[[list[str]], int | None], keep_unknown: bool = False) -> NoReturn:
    """Parses the flags, runs `main` and exits with its code, or with that of the `SsdDistError` it raised.

    `main` gets the arguments that are no flags of ours, without the program's name: with `keep_unknown` whatever
    absl does not know (a Beam option, say), otherwise always an empty list, since anything else is refused.
    """

    def parse(argv: list[str]) -> list[str]:
        if any(argument in ("-h", "--help", "-help") for argument in argv[1:]):
            print(_help_text(main))
            sys.exit(0)
        return parse_arguments(argv, keep_unknown)

    # A file's name may be no UTF-8; to print it must not end a run.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # The libraries' own chatter; a user who wants it sets these.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.WARNING)
    # A traced graph is a million objects that stay: looking through all of them, as often as Python does by default and
    # once more before it ends, takes a sixth of a short run.
    gc.set_threshold(50_000, 20, 50)
    try:
        sys.exit(exit_with_message(lambda: app.run(main, flags_parser=parse)))
    finally:
        gc.freeze()


def parse_arguments(argv: list[str], keep_unknown: bool = False) -> list[str]:
    """Gives absl its flags and returns the other arguments, without the program's name `argv[0]`.

    Raises:
      UsageError: for a flag that does not parse and, unless `keep_unknown`, for any argument left over.
    """
    try:
        rest = flags.FLAGS(argv, known_only=keep_unknown)[1:]
    except flags.UnrecognizedFlagError as error:
        raise unknown_flag(error.flagname, list(flags.FLAGS)) from None
    except flags.Error as error:
        raise UsageError(f"{error}; --help lists the flags") from None
    if rest and not keep_unknown:
        raise UsageError(f"unexpected argument {rest[0]!r}: give values as --flag=value; --help lists the flags")
    return list(rest)


def unknown_flag(name: str, known: Sequence[str]) -> UsageError:
    """The error for a flag that does not exist, naming the nearest of those that do."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean --{near[0]}?" if near else "; --help lists the flags"
    return UsageError(f"unknown flag --{name}{hint}")


def _help_text(main: Callable[[list[str]], int | None]) -> str:
    module = sys.modules[main.__module__]
    # absl files the flags of a module run as a script under the script's path.
    name = sys.argv[0] if main.__module__ == "__main__" else main.__module__
    own = flags.FLAGS.get_key_flags_for_module(name)
    lines = [f"  --{flag.name}: {flag.help} (default: {flag.default_as_str or 'none'})" for flag in own]
    return "\n".join([(module.__doc__ or "").strip(), "", *lines])
