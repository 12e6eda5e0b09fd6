"""Finds the folder of an export from a path that a user gives for it."""

from pathlib import Path

from ssd_dist.core.errors import CheckpointError
from ssd_dist.core.folder_names import SUMMARY_NAME
from ssd_dist.export.runtimes import FILES


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


def check_export_file(path: str | Path, kind: str) -> None:
    """Checks that a file, if the path is one, is of the format that the summary of its folder states.

    Raises:
      CheckpointError: if it is the file of another export into the same folder.
    """
    name = Path(path).name
    if name in FILES.values() and name != FILES[kind] and Path(path).is_file():
        raise CheckpointError(
            f"{path}: {SUMMARY_NAME} beside it describes {FILES[kind]}, which was exported later; export into a folder "
            "of its own"
        )
