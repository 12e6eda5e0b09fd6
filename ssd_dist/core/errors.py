"""The failures that are not bugs, and the exit code that each becomes.

Every layer raises one of these with one line that names the thing and the mend; `exit_with_message`, wrapped
around each command's `main`, is the only place where they turn into an exit code.
"""

import re
import sys
from collections.abc import Callable
from contextlib import suppress

# As a shell has it: 128 and the number of SIGINT.
INTERRUPTED = 130


class SsdDistError(Exception):
    """A failure the user can mend; `str(error)` is the whole message."""

    exit_code = 1


class UsageError(SsdDistError):
    """A wrong flag, config key, type or value."""

    exit_code = 2


class DataError(SsdDistError):
    """A data set, shard or manifest that is missing, broken or does not fit the config."""

    exit_code = 3


class CheckpointError(SsdDistError):
    """A checkpoint or weight file that is missing, broken or of another model."""

    exit_code = 4


class NumericsError(SsdDistError):
    """A loss that is not a number or infinite: for another config, or for a look at the images it names."""

    exit_code = 2


class RestartError(SsdDistError):
    """The run was interrupted in good order: start it again and it goes on."""

    exit_code = 75


def exit_with_message(main: Callable[[], int | None]) -> int:
    """Runs `main`; returns its exit code, or that of the `SsdDistError` or Ctrl-C that ended it, told in one line."""
    try:
        return main() or 0
    except SsdDistError as error:
        _tell(f"error: {' '.join(str(error).split())}")
        return error.exit_code
    except KeyboardInterrupt:
        _tell("error: stopped")
        return INTERRUPTED


def _tell(message: str) -> None:
    # The terminal may be closed; the exit code says the same.
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr)


def first_line(error: Exception) -> str:
    """The beginning of what an error's text has to say, which TensorFlow hides among the places it passed."""
    passed = ("Graph execution error:", "Detected at", "File ")
    text = re.sub(r"\{\{function_node .*?\}\}|\[Op:\w+\]", "", str(error))
    told = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(passed)]
    return (told or [type(error).__name__])[0][:300]
