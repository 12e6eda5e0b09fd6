"""Finds the folder of an export from a path that a user gives for it."""

from pathlib import Path

from ssd_dist.core.errors import CheckpointError
from ssd_dist.core.folder_names import SUMMARY_NAME


def find_export_folder(path: str | Path) -> Path | None:
    """Returns the folder of an export; None if there is none.

    Args:
      path: the folder, a file in it, or a folder that contains it, such as `RUN/export`.

    Raises:
      CheckpointError: if the folder contains several exports.
    """
    given = Path(path)
    folder = given.parent if given.is_file() else given
    if (folder / SUMMARY_NAME).is_file():
        return folder
    if folder is not given:
        return None
    found = sorted(summary.parent for summary in folder.glob(f"*/{SUMMARY_NAME}"))
    if len(found) > 1:
        names = ", ".join(str(each) for each in found)
        raise CheckpointError(f"{path}: contains several exports; give one of {names}")
    return found[0] if found else None
