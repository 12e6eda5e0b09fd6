"""Finds the local files that match a pattern, as Beam does, but in linked folders and the current folder, too."""

import os
import posixpath
import re
from collections.abc import Iterator

from apache_beam.io.filesystem import FileSystem

from ssd_dist.core.errors import DataError

# Folders of file systems that only their owner may read.
SYSTEM_FOLDERS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")


def match_local(pattern: str) -> list[str]:
    """Matches as Beam does, but follows links, which Beam skips silently."""
    pattern = f"{pattern}*" if pattern.endswith("/") else pattern
    literal = re.match(r"[^*?\[]*", pattern)
    assert literal is not None
    if literal[0] == pattern:
        return [pattern] if os.path.exists(pattern) else []
    folder = posixpath.dirname(literal[0])
    levels = None if "**" in pattern else pattern.removeprefix(folder).lstrip("/").count("/")
    found = _walk(folder, levels) if folder else (path.removeprefix("./") for path in _walk(".", levels))
    # Beam excludes backslashes, which names in an archive of another system may contain.
    matches = re.compile(FileSystem.translate_pattern(pattern).replace(r"[^/\\]", "[^/]")).match
    return [path for path in found if matches(path)]


def _raise_unreadable(error: OSError) -> None:
    """Raises an error for a folder that may contain data; those of the system and hidden ones contain none."""
    name = posixpath.basename(str(error.filename).rstrip("/"))
    if not (isinstance(error, FileNotFoundError) or name.startswith(".") or name in SYSTEM_FOLDERS):
        raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}; allow it, or move it away")


def _walk(folder: str, levels: int | None) -> Iterator[str]:
    """Yields the files below a local folder, at most `levels` levels deep; skips links to a parent folder."""
    above: dict[str, tuple[tuple[int, int], ...]] = {folder: ()}
    for here, folders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        trail = above.pop(here)
        status = os.stat(here)
        place = (status.st_dev, status.st_ino)
        if place in trail:
            folders.clear()
            continue
        yield from (posixpath.join(here, name) for name in names)
        if len(trail) == levels:
            folders.clear()
        above.update((posixpath.join(here, name), (*trail, place)) for name in folders)
