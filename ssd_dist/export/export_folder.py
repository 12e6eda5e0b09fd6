"""Finds the folder of an export from a path that a user gives for it, and reads the input size in its summary."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssd_dist.core.errors import CheckpointError
from ssd_dist.core.folder_names import SUMMARY_NAME
from ssd_dist.export.runtimes import FILES


def find_export_folder(path: str | Path) -> Path | None:
    """Returns the folder of an export; None if there is none.

    Args:
      path: the folder, a file in it, or a folder that contains it, such as `RUN/export`.

    Raises:
      CheckpointError: if the folder contains several exports, or the file is not the export that the summary beside it
        describes.
    """
    given = Path(path)
    folder = given.parent if given.is_file() else given
    if (folder / SUMMARY_NAME).is_file():
        if folder is not given:
            _check_file(given)
        return folder
    if folder is not given:
        return None
    found = sorted(summary.parent for summary in folder.glob(f"*/{SUMMARY_NAME}"))
    if len(found) > 1:
        names = ", ".join(str(each) for each in found)
        raise CheckpointError(f"{path}: contains several exports; give one of {names}")
    return found[0] if found else None


def read_input_size(summary: dict[str, Any]) -> int:
    """Returns S, the side in pixels of the images that an export takes, from its summary.

    >>> read_input_size({"input": "uint8 [1, 300, 300, 3], RGB"})
    300

    Raises:
      KeyError, IndexError, TypeError: if the summary is damaged.
    """
    return int(re.findall(r"\d+(?=, 3\])", summary["input"])[0])


def _check_file(file: Path) -> None:
    described = None
    # A damaged summary is reported when the export is opened.
    with suppress(OSError, ValueError, KeyError, TypeError):
        described = FILES[json.loads((file.parent / SUMMARY_NAME).read_text())["format"]]
    if described and file.name in FILES.values() and file.name != described:
        raise CheckpointError(
            f"{file}: {SUMMARY_NAME} beside it describes {described}, which was exported later; export into separate "
            "folders"
        )
