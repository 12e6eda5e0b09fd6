"""Chooses which annotation files are parts of one dataset: those that describe different images."""

import posixpath
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class _HasPath(Protocol):
    @property
    def path(self) -> str: ...


FileT = TypeVar("FileT", bound=_HasPath)


@dataclass(frozen=True)
class Parts(Generic[FileT]):
    """Some annotation files, of which no two describe the same image.

    Attributes:
      files: the files.
      repeated: the other files, and how many of all their images are in none of `files`: (file, missing, all).
    """

    files: tuple[FileT, ...]
    repeated: tuple[tuple[FileT, int, int], ...] = ()

    def describe(self) -> list[str]:
        """Returns facts to announce."""
        names = ", ".join(posixpath.basename(file.path) for file in self.files)
        notes = [f"read together, because no image is in two of them: {names:.200}"] if len(self.files) > 1 else []
        return notes + [
            f"{file.path} is not read, because it lists images of {names:.200} again; {missing} of its {count} images "
            "are in no file that is read; pass a file as --input to read it instead"
            for file, missing, count in self.repeated
        ]


def choose_parts(files: Sequence[FileT], list_images: Callable[[FileT], Collection[str]]) -> Parts[FileT]:
    """Returns the files to read: the one with most images, then each file with different images.

    Of equal files, that with the shortest path is read; the others are probably copies.

    Args:
      files: the files.
      list_images: returns the images that a file describes.
    """
    if len(files) == 1:
        return Parts(tuple(files))
    listed = {file.path: set(list_images(file)) for file in files}
    known: set[str] = set()
    chosen, repeated = [], []
    for file in sorted(files, key=lambda file: (-len(listed[file.path]), len(file.path))):
        if known.isdisjoint(listed[file.path]):
            chosen.append(file)
            known |= listed[file.path]
        else:
            repeated.append(file)
    return Parts(
        tuple(file for file in files if file in chosen),
        tuple((file, len(listed[file.path] - known), len(listed[file.path])) for file in repeated),
    )
