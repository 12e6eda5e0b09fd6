"""Finds image files by names that were written on another machine or without their folder."""

import posixpath
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from pipelines.annotations import Problem
from pipelines.readers.folder import Folder, is_image
from pipelines.readers.sources import Location
from pipelines.readers.split_names import names_split
from ssd_dist.core.storage import join


class ImageIndex:
    """The image files of a folder by their names.

    Args:
      folder: the listing of the folder.
      split: name of a split; of several files that fit equally, those in a folder of the split are preferred.
      key: returns the form in which file names are compared.
    """

    def __init__(self, folder: Folder, split: str = "", key: Callable[[str], str] = str) -> None:
        self._split = split
        self._key = key
        self._names: dict[str, list[str]] = {}
        for name in filter(is_image, folder.names):
            self._names.setdefault(key(_stem(posixpath.basename(name))), []).append(name)

    def find(self, name: str) -> list[str]:
        """Returns the relative paths of the files that share the longest end with a name or path.

        A name without the suffix of an image fits files with any suffix, and so does a name that no file has. Names
        from the address of a web page may be percent-encoded.
        """
        return self._find(name) or self._find(unquote(name))

    def _find(self, name: str) -> list[str]:
        *parents, base = name.replace("\\", "/").split("/")
        found = self._names.get(self._key(_stem(base)), [])
        found = [path for path in found if self._key(posixpath.basename(path)) == self._key(base)] or found
        lengths = [_count_common(parents, path.split("/")[:-1]) for path in found]
        found = [path for path, length in zip(found, lengths, strict=True) if length == max(lengths)]
        in_split = [path for path in found if names_split(posixpath.dirname(path), self._split)]
        return in_split if len(found) > 1 and in_split else found


def locate_found(found: Sequence[str], name: str, folder: str) -> Location | None:
    """Returns the location of the only file that was found for a name; None if there is none.

    Several files that fit are a problem, and count as listed by the annotations.

    Args:
      found: relative paths of the files that fit.
      name: the name in the annotations.
      folder: the folder that was searched.
    """
    if len(found) > 1:
        detail = f"{found[0]} and {found[1]} in {folder} both fit {name!r}; give images different names"
        stems = tuple(posixpath.splitext(join(folder, path))[0] for path in found)
        return Location(stems=stems, problem=Problem("ambiguous_image", detail))
    return Location(join(folder, found[0])) if found else None


def narrow_folder(folder: Folder, split: str, paths: Sequence[str]) -> str:
    """Returns the folder of the split that contains some files, or else the whole folder.

    The folder of these files alone would be too narrow: names are often sorted by folder.

    Args:
      folder: listing of the whole folder.
      split: name of the split; may be empty.
      paths: relative paths of the files, at least one.
    """
    for depth in range(1, max(path.count("/") for path in paths) + 1):
        tops = {"/".join(path.split("/")[:depth]) for path in paths}
        if len(tops) == 1 and names_split(next(iter(tops)), split):
            return folder.join(tops.pop())
    return folder.path


def _stem(base: str) -> str:
    return posixpath.splitext(base)[0] if is_image(base) else base


def _count_common(parents: list[str], others: list[str]) -> int:
    """Returns how many folders at the end of two paths are the same."""
    count = 0
    while count < min(len(parents), len(others)) and parents[-1 - count] == others[-1 - count]:
        count += 1
    return count
