"""Finds the image files of a folder that the annotations do not list, so that they are reported.

If several annotation files or splits use one folder, the first of them compares the folder with the annotations of all,
so that each image is reported once. The same holds for several inputs.
"""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

from pipelines.annotations import Image, Problem
from pipelines.file_names import fold_address, fold_name
from pipelines.readers.folder import is_image, list_folder
from pipelines.readers.sources import Source


class _HasImages(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def images(self) -> str: ...
    @property
    def is_only_owner(self) -> bool: ...
    @property
    def others(self) -> tuple[Any, ...]: ...


FileT = TypeVar("FileT", bound=_HasImages)


def overlaps(first: _HasImages, second: _HasImages) -> bool:
    """Returns whether the folders of the images are the same, or one of them is below the other."""
    own, other = f"{first.images}/", f"{second.images}/"
    return own.startswith(other) or other.startswith(own)


def find_others(file: FileT, files: Sequence[FileT], includes_inner: bool) -> tuple[FileT, ...]:
    """Returns the other annotation files of a folder of images, if `file` is the one that reports unlisted images.

    Args:
      file: one of `files`.
      files: the annotation files or layouts of all splits.
      includes_inner: whether files whose images are in a folder below belong to the folder too.
    """
    same = [other for other in files if other.images == file.images]
    if not includes_inner:
        return tuple(same[1:]) if same[0] is file else ()
    sharing = [other for other in files if overlaps(other, file)]
    is_outermost = all(other.images.startswith(file.images) for other in sharing)
    return tuple(other for other in sharing if other is not file) if is_outermost and same[0] is file else ()


def share_folder(file: FileT, others: Sequence[FileT], before: Sequence[FileT], includes_inner: bool) -> FileT:
    """Returns an annotation file whose folder of images files of other inputs use too.

    Args:
      file: the file; it reports unlisted images only if no file of an earlier input or of an outer folder does.
      others: the files of the other inputs.
      before: those of earlier inputs.
      includes_inner: whether files whose images are in a folder below belong to the folder too.
    """
    sharing = [other for other in others if other.images == file.images or (includes_inner and overlaps(other, file))]
    if not sharing or not (file.is_only_owner or file.others):
        return file
    is_inner = any(not f"{other.images}/".startswith(f"{file.images}/") for other in sharing)
    if is_inner or any(other.images == file.images for other in before):
        return replace(file, is_only_owner=False, others=())
    different = [other for row, other in enumerate(sharing) if other not in sharing[:row]]
    return replace(file, is_only_owner=False, others=(*file.others, *different))


class ImageFolder:
    """The image files of a folder, and which of them the annotations list.

    Args:
      folder: path of the folder.
    """

    def __init__(self, folder: str) -> None:
        listing = list_folder(folder)
        self._unlisted = {listing.join(name): name for name in listing.names if is_image(name)}
        self._stems: set[str] = set()

    def mark_listed(self, image: Image) -> None:
        """Marks the file of an image as listed; if there is no such file, all files with its stems."""
        if self._unlisted.pop(image.path, None) is None:
            stems = (posixpath.splitext(image.path)[0], *image.stems)
            self._stems.update(form(stem) for stem in stems for form in (fold_name, fold_address))

    def make_images(self, source: Source, file: int, first_row: int, annotations: Sequence[str]) -> Iterator[Image]:
        """Yields the files that are not listed, sorted, as rejected images.

        Args:
          source: decides which images belong to the split.
          file: number of the listing.
          first_row: position of the first of them in the listing.
          annotations: the annotation files or folders, for messages; the images are reported as part of the first.
        """
        problem = not_annotated(annotations)
        row = first_row
        for path, name in sorted(self._unlisted.items()):
            if fold_name(posixpath.splitext(path)[0]) not in self._stems and source.includes(path):
                yield Image(path, file, row, annotations[0], name, path, problem=problem)
                row += 1


def not_annotated(annotations: Sequence[str]) -> Problem:
    """Returns the problem of an image file that none of the annotation files lists."""
    first, *others = annotations
    if not others:
        return Problem("not_annotated", f"{first} does not list this image file")
    rest = f"{others[0]}" if len(others) == 1 else f"{len(others)} other files"
    return Problem("not_annotated", f"neither {first} nor {rest} list this image file")
