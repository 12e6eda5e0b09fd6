"""Errors that users can fix, and their exit codes.

Every package raises these errors with a message of one line that states what is wrong and how to fix it. Only
`exit_with_message`, which runs the `main` of each command, converts them to exit codes.
"""

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ssd_dist.core.extras import explain_missing_package
from ssd_dist.core.printable import print_line

# By the convention of shells: 128 plus the number of SIGINT.
INTERRUPTED = 130
# Errors of the system about a path that the user gave: no permission, a name that is too long, no space.
PATH_ERRORS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
# 128 plus the number of SIGPIPE.
CLOSED_PIPE = 141
# The path of the file to which a stage of `ssd-fit` writes its error, which `ssd-fit` then reports.
ERROR_FILE_VARIABLE = "SSD_DIST_ERROR_FILE"


class SsdDistError(Exception):
    """An error that the user can fix; `str(error)` is the message."""

    exit_code = 1


class UsageError(SsdDistError):
    """A wrong flag, config key, type or value."""

    exit_code = 2


class DataError(SsdDistError):
    """A dataset, shard or manifest that is missing, damaged or does not fit the config."""

    exit_code = 3


class CheckpointError(SsdDistError):
    """A checkpoint or weight file that is missing, damaged or belongs to a different model."""

    exit_code = 4


class NumericsError(SsdDistError):
    """A loss that is NaN or infinite; the message lists the images of the batch."""

    exit_code = 2


class RestartError(SsdDistError):
    """An interrupted run that saved its state; it resumes when started again."""

    exit_code = 75


def exit_with_message(main: Callable[[], int | None]) -> int:
    """Runs `main` and returns its exit code.

    For an `SsdDistError`, a missing package of an extra, a path that the system refuses, or Ctrl-C, prints one line to
    stderr and returns the exit code of the error. If the environment variable SSD_DIST_ERROR_FILE names a file, the
    error is written to it instead.
    """
    # The processes that the command itself starts must not write to this file.
    error_file = os.environ.pop(ERROR_FILE_VARIABLE, "")
    try:
        return main() or 0
    except SsdDistError as error:
        _report_error(error, error_file)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (message := explain_missing_package(error)) is None:
            raise
        _report_error(UsageError(message), error_file)
        return UsageError.exit_code
    except KeyboardInterrupt:
        _print_error("error: stopped")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output, such as `head`, ended. Python would print an error when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:
        if error.errno not in PATH_ERRORS:
            raise
        # A full disk is noticed when a file is written, which gives no name.
        name = error.filename or "the output cannot be written"
        fix = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "change its permissions"
        message = f"{name}: {error.strerror}; use another path, or {fix}"
        _report_error(UsageError(message), error_file)
        return UsageError.exit_code


def read_error_file(path: Path, title: str) -> SsdDistError | None:
    """Returns the error that a command wrote to its error file; None if it wrote none.

    Args:
      path: the error file.
      title: what the command did, as the beginning of the message.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    kinds: dict[str, type[SsdDistError]] = {kind.__name__: kind for kind in SsdDistError.__subclasses__()}
    return kinds.get(content["type"], SsdDistError)(f"{title}: {content['message']}")


def _report_error(error: SsdDistError, error_file: str) -> None:
    # The text of an error of another library may have several lines.
    message = " ".join(str(error).split())
    # Of a class that is derived from one of this module, the name of that one.
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)
    content = json.dumps({"type": kind, "message": message})
    # If the file cannot be written, for example on a full disk, the message is printed.
    with suppress(OSError):
        if error_file:
            Path(error_file).write_text(content)
            return
    _print_error(f"error: {message}")


def _print_error(message: str) -> None:
    # If the terminal is closed, the exit code still reports the error.
    with suppress(OSError, ValueError):
        print_line(message, sys.stderr)


def first_line(error: BaseException) -> str:
    """Returns the first informative line of an error, at most 300 characters; skips TensorFlow's source locations."""
    locations = ("Graph execution error:", "Detected at", "File ")
    text = re.sub(r"\{\{function_node .*?\}\}|\[Op:\w+\]", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(locations)]
    return (lines or [type(error).__name__])[0][:300]
