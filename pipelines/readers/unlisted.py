"""Finds the image files of a folder that the annotations do not list, so that they are reported."""

import posixpath
from collections.abc import Iterator

from pipelines.annotations import Image, Problem
from pipelines.file_names import fold_name
from pipelines.readers.folder import is_image, list_folder
from pipelines.readers.sources import Source


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
            self._stems.update(map(fold_name, (posixpath.splitext(image.path)[0], *image.stems)))

    def make_images(self, source: Source, file: int, first_row: int, annotation: str) -> Iterator[Image]:
        """Yields the files that are not listed, sorted, as rejected images.

        Args:
          source: decides which images belong to the split.
          file: number of the listing.
          first_row: position of the first of them in the listing.
          annotation: the annotation file or folder, for messages.
        """
        problem = Problem("not_annotated", f"{annotation} does not list this image file")
        row = first_row
        for path, name in sorted(self._unlisted.items()):
            if fold_name(posixpath.splitext(path)[0]) not in self._stems and source.includes(path):
                yield Image(path, file, row, annotation, name, path, problem=problem)
                row += 1
