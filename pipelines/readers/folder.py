"""The files of a dataset, listed once, from which the formats recognize their layout."""

import contextlib
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipelines import beam_storage
from pipelines.annotations import IMAGE_SUFFIXES
from pipelines.split_folder import PARTS_FOLDER, contains_only_output
from ssd_dist.core.storage import join

# Files that operating systems and version control add to a folder.
IGNORED = re.compile(r"(^|/)(\.(?!/)|__MACOSX/|Thumbs\.db$|desktop\.ini$)")
# Image files in formats that Pillow does not decode here. They are listed so that they are reported.
UNSUPPORTED_SUFFIXES = (".avif", ".heic", ".heif", ".svg", ".dng", ".cr2", ".nef", ".arw", ".raw", ".psd", ".jxl")


@dataclass(frozen=True)
class Folder:
    """The files below one folder; hidden files and the output of prepare are omitted.

    Attributes:
      path: the folder.
      names: paths of the files relative to the folder, sorted.
    """

    path: str
    names: tuple[str, ...]

    def find(self, *patterns: str) -> list[str]:
        """Returns the names that match a pattern in any case, in the order of the patterns.

        `*` does not match a slash.
        """
        matches = [_to_regex(pattern).fullmatch for pattern in patterns]
        found = (name for match in matches for name in self.names if match(name))
        return list(dict.fromkeys(found))

    def join(self, name: str) -> str:
        """Returns the path of a file or folder below this folder; an empty name gives the folder itself."""
        return join(self.path, name) if name else self.path

    @cached_property
    def folders(self) -> frozenset[str]:
        """Relative paths of all folders that contain a file, at any depth; the empty path is the folder itself."""
        return frozenset(parent for name in self.names for parent in _parents(name))

    @cached_property
    def _image_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for name in self.names:
            if is_image(name):
                for parent in _parents(name):
                    counts[parent] = counts.get(parent, 0) + 1
        return counts

    def count_images(self, folder: str) -> int:
        """Returns the number of image files in a folder and below it."""
        return self._image_counts.get(folder, 0)


_listings: dict[str, Folder] | None = None


@contextlib.contextmanager
def cached_listings() -> Iterator[None]:
    """Lists each folder only once within the block, in which the files must not change."""
    global _listings
    before, _listings = _listings, {}
    try:
        yield
    finally:
        _listings = before


def list_folder(path: str) -> Folder:
    """Lists the files below a folder."""
    if _listings is not None and path in _listings:
        return _listings[path]
    listing = _list(path)
    if _listings is not None:
        _listings[path] = listing
    return listing


def _list(path: str) -> Folder:
    names = [beam_storage.path_below(path, found) for found in beam_storage.match_below(path, "**")]
    suffix = f"/{PARTS_FOLDER}/job.json"
    prepared = tuple(
        f"{name.removesuffix(suffix)}/"
        for name in names
        if name.endswith(suffix) and contains_only_output(join(path, name.removesuffix(suffix)))
    )
    return Folder(path, tuple(name for name in names if not IGNORED.search(name) and not name.startswith(prepared)))


def is_image(name: str) -> bool:
    """Returns whether a file has the suffix of an image, including those of formats that cannot be decoded."""
    return name.lower().endswith((*IMAGE_SUFFIXES, *UNSUPPORTED_SUFFIXES))


def _parents(name: str) -> list[str]:
    parents = []
    while name:
        name = posixpath.dirname(name)
        parents.append(name)
    return parents


def _to_regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    wild = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts), re.IGNORECASE)
